"""A policy with a model of transformers in this process: continuous batching, a paged cache."""

from retool_env.rollout.transformers.policy import TransformersPolicy, load_policy

__all__ = ["TransformersPolicy", "load_policy"]
