"""Moved: `retool_env.training.rollouts` is its place, and this name goes on working."""

from retool_env.training.rollouts import *  # noqa: F403
