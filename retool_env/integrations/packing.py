"""The old name of `retool_env.training.packing`, which goes on working."""

from retool_env.training.packing import *  # noqa: F403
