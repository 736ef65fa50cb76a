"""Traces for the cold start: their sources, a script that writes them, their verification."""
