"""Ranks with their uncertainty, from paired tests between all models of a table.

Two models are compared on the problems that both have, by the sign-flip test of
`retool_env.metrics.sign_flip`, as in `retool compare`. Holm's method adjusts the p-values over all
pairs of the table, so the chance that any of the found differences is false is at most 5 %. A
model's best possible rank is 1 plus the number of models that are better by a found difference, and
its worst possible rank is the number of models minus the number of models that are worse. So with a
chance of 95 % all true ranks lie within these intervals at once (Mogstad, Romano, Shaikh and
Wilhelm, 2024).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retool_env.metrics.causal.comparison import LEAST_PROBLEMS, holm
from retool_env.metrics.causal.intervals import Pair, mean_difference_if_varied
from retool_env.metrics.sign_flip import sign_flip_p

LEVEL = 0.05
"""The chance of any false difference in a table."""


@dataclass(frozen=True)
class PairTest:
    """The test between two models."""

    first: int
    """The index of the first model."""
    second: int
    """The index of the second model."""
    problems: int
    """Number of problems of both models."""
    difference: float | None
    """The mean over problems of the first model's value minus the second model's; `None` without a
    common problem."""
    low: float | None
    """Lower bound of the 95 % interval, not adjusted; `None` if unknown."""
    high: float | None
    """Upper bound of the 95 % interval, not adjusted; `None` if unknown."""
    p: float | None
    """The p-value; `None` with too few common problems for a test."""
    adjusted: float | None
    """The p-value, adjusted by Holm's method over all pairs of the table."""

    @property
    def better(self) -> int | None:
        """The index of the model that is better by a found difference; `None` without one."""
        if self.adjusted is None or self.difference is None or self.adjusted > LEVEL:
            return None
        return self.first if self.difference > 0 else self.second


def pair_tests(values: Sequence[Mapping[str, float]]) -> list[PairTest]:
    """Tests all pairs of models.

    Args:
        values: The value of each problem, for each model.
    """
    made = []
    for (first, some), (second, others) in itertools.combinations(enumerate(values), 2):
        both = [Pair(name, some[name], others[name]) for name in some if name in others]
        mean = mean_difference_if_varied(both)
        differences = [pair.first - pair.second for pair in both]
        tested = sign_flip_p(differences) if len(both) >= LEAST_PROBLEMS else None
        made.append((first, second, len(both), mean.mean, mean.low, mean.high, tested))
    known = [row[-1] for row in made if row[-1] is not None]
    adjusted = dict(zip(known, holm(known), strict=True))
    return [PairTest(*row, None if row[-1] is None else adjusted[row[-1]]) for row in made]


def rank_intervals(count: int, tests: Sequence[PairTest]) -> list[tuple[int, int]]:
    """The best and the worst possible rank of each model, from 1.

    Args:
        count: Number of models.
        tests: The tests between all pairs.

    Example:
        >>> better = [{str(n): 0.9 + n / 100 for n in range(8)}, {str(n): 0.1 for n in range(8)}]
        >>> rank_intervals(2, pair_tests(better))
        [(1, 1), (2, 2)]
        >>> rank_intervals(2, pair_tests([better[0], better[0]]))
        [(1, 2), (1, 2)]
    """
    best, worst = [1] * count, [count] * count
    for test in tests:
        if test.better is not None:
            worse = test.second if test.better == test.first else test.first
            best[worse] += 1
            worst[test.better] -= 1
    return list(zip(best, worst, strict=True))
