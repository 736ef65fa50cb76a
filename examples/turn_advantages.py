"""GRPO with credit by turn, after GiGPO (arXiv 2505.10978): python -m agents examples/turn_advantages.py --preset tiny.

A turn's state is what stands before it: the prompt, or what the interpreter showed last. Of the turns of one
problem's rollouts, those that began in the same state are compared: each has the episode's reward, discounted by
the turns that follow. A token's advantage is its episode's, and beside it its turn's.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch

from agents import grpo
from agents.advantages import group_normalised, turns_to_tokens
from agents.base.settings import setting
from retool_env.transcript import Transcript


@dataclass(frozen=True)
class Settings(grpo.Settings):
    """GRPO's, with those of the turns."""

    name: str = setting("turn_advantages", "the run's folder is runs/<name>")
    turn_weight: float = setting(1.0, "of a turn's advantage beside its episode's")
    turn_discount: float = setting(0.95, "of the reward, for each turn that follows")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run GRPO with these advantages; see `grpo.train`."""

    def advantages(
        rewards: torch.Tensor, group: int, transcripts: Sequence[Transcript]
    ) -> torch.Tensor:
        turns = turn_advantages(rewards, group, transcripts, settings.turn_discount)
        by_turn = settings.turn_weight * turns_to_tokens(turns, transcripts).to(rewards)
        return group_normalised(rewards, group)[:, None] + by_turn  # shape (N, T)

    return grpo.train(settings, folder, resume, advantages=advantages)


def turn_advantages(
    rewards: torch.Tensor, group: int, transcripts: Sequence[Transcript], discount: float
) -> list[list[float]]:
    """A_k = R_k - mean(R of the group's turns in the same state), R_k = discount^(turns after k) * reward.

    Args:
        rewards: The episodes' rewards, shape `(N,)`; NaN for an episode that failed, which no mean counts.
        group: Rollouts of a problem, which stand side by side.
        transcripts: The `N` episodes.
        discount: Of the reward, for each turn that follows.

    Returns:
        The advantages of each episode's turns.
    """
    turns: list[list[tuple[tuple[int, str], float]]] = []
    peers: dict[tuple[int, str], list[float]] = defaultdict(list)
    for number, (reward, episode) in enumerate(zip(rewards.tolist(), transcripts, strict=True)):
        spans = pairwise(episode.spans)
        states = [before.text for before, span in spans if span.author == "model"]
        returns = [reward * discount**left for left in reversed(range(len(states)))]
        turns.append([((number // group, s), r) for s, r in zip(states, returns, strict=True)])
        for state, value in turns[-1] if reward == reward else ():  # not NaN
            peers[state].append(value)
    return [[value - fmean(peers[state] or [value]) for state, value in each] for each in turns]
