"""The former name of `retool_env.execution`; it keeps working."""

from retool_env.execution import *  # noqa: F403
