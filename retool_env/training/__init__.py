"""Parts of a trainer, whichever algorithm it runs: rollouts, rows, packing, importance weights."""
