"""Moved: `retool_env.problem` is its place, and this name goes on working."""

from retool_env.problem import *  # noqa: F403
