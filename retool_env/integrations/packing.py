"""Moved: `retool_env.training.packing` is its place, and this name goes on working."""

from retool_env.training.packing import *  # noqa: F403
