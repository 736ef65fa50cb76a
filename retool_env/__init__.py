"""retool_env: a Gymnasium environment for language models with a code interpreter (ReTool).

The import registers these environments:

| id | problems |
|---|---|
| `ReTool-AIME-v0` | AIME 2024 and 2025 |
| `ReTool-AIME24-v0` | AIME 2024 |
| `ReTool-AIME25-v0` | AIME 2025 |
| `ReTool-DAPO-v0` | DAPO-Math-17k |
| `ReTool-GSM8K-v0` | GSM8K |
| `ReTool-MATH-v0` | MATH |
| `ReTool-Arithmetic-v0` | generated from a seed, with `difficulty` |
| `ReTool-JSONL-v0` | the user's own file, `path=` |
"""

from typing import Any

import gymnasium as gym

from retool_env.env import ReToolEnv
from retool_env.episode import Episode, Generation
from retool_env.execution import Execution, Limits, Outcome, SandboxUnavailable
from retool_env.problem import Problem
from retool_env.provenance import REVISION
from retool_env.rules import Rules
from retool_env.sandbox import make_sandbox
from retool_env.transcript import Span, StopReason, Transcript, check_transcript
from retool_env.vector import ReToolVectorEnv

__version__ = "0.1.0"
"""The version of this package."""

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "ReTool-AIME-v0": {"problems": "aime"},
    "ReTool-AIME24-v0": {"problems": "aime", "year": 2024},
    "ReTool-AIME25-v0": {"problems": "aime", "year": 2025},
    "ReTool-DAPO-v0": {"problems": "dapo"},
    "ReTool-GSM8K-v0": {"problems": "gsm8k"},
    "ReTool-MATH-v0": {"problems": "math"},
    "ReTool-Arithmetic-v0": {"problems": "arithmetic"},
    "ReTool-JSONL-v0": {"problems": "jsonl"},
}
"""The registered ids, each with its settings."""

for _id, _settings in ENVIRONMENTS.items():
    if _id not in gym.registry:
        gym.register(
            id=_id,
            entry_point="retool_env.env:ReToolEnv",
            vector_entry_point="retool_env.vector:ReToolVectorEnv",
            kwargs=dict(_settings),
        )

__all__ = [
    "ENVIRONMENTS",
    "REVISION",
    "Episode",
    "Execution",
    "Generation",
    "Limits",
    "Outcome",
    "Problem",
    "ReToolEnv",
    "ReToolVectorEnv",
    "Rules",
    "SandboxUnavailable",
    "Span",
    "StopReason",
    "Transcript",
    "check_transcript",
    "make_sandbox",
]
