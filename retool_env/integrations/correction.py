"""Moved: `retool_env.training.correction` is its place, and this name goes on working."""

from retool_env.training.correction import *  # noqa: F403
