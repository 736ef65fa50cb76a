"""Moved: `retool_env.rollout.vllm.server` is its place, and this name goes on working."""

from retool_env.rollout.vllm.server import *  # noqa: F403
