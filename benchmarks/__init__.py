"""Benchmarks. Each module measures one claim, prints a table and writes its figures as JSON."""
