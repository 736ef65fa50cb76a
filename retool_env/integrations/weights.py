"""Moved: `retool_env.training.trained_weights` is its place, and this name goes on working."""

from retool_env.training.trained_weights import *  # noqa: F403
