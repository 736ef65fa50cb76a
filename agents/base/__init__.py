"""What every trainer stands on: settings, models, runs, figures."""
