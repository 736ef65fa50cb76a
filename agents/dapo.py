"""DAPO (arXiv 2503.14476): GRPO with a higher upper clip, a loss by tokens, dynamic sampling, and overlong shaping.

- Clip-higher (section 3.1): the ratio may grow further than it may shrink.
- Dynamic sampling (3.2): groups all right or all wrong are replaced by those of other problems, up to `resample` rounds.
  `env/accuracy` is of all groups that were sampled; `reward` is of those trained on, and so nearer to its middle.
- Token-level loss (3.3): every token of the step counts the same; TRL's `dapo`.
- Soft overlong punishment (3.4): near the budget a response loses up to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents import grpo
from agents.base.settings import SettingsError, setting
from retool_env.transcript import Transcript


@dataclass(frozen=True)
class Settings(grpo.Settings):
    """GRPO's, with the paper's defaults."""

    name: str = "dapo"
    resample: int = setting(
        3, "rounds that replace groups all right or all wrong (dynamic sampling); 0: none"
    )
    overlong: float = setting(
        0.2, "last share of the token budget in which a response is punished; 0: none"
    )


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run DAPO; see `grpo.train`.

    Raises:
        SettingsError: Also if `overlong` is no share.
    """
    if not 0 <= settings.overlong <= 1:
        raise SettingsError(f"overlong is a share, from 0 to 1, not {settings.overlong}")

    def bonus(transcript: Transcript, budget: int) -> float:
        # The interpreter's tokens too: the budget counts them.
        return soft_overlong(len(transcript.completion_ids), budget, settings.overlong * budget)

    return grpo.train(settings, folder, resume, bonus=bonus if settings.overlong else None)


def soft_overlong(length: int, budget: int, cache: float) -> float:
    """The soft overlong punishment (equation 13).

    0 up to `budget - cache` tokens, from there linearly down to -1 at `budget`, and -1 beyond.
    """
    return -min(max(length - (budget - cache), 0.0) / cache, 1.0)
