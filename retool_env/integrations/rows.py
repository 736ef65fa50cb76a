"""The old name of `retool_env.training.rows`, which goes on working."""

from retool_env.training.rows import *  # noqa: F403
