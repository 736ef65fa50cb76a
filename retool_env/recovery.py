"""Moved: `retool_env.metrics.recovery` is its place, and this name goes on working."""

from retool_env.metrics.recovery import *  # noqa: F403
