"""Traces for the cold start."""
