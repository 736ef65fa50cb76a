"""Dr. GRPO (arXiv 2503.20783, section 3.2): GRPO without its two biases.

Advantages are not divided by the group's deviation, which gives very easy and very hard problems more weight; and a
response's loss is divided by the token budget, not by its own length, which spares long wrong responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents import grpo
from agents.advantages import group_centred
from agents.base.settings import setting


@dataclass(frozen=True)
class Settings(grpo.Settings):
    """GRPO's, with the paper's defaults."""

    name: str = "dr_grpo"
    loss: str = setting("dr_grpo", "TRL's loss_type: sums over tokens by rows * env.max_tokens")
    clip_high: float = 0.2


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run Dr. GRPO; see `grpo.train`."""
    return grpo.train(settings, folder, resume, advantages=group_centred)
