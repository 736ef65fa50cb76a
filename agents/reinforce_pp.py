"""REINFORCE++ (arXiv 2501.03262): PPO's clipped loss with advantages normalised over the batch.

It has no critic. The default is the paper's variant "REINFORCE++ w/ Baseline", which first
subtracts the group's mean. The paper advises it where a problem has several rollouts and the reward
says whether the answer is right. The batch's deviation, unlike a group's, is not near 0 for nearly
unanimous groups. As in the paper, mean and deviation are taken over all sampled tokens: if right
and wrong episodes differ in length, the mean is not 0, and even a unanimous group has a small
advantage.

`group_baseline=false` gives plain REINFORCE++, which does not use groups; TRL still needs at least
two rollouts of a problem. A KL term is part of the loss and weighed by the ratio. In the paper it
is part of the reward or, with the baseline, an unweighed part of the loss.
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
    """GRPO's settings, with the baseline as a setting."""

    name: str = "reinforce_pp"
    clip_high: float = 0.2
    group_baseline: bool = setting(True, "subtract the group's mean before normalising")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run REINFORCE++ with `grpo.train`.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Whether to continue the run in the folder.

    Returns:
        The folder of the trained model.
    """
    advantages = group_centred if settings.group_baseline else uncentred
    return grpo.train(settings, folder, resume, advantages=advantages, normalise=batch_normalised)


def uncentred(rewards: torch.Tensor, group: int) -> torch.Tensor:
    """A_i = r_i.

    Args:
        rewards: The episodes' rewards, shape `(N,)`; NaN for a failed episode.
        group: Rollouts a problem, which this advantage does not use.

    Returns:
        Advantages, shape `(N,)`; 0 for a failed episode.
    """
    return rewards.nan_to_num(nan=0.0)
