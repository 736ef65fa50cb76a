"""A change between two models of `benchmarks.recovery`, with its interval and its verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from retool_env.metrics.estimators import t_quantile

LEAST_PROBLEMS = 10
"""A change of fewer problems is not shown."""


@dataclass(frozen=True)
class Change:
    """The change of a figure between two models."""

    mean: float | None
    """The change; `None` if one of the figures has no case."""
    low: float | None
    """Lower bound of the 95 % interval."""
    high: float | None
    """Upper bound of the 95 % interval."""
    problems: int
    """The number of problems, each of them in both models."""

    @property
    def verdict(self) -> str:
        """`higher`, `lower`, or `not shown` where the interval holds 0 or rests on too little."""
        if self.low is None or self.high is None or self.problems < LEAST_PROBLEMS:
            return "not shown"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "not shown"


Statistic = Callable[[str | None], float]
"""Maps the problem that is left out to a number; `None`: all problems are in."""


def over_seeds(statistics: Sequence[tuple[Iterable[str], Statistic]]) -> Change:
    """The mean of a statistic over seeds, with an interval by the jackknife over problems.

    A problem is left out with all seeds at once: it is one cluster.

    Args:
        statistics: For each seed its problems, at least two, and its statistic.
    """
    seeds = [(frozenset(problems), statistic) for problems, statistic in statistics]
    whole = [statistic(None) for _, statistic in seeds]

    def mean(without: str | None) -> float:
        values = (
            statistic(without) if without in problems else number
            for number, (problems, statistic) in zip(whole, seeds, strict=True)
        )
        return math.fsum(values) / len(seeds)

    return jackknife(sorted(frozenset().union(*(problems for problems, _ in seeds))), mean)


def jackknife(problems: Sequence[str], statistic: Statistic) -> Change:
    """A statistic, with an interval by the jackknife over problems.

    Without any spread over the problems, the width is unknown, and there are no bounds.

    Args:
        problems: The problems.
        statistic: The statistic.
    """
    mean, count = statistic(None), len(problems)
    if count < 2:
        return Change(mean, None, None, count)
    without = np.array([statistic(problem) for problem in problems])
    if np.ptp(without) < 1e-12:
        return Change(mean, None, None, count)
    variance = (count - 1) / count * float(((without - without.mean()) ** 2).sum())
    half = t_quantile(count - 1) * math.sqrt(variance)
    return Change(mean, mean - half, mean + half, count)
