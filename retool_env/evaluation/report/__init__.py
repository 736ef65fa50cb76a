"""`retool report`: one page on one or several recorded runs, side by side."""
