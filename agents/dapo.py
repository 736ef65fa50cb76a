"""DAPO (arXiv 2503.14476): GRPO with a higher upper clip, dynamic sampling and overlong shaping.

- Clip-higher (section 3.1): the ratio may grow further than it may shrink.
- Dynamic sampling (3.2): a group that is all right or all wrong is replaced, at its end, by a group
  of another problem, up to `resample` times. `env/accuracy` counts all groups that were sampled.
  `reward` counts the groups that are trained on, so it lies nearer to the middle of its range.
- Token-level loss (3.3): all tokens of the step have the same weight (TRL's loss `dapo`).
- Soft overlong punishment (3.4): a response near the token budget loses up to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents import grpo
from agents.base.settings import setting
from agents.rewards import overlong_bonus
from agents.rewards import soft_overlong as soft_overlong


@dataclass(frozen=True)
class Settings(grpo.Settings):
    """GRPO's settings, with DAPO's defaults."""

    name: str = "dapo"
    resample: int = setting(
        3, "times that a group all right or all wrong is replaced (dynamic sampling); 0: off"
    )
    overlong: float = setting(
        0.2, "last share of the token budget, in which a response is punished; 0: off"
    )


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run DAPO with `grpo.train`.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Whether to continue the run in the folder.

    Returns:
        The folder of the trained model.

    Raises:
        SettingsError: If `overlong` is not from 0 to 1, or for a reason that `grpo.train` names.
    """
    return grpo.train(settings, folder, resume, bonus=overlong_bonus(settings.overlong))
