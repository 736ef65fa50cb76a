"""Dr. GRPO (arXiv 2503.20783, section 3.2): GRPO without its two biases.

Advantages are not divided by the group's deviation: the division gives more weight to very easy and
very hard problems. A response's loss is divided by the token budget instead of the response's
length: the division by the length punishes long wrong responses less.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents import grpo
from agents.advantages import group_centred
from agents.base.settings import setting


@dataclass(frozen=True)
class Settings(grpo.Settings):
    """GRPO's settings, with Dr. GRPO's defaults."""

    name: str = "dr_grpo"
    loss: str = setting("dr_grpo", "TRL's loss_type: sum over tokens / (rows * env.max_tokens)")
    clip_high: float = 0.2


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run Dr. GRPO with `grpo.train`.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Whether to continue the run in the folder.

    Returns:
        The folder of the trained model.
    """
    return grpo.train(settings, folder, resume, advantages=group_centred)
