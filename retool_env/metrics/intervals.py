"""Shares with 95 % confidence intervals, of cases that may hang together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Self

SHOWN_FROM = 50
"""An estimate on fewer cases is recorded, but not shown."""


@dataclass(frozen=True)
class Interval:
    """A mean with a 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Estimate:
    """A figure with the number of cases that it rests on."""

    count: int
    """Number of cases."""
    interval: Interval | None
    """The figure; `None` without a case."""

    def shown(self, form: Callable[[Interval], str] = str) -> str:
        """For a reader, who is not shown what rests on few cases.

        Args:
            form: How the figure is written; a share by default.
        """
        if self.interval is None:
            return "–"
        if self.count < SHOWN_FROM:
            return f"n < {SHOWN_FROM}"
        return f"{form(self.interval)}, n = {self.count}"

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Rebuild it from its fields as plain JSON values."""
        interval = record["interval"]
        return cls(record["count"], None if interval is None else Interval(**interval))


def wilson(mean: float, count: float, z: float = 1.96) -> Interval:
    """The Wilson score interval of a mean of `count` values in [0, 1] (Wilson, 1927).

    With several rollouts a problem, `count` is the number of problems: rollouts of one problem are not independent, so
    counting them all would promise too much. The interval is then wider than need be, never narrower.

    Raises:
        ValueError: If `count` is below 1.
    """
    if count < 1:
        raise ValueError("no interval without a case")
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    spread = mean * (1 - mean) / count + z * z / (4 * count * count)
    half = z / (1 + z * z / count) * math.sqrt(spread)
    # Rounding must not push a bound past 0, 1 or the mean itself.
    return Interval(mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)))


def pooled(cases: Iterable[tuple[Hashable, int, int]]) -> Estimate:
    """The share of successes among all cases, where those of one cluster are not independent.

    The interval is Wilson's, of as many independent cases as the given ones are worth (Rao and Scott, 1992): the number of
    cases over a design effect, which is the larger of two. One is that of clusters whose cases are all alike, `sum(n^2) / sum(n)`
    (Kish, 1965), so that clusters of one size count once each, as in `wilson`. The other is the variance of the ratio
    `sum(s) / sum(n)`, linearised, over that of independent cases; it is the larger one where much hangs on few large clusters, a
    problem on which every program fails, say. The interval is wider than need be rather than
    narrower.

    Args:
        cases: Cluster (the problem's id, say), successes and cases of each; several of a cluster are added up.

    Returns:
        The share, on the number of cases.
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
    # In whole numbers, so that the order does not matter.
    spread = sum((successes[c] * count - total * n) ** 2 for c, n in numbers.items())
    if spread:
        worth = min(worth, count**2 * total * (count - total) / spread)
    return Estimate(count, wilson(total / count, worth))
