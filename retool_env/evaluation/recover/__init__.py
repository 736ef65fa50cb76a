"""`retool recover`: the benchmark of recovery from faults of the interpreter."""
