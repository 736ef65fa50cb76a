"""CISPO (arXiv 2506.13585, section 3.1): the clip bounds a token's weight, and no token loses its gradient.

The loss is -min(ratio, clip_high) * A * log pi, the weight detached, by tokens: REINFORCE with a truncated importance
weight, where PPO's clip would drop the tokens that change most. There is no lower bound, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents import grpo
from agents.base.settings import SettingsError, setting


@dataclass(frozen=True)
class Settings(grpo.Settings):
    """GRPO's, with CISPO's loss."""

    name: str = "cispo"
    loss: str = setting("cispo", "TRL's loss_type")
    clip_low: float = setting(0.2, "has no part in this loss, and can't be set")
    clip_high: float = setting(
        5.0,
        "largest weight, itself and not over 1; 5 is ScaleRL's (arXiv 2510.13786), the paper gives none",
    )
    # GRPO's in a preset is not meant for this loss.
    ratio_cap: float = setting(0.0, "has no part in this loss, and can't be set")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run CISPO; see `grpo.train`.

    Raises:
        SettingsError: Also if `clip_low` is set.
    """
    if settings.clip_low != Settings.clip_low:
        raise SettingsError(
            f"clip_low has no part in CISPO's loss: leave clip_low={settings.clip_low} out"
        )
    return grpo.train(settings, folder, resume)
