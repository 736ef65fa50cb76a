"""RLOO (arXiv 2402.14740, section 3.2): REINFORCE, each reward against the mean of the group's others.

The whole response is the action, so a response's loss is the sum over its tokens, not their mean. While samples are the
model's own (one update a batch) the ratio is 1, and this is the paper's gradient; what is older is weighed by the token and
clipped as in GRPO. The KL, if there is one, stands in the loss, where the paper has it in the reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents import grpo
from agents.advantages import leave_one_out
from agents.base.settings import setting


@dataclass(frozen=True)
class Settings(grpo.Settings):
    """GRPO's, with RLOO's loss."""

    name: str = "rloo"
    # Of TRL's losses the one that sums over a response's tokens; the sequence's ratio, for which it was made, is another setting.
    loss: str = setting("luspo", "TRL's loss_type: the sum over a response, then the mean")
    clip_high: float = 0.2


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run RLOO; see `grpo.train`."""
    return grpo.train(settings, folder, resume, advantages=leave_one_out)
