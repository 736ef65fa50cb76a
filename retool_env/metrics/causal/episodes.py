"""Whole episodes of a problem, in arms: the shares and means of each problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from retool_env.errors import SettingsError
from retool_env.metrics.causal.intervals import Pair
from retool_env.transcript import Transcript


@dataclass(frozen=True)
class Episodes:
    """The scored episodes of an arm, by problem."""

    by_problem: dict[str, list[Transcript]]
    """The scored episodes of each problem, in their order."""
    failed: int
    """Number of episodes without a score."""

    @classmethod
    def of(cls, transcripts: Iterable[Transcript]) -> Episodes:
        """Sort the episodes of one arm. Forks are refused.

        Raises:
            SettingsError: If a transcript is a fork.
        """
        groups: dict[str, list[Transcript]] = {}
        failed = 0
        for one in transcripts:
            if one.parent is not None:
                raise SettingsError("these figures are of whole episodes: leave out the forks")
            if one.scored:
                groups.setdefault(one.problem.id, []).append(one)
            else:
                failed += 1
        return cls(groups, failed)

    @property
    def count(self) -> int:
        """Number of scored episodes."""
        return sum(map(len, self.by_problem.values()))


Value = Callable[[Transcript], float]
"""The value of an episode."""


def right(one: Transcript) -> float:
    """1 for a right answer."""
    return float(bool(one.correct))


def calls(one: Transcript) -> float:
    """The number of calls."""
    return float(len(one.calls))


def mean(episodes: Sequence[Transcript], value: Value) -> float:
    """The mean of a value over episodes.

    Args:
        episodes: At least one episode.
        value: The value of an episode.
    """
    return sum(map(value, episodes)) / len(episodes)


def compared(first: Episodes, second: Episodes, value: Value = right) -> list[Pair]:
    """The problems that have episodes in two arms.

    Args:
        first: The first arm.
        second: The second arm.
        value: The value of an episode.
    """
    made = []
    for problem, some in first.by_problem.items():
        if others := second.by_problem.get(problem):
            size = (len(some) + len(others)) / 2
            made.append(Pair(problem, mean(some, value), mean(others, value), size))
    return made
