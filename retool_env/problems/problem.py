"""The former name of `retool_env.problem`, which still works."""

from retool_env.problem import *  # noqa: F403
