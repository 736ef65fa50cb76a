"""What any trainer stands on: rollouts, rows, packing, importance weights."""
