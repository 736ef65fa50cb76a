"""Shared parts of several tests: models, servers, processes, and scripts that tests start."""

from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
