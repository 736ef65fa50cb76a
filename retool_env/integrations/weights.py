"""The old name of `retool_env.training.trained_weights`, which goes on working."""

from retool_env.training.trained_weights import *  # noqa: F403
