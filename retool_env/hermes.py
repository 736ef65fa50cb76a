"""Moved: `retool_env.protocol.hermes` is its place, and this name goes on working."""

from retool_env.protocol.calls import *  # noqa: F403
from retool_env.protocol.hermes import *  # noqa: F403
