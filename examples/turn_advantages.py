"""GRPO with advantages of turns, after GiGPO (arXiv 2505.10978).

Run: python -m agents examples/turn_advantages.py --preset tiny.

The state of a turn is the text before it: the prompt, or the last result of the interpreter. The
turns of one problem's rollouts that begin in the same state are compared. The return of a turn is
the episode's reward, discounted by the number of later turns. The advantage of a token is the
episode's advantage plus the weighted advantage of the token's turn.
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
    """The settings of GRPO, and the settings of the turns' advantages."""

    name: str = setting("turn_advantages", "the run's folder is runs/<name>")
    turn_weight: float = setting(1.0, "weight of a turn's advantage")
    turn_discount: float = setting(0.95, "discount of the reward for each later turn")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run GRPO with the advantages of turns.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Continue the run in the folder; see `grpo.train`.

    Returns:
        The folder of the trained model.
    """

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
    """Compute the advantages of turns.

    A_k = R_k - mean(R of the group's turns in the same state), R_k = discount^(turns after k) *
    reward

    Args:
        rewards: The episodes' rewards, shape `(N,)`; NaN for a failed episode, which no mean
            includes.
        group: The number of rollouts of a problem. They are adjacent.
        transcripts: The `N` episodes.
        discount: The discount of the reward for each later turn.

    Returns:
        For each episode, the advantages of its turns.
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
    return [[value - fmean(peers[state] or [value]) for state, value in own] for own in turns]
