"""Figures of an evaluation, made from its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retool_env.evaluation.cost import Price
from retool_env.evaluation.records import read_episodes
from retool_env.metrics.figures import Figure, measure
from retool_env.metrics.summary import Summary, summarise
from retool_env.problem import Problem
from retool_env.rollout.policy import Usage


@dataclass(frozen=True)
class EpisodeCost:
    """Tokens and dollars of one episode."""

    prompt_tokens: int
    """Number of tokens that the API read."""
    completion_tokens: int
    """Number of tokens that the API wrote."""
    cost: float | None
    """Dollars; `None` without a price."""


def measured(
    folder: str | Path,
    problems: Sequence[Problem] | None = None,
    k: int | None = None,
    price: Price | None = None,
) -> tuple[list[Figure], Summary]:
    """Computes the figures of an evaluation from its episodes.

    Args:
        folder: The folder of the evaluation.
        problems: The problems whose episodes count, in their order; `None`: all.
        k: The number of samples of each problem that count, from the first on; `None`: all.
        price: Dollars of an API's tokens; `None`: costs are left out.

    Returns:
        The figures, and the summary that tables are made of.

    Raises:
        DataError: A record is damaged.
    """
    order = None if problems is None else {p.id: i for i, p in enumerate(problems)}
    episodes = [
        episode
        for episode in read_episodes(folder, tokens=False)
        if (order is None or episode.problem in order) and (k is None or episode.sample < k)
    ]
    if order is None:
        order = {name: i for i, name in enumerate(dict.fromkeys(a.problem for a in episodes))}
    places = order
    episodes.sort(key=lambda episode: (places[episode.problem], episode.sample))
    transcripts = [episode.transcript for episode in episodes]
    usage = None
    if any(episode.usage for episode in episodes):
        usage = [cost_of(episode.usage, price) for episode in episodes]
    return measure(transcripts, usage=usage), summarise(transcripts)


def cost_of(used: Usage | None, price: Price | None) -> EpisodeCost | None:
    """The tokens and dollars of one episode; `None` where its tokens are not known.

    Args:
        used: The tokens that an API counted; `None`: no API counted.
        price: Dollars of the API's tokens; `None`: unknown.
    """
    # The tokens of an answer without figures are unknown, so those of its episode are, too.
    if used is None or used.uncounted:
        return None
    cost = None if price is None else price.of(used)
    return EpisodeCost(used.prompt_tokens, used.completion_tokens, cost)
