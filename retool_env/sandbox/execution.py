"""Moved: `retool_env.execution` is its place, and this name goes on working."""

from retool_env.execution import *  # noqa: F403
