"""Moved: `retool_env.rollout.vllm.worker` is its place, and this name goes on working."""

from retool_env.rollout.vllm.worker import *  # noqa: F403
