"""The old name of `retool_env.rollout.vllm.worker`, which goes on working."""

from retool_env.rollout.vllm.worker import *  # noqa: F403
