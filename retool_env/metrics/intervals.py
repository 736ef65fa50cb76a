"""Shares with 95 % confidence intervals, for cases that may depend on each other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Self

FEW_CASES = 50
"""A figure on fewer cases is shown with the mark `†`."""


@dataclass(frozen=True)
class Interval:
    """A mean with a 95 % confidence interval."""

    mean: float
    """The mean."""
    low: float
    """The lower bound of the interval."""
    high: float
    """The upper bound of the interval."""

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Estimate:
    """A figure and the number of its cases."""

    count: int
    """The number of cases."""
    interval: Interval | None
    """The figure with its interval; `None` if there are no cases."""

    def shown(self, form: Callable[[Interval], str] = str) -> str:
        """Returns the text of the figure for a table. A figure on few cases has a mark.

        Args:
            form: Writes the figure. The default writes a share in percent.
        """
        if self.interval is None:
            return "–"
        return f"{form(self.interval)}, n = {self.count}" + " †" * (self.count < FEW_CASES)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Makes an estimate from its fields as JSON values."""
        interval = record["interval"]
        return cls(record["count"], None if interval is None else Interval(**interval))


def wilson(mean: float, count: float, z: float = 1.96) -> Interval:
    """Returns the Wilson score interval of a mean of values in [0, 1] (Wilson, 1927).

    Rollouts of one problem are not independent. With several rollouts of each problem, give the
    number of problems as `count`. The interval is then wider than necessary, and never narrower.

    Args:
        mean: The mean of the values.
        count: The number of independent values, at least 1.
        z: The quantile of the normal distribution; the default gives a 95 % interval.

    Raises:
        ValueError: The count is below 1.
    """
    if count < 1:
        raise ValueError(f"an interval needs at least one case, not {count:g}")
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    spread = mean * (1 - mean) / count + z * z / (4 * count * count)
    half = z / (1 + z * z / count) * math.sqrt(spread)
    # Rounding must not push a bound past 0, 1 or the mean itself.
    return Interval(mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)))


def pooled(cases: Iterable[tuple[Hashable, int, int]]) -> Estimate:
    """Returns the share of successes among all cases, where the cases of a cluster are dependent.

    The interval is a Wilson interval with the effective number of cases: the number of cases
    divided by a design effect (Rao and Scott, 1992). The design effect is the larger of two:

    * `sum(n^2) / sum(n)`, for clusters of `n` equal cases (Kish, 1965). Clusters of the same size
      then count once each, as in `wilson`.
    * The linearised variance of the ratio `sum(s) / sum(n)`, for `s` successes in a cluster,
      divided by the variance of independent cases. It is larger if a few large clusters dominate,
      for example a problem on which every program fails.

    The interval is wider than necessary rather than narrower.

    Args:
        cases: Triples of a cluster (for example the problem's id), its successes and its cases.
            Triples of the same cluster are added up.

    Returns:
        The share, with the number of cases.
    """
    successes: Counter[Hashable] = Counter()
    numbers: Counter[Hashable] = Counter()
    for cluster, success, number in cases:
        successes[cluster] += success
        numbers[cluster] += number
    total, count = successes.total(), numbers.total()
    if not count:
        return Estimate(0, None)
    worth = count**2 / sum(n * n for n in numbers.values())
    # Whole numbers, so that the order of the clusters does not change the result.
    spread = sum((successes[c] * count - total * n) ** 2 for c, n in numbers.items())
    if spread:
        worth = min(worth, count**2 * total * (count - total) / spread)
    return Estimate(count, wilson(total / count, worth))
