"""CISPO (arXiv 2506.13585, section 3.1): a clip bounds importance weights and keeps gradients.

The loss of a token is -min(ratio, clip_high) * A * log pi, with the weight detached: REINFORCE with
a truncated importance weight. PPO's clip would drop the gradient of the tokens that change most. As
in the paper, weights have no lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents import grpo
from agents.base.settings import SettingsError, setting


@dataclass(frozen=True)
class Settings(grpo.Settings):
    """GRPO's settings, with CISPO's loss."""

    name: str = "cispo"
    loss: str = setting("cispo", "TRL's loss_type")
    clip_low: float = setting(0.2, "unused by this loss, and can't be set")
    clip_high: float = setting(
        5.0,
        "largest importance weight, not its distance from 1 (default: ScaleRL's, arXiv 2510.13786)",
    )
    # A preset's value for GRPO is not meant for this loss.
    ratio_cap: float = setting(0.0, "unused by this loss, and can't be set")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run CISPO with `grpo.train`.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Whether to continue the run in the folder.

    Returns:
        The folder of the trained model.

    Raises:
        SettingsError: If `clip_low` is set, or for a reason that `grpo.train` names.
    """
    if settings.clip_low != Settings.clip_low:
        raise SettingsError(
            f"CISPO's loss does not use clip_low: leave clip_low={settings.clip_low} out"
        )
    return grpo.train(settings, folder, resume)
