"""Driving policies through episodes: the engine, and one file a policy.

A policy takes token ids and gives token ids, or text where a model gives no ids (`retool_env.rollout.policy`); the engine runs
one coroutine an episode (`retool_env.rollout.engine`). Importing this package imports no engine and no client of a server; each
policy on one lies in a module of its own:

| module         | a model                                                        |
|----------------|----------------------------------------------------------------|
| `transformers` | of transformers, in this process                               |
| `vllm`         | in a vLLM engine of this process's own                         |
| `vllm_server`  | on servers, `vllm serve`                                       |
| `openai`       | behind an API of OpenAI's kind, as text                        |
| `scripted`     | none: turns written beforehand                                 |
| `simulated`    | none: turns of a stated length and speed                       |
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
