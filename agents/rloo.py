"""RLOO (arXiv 2402.14740, section 3.2): REINFORCE with the group's other rewards as a baseline.

The baseline of a reward is the mean of the other rewards of its group. The whole response is one
action, so the loss of a response is the sum over its tokens, not their mean. With one update a
batch the ratio is 1, and the gradient is the paper's. Samples of older weights are weighed and
clipped by tokens, as in GRPO. A KL term is part of the loss; in the paper it is part of the reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents import grpo
from agents.advantages import leave_one_out
from agents.base.settings import setting


@dataclass(frozen=True)
class Settings(grpo.Settings):
    """GRPO's settings, with RLOO's loss."""

    name: str = "rloo"
    # TRL's only loss that sums over a response's tokens. LUSPO, for which it was made, also has
    # ratios of sequences, but they are a setting of their own in TRL.
    loss: str = setting("luspo", "TRL's loss_type: the sum over a response, then the mean")
    clip_high: float = 0.2


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run RLOO with `grpo.train`.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Whether to continue the run in the folder.

    Returns:
        The folder of the trained model.
    """
    return grpo.train(settings, folder, resume, advantages=leave_one_out)
