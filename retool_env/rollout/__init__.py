"""Driving policies through episodes: the engine, and one file a policy.

A policy takes token ids and gives token ids (`retool_env.rollout.policy`); the engine runs one coroutine an episode
(`retool_env.rollout.engine`). Importing this package imports neither torch nor transformers; their policy lies in
`retool_env.rollout.transformers`.
"""

from retool_env.rollout.engine import RolloutEngine
from retool_env.rollout.policy import Policy, PolicyUnavailable, TextGeneration, TextPolicy
from retool_env.rollout.scripted import ScriptedPolicy

__all__ = [
    "Policy",
    "PolicyUnavailable",
    "RolloutEngine",
    "ScriptedPolicy",
    "TextGeneration",
    "TextPolicy",
]
