"""Moved: `retool_env.metrics.intervals` is its place, and this name goes on working."""

from retool_env.metrics.intervals import *  # noqa: F403
