"""Driving policies through episodes: the engine, and a module or a package for each policy.

A policy takes and returns token ids, or text if the model gives no ids
(`retool_env.rollout.policy`). The engine runs one coroutine for each episode
(`retool_env.rollout.engine`). The module `retool_env.rollout.named` makes policies by name.
Importing this package loads no model's library:

| module         | model                                                                 |
|----------------|-----------------------------------------------------------------------|
| `transformers` | a model of transformers, in this process                              |
| `vllm`         | a model in a vLLM engine of this process, or on servers (`vllm serve`) |
| `openai`       | a model behind an API of OpenAI's kind, as text                       |
| `scripted`     | no model: turns from a function                                       |
| `simulated`    | no model: turns of a given length and speed                           |
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
