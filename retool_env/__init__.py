"""retool_env: a Gymnasium environment for language models with a code interpreter (ReTool).

The import registers these environments:

| id | problems |
|---|---|
| `ReTool-AIME-v0` | AIME 2024 and 2025 |
| `ReTool-AIME24-v0` | AIME 2024 |
| `ReTool-AIME25-v0` | AIME 2025 |
| `ReTool-AIME26-v0` | AIME 2026 |
| `ReTool-HMMT-Feb25-v0` | HMMT February 2025 |
| `ReTool-HMMT-Nov25-v0` | HMMT November 2025 |
| `ReTool-HMMT-Feb26-v0` | HMMT February 2026 |
| `ReTool-BRUMO25-v0` | BRUMO 2025 |
| `ReTool-Apex25-v0` | MathArena Apex 2025 |
| `ReTool-Apex-Shortlist-v0` | the shortlist of MathArena Apex |
| `ReTool-BeyondAIME-v0` | BeyondAIME |
| `ReTool-AMO-v0` | AMO-Bench, its answers that are graded by rule |
| `ReTool-OlymMATH-v0` | OlymMATH, with `language` and `level` |
| `ReTool-MATH500-v0` | MATH-500 |
| `ReTool-DAPO-v0` | DAPO-Math-17k |
| `ReTool-GSM8K-v0` | GSM8K |
| `ReTool-MATH-v0` | MATH |
| `ReTool-Arithmetic-v0` | generated from a seed, with `difficulty` |
| `ReTool-Staged-v0` | generated, in stages with known sub-results, with `difficulty` |
| `ReTool-Words-v0` | generated word problems, with `difficulty` |
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
    "ReTool-AIME26-v0": {"problems": "aime", "year": 2026},
    "ReTool-HMMT-Feb25-v0": {"problems": "hmmt", "competition": "2025-02"},
    "ReTool-HMMT-Nov25-v0": {"problems": "hmmt", "competition": "2025-11"},
    "ReTool-HMMT-Feb26-v0": {"problems": "hmmt", "competition": "2026-02"},
    "ReTool-BRUMO25-v0": {"problems": "brumo"},
    "ReTool-Apex25-v0": {"problems": "apex"},
    "ReTool-Apex-Shortlist-v0": {"problems": "apex", "shortlist": True},
    "ReTool-BeyondAIME-v0": {"problems": "beyond_aime"},
    "ReTool-AMO-v0": {"problems": "amo"},
    "ReTool-OlymMATH-v0": {"problems": "olymmath"},
    "ReTool-MATH500-v0": {"problems": "math500"},
    "ReTool-DAPO-v0": {"problems": "dapo"},
    "ReTool-GSM8K-v0": {"problems": "gsm8k"},
    "ReTool-MATH-v0": {"problems": "math"},
    "ReTool-Arithmetic-v0": {"problems": "arithmetic"},
    "ReTool-Staged-v0": {"problems": "staged"},
    "ReTool-Words-v0": {"problems": "words"},
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
