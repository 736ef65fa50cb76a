"""The base of every trainer: settings, models, runs and figures."""
