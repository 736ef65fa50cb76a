"""The trainers, run from a clone: `python -m agents <algorithm>`."""
