"""`retool compare`: two or more runs on the same problems."""
