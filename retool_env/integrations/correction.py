"""The old name of `retool_env.training.correction`, which goes on working."""

from retool_env.training.correction import *  # noqa: F403
