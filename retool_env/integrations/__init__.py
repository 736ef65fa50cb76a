"""Adapters that other software imports, each in a module of its own and none imported by default."""
