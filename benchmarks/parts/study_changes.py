"""A change between two models of `benchmarks.recovery`, with its interval and its verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def jackknife(problems: Sequence[str], statistic: Callable[[str | None], float]) -> Change:
    """A statistic, with an interval by the jackknife over problems.

    Without any spread over the problems, the width is unknown, and there are no bounds.

    Args:
        problems: The problems.
        statistic: Maps the problem that is left out to a number; `None`: all problems are in.
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
