"""REINFORCE++ (arXiv 2501.03262): PPO's clipped loss without a critic, advantages normalised over the whole batch.

By default the paper's variant "REINFORCE++ w/ Baseline": the group's mean is subtracted first, which it advises where a problem
has several rollouts and rewards are an answer's rightness. A batch's deviation, unlike a group's, does not blow up
for nearly unanimous groups. `group_baseline=false` is plain REINFORCE++, in which groups
mean nothing; TRL still wants two rollouts of a problem at least. The KL, if there is one, stands in the loss and is weighed by
the ratio, where the paper has it in the reward, or plain in the loss with the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agents import grpo
from agents.advantages import batch_normalised
from agents.settings import setting


@dataclass(frozen=True)
class Settings(grpo.Settings):
    """GRPO's, with the baseline as a setting."""

    name: str = setting("reinforce_pp", "the run's folder is runs/<name>")
    clip_high: float = setting(0.2, "upper clip of the ratio")
    group_baseline: bool = setting(True, "subtract the group's mean before normalising")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run REINFORCE++; see `grpo.train`."""
    advantages = partial(batch_normalised, baseline=settings.group_baseline)
    return grpo.train(settings, folder, resume, advantages=advantages)
