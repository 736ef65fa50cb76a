"""REINFORCE++ (arXiv 2501.03262): PPO's clipped loss without a critic, advantages normalised over the batch's tokens.

By default the paper's variant "REINFORCE++ w/ Baseline": the group's mean is subtracted first, which it advises where a problem
has several rollouts and rewards are an answer's rightness. A batch's deviation, unlike a group's, does not blow up
for nearly unanimous groups. Mean and deviation are those over all tokens that the model sampled, as in the paper: where right and
wrong episodes differ in length, the mean is not 0, and a unanimous group has a small advantage too. `group_baseline=false` is plain REINFORCE++, in which groups
mean nothing; TRL still wants two rollouts of a problem at least. The KL, if there is one, stands in the loss and is weighed by
the ratio, where the paper has it in the reward, or plain in the loss with the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from agents import grpo
from agents.advantages import batch_normalised, group_centred
from agents.base.settings import setting


@dataclass(frozen=True)
class Settings(grpo.Settings):
    """GRPO's, with the baseline as a setting."""

    name: str = "reinforce_pp"
    clip_high: float = 0.2
    group_baseline: bool = setting(True, "subtract the group's mean before normalising")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run REINFORCE++; see `grpo.train`."""
    advantages = group_centred if settings.group_baseline else uncentred
    return grpo.train(settings, folder, resume, advantages=advantages, normalise=batch_normalised)


def uncentred(rewards: torch.Tensor, group: int) -> torch.Tensor:
    """A_i = r_i; 0 for a failed episode."""
    return rewards.nan_to_num(nan=0.0)
