"""Adapters for other software, each in a module of its own. None is imported by default."""
