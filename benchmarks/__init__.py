"""What is claimed, measured: each module prints a table and writes its figures as JSON."""
