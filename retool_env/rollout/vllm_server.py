"""The old name of `retool_env.rollout.vllm.server`, which goes on working."""

from retool_env.rollout.vllm.server import *  # noqa: F403
