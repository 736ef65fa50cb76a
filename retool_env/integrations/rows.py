"""Moved: `retool_env.training.rows` is its place, and this name goes on working."""

from retool_env.training.rows import *  # noqa: F403
