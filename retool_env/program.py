"""Moved: `retool_env.protocol.program` is its place, and this name goes on working."""

from retool_env.protocol.program import *  # noqa: F403
