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
    lost: dict[str, int]
    """The number of infrastructure failures of each problem that has some."""

    @property
    def failed(self) -> int:
        """Number of infrastructure failures."""
        return sum(self.lost.values())

    @classmethod
    def of(cls, transcripts: Iterable[Transcript]) -> Episodes:
        """Sort the episodes of one arm. Forks are refused.

        Raises:
            SettingsError: If a transcript is a fork.
        """
        groups: dict[str, list[Transcript]] = {}
        lost: dict[str, int] = {}
        for one in transcripts:
            if one.parent is not None:
                raise SettingsError("these figures are of whole episodes: leave out the forks")
            if one.scored:
                groups.setdefault(one.problem.id, []).append(one)
            else:
                lost[one.problem.id] = lost.get(one.problem.id, 0) + 1
        return cls(groups, lost)

    @property
    def count(self) -> int:
        """Number of scored episodes."""
        return sum(map(len, self.by_problem.values()))

    def share_right(self, failures: float) -> dict[str, float]:
        """The share of right answers of each problem, with infrastructure failures counted.

        Args:
            failures: The value of a failure: 1 if all had been right, 0 if all had been wrong.
        """
        shares = {}
        for problem in {**self.by_problem, **self.lost}:
            some, lost = self.by_problem.get(problem, []), self.lost.get(problem, 0)
            shares[problem] = (sum(map(right, some)) + failures * lost) / (len(some) + lost)
        return shares


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


def failure_bounds(first: Episodes, second: Episodes | None = None) -> dict[str, float]:
    """The fields `lowest` and `highest` of a figure: its value if all failures had ended so.

    Args:
        first: The arm.
        second: The arm that is subtracted; `None`: the figure is the share of the first arm.

    Returns:
        The two fields; empty without a failure.
    """
    if not first.failed + (second.failed if second else 0):
        return {}
    bounds = {}
    for name, worth in (("lowest", 0.0), ("highest", 1.0)):
        shares = first.share_right(worth)
        if second is not None:
            others = second.share_right(1 - worth)
            shares = {p: share - others[p] for p, share in shares.items() if p in others}
        if shares:
            bounds[name] = sum(shares.values()) / len(shares)
    return bounds
