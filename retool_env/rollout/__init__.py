"""Driving policies through episodes: the engine, and a folder or a file a policy.

A policy takes token ids and gives token ids, or gives text where a model has no ids (`retool_env.rollout.policy`); the
engine runs one coroutine an episode (`retool_env.rollout.engine`). `retool_env.rollout.named` makes policies by name.
Importing this package loads no model's library:

| module         | a model                                                                  |
|----------------|--------------------------------------------------------------------------|
| `transformers` | of transformers, in this process                                         |
| `vllm`         | in a vLLM engine of this process's own, or on servers (`vllm serve`)     |
| `openai`       | behind an API of OpenAI's kind, as text                                  |
| `scripted`     | none: turns written beforehand                                           |
| `simulated`    | none: turns of a stated length and speed                                 |
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
