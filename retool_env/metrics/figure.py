"""One figure of an evaluation, and how it is computed from cases that form clusters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from retool_env.metrics.estimators import ClusterMean, cluster_mean
from retool_env.metrics.intervals import FEW_CASES


@dataclass(frozen=True)
class Figure:
    """One figure of an evaluation."""

    key: str
    """Names the figure, in lower case: `accuracy/pass@4`."""
    count: int
    """Number of cases: episodes, calls or errors, as the definition says."""
    problems: int
    """Number of problems with a case, which are the clusters of the interval."""
    mean: float | None
    """The figure; `None` without a case."""
    low: float | None
    """Lower bound of the 95 % interval; `None` where it is unbounded, with one problem."""
    high: float | None
    """Upper bound of the 95 % interval; `None` where it is unbounded, with one problem."""
    definition: str
    """The meaning of the figure, in a sentence or two."""

    @property
    def marked(self) -> bool:
        """Whether it rests on fewer than 50 cases. Such a figure is shown with a mark."""
        return self.count < FEW_CASES

    def to_json(self) -> dict[str, Any]:
        """The figure as plain JSON values; `from_json` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Rebuild a figure from the values of `to_json`. Other values in the record are ignored."""
        return cls(**{field.name: record[field.name] for field in dataclasses.fields(cls)})


def figure_of(key: str, mean: ClusterMean, definition: str) -> Figure:
    """A figure with the mean and interval of cases.

    Args:
        key: The figure's key.
        mean: The mean with its interval and its numbers of cases and problems.
        definition: The figure's definition.
    """
    return Figure(key, mean.count, mean.clusters, mean.mean, mean.low, mean.high, definition)


def share(key: str, cases: Iterable[tuple[str, bool]], definition: str) -> Figure:
    """A share of cases.

    Args:
        key: The figure's key.
        cases: The problem of each case, and whether the case counts.
        definition: The figure's definition.
    """
    numbers = ((problem, float(value)) for problem, value in cases)
    return figure_of(key, cluster_mean(numbers, share=True), definition)


def mean_of(key: str, cases: Iterable[tuple[str, float]], definition: str) -> Figure:
    """A mean of cases.

    Args:
        key: The figure's key.
        cases: The problem and the value of each case.
        definition: The figure's definition.
    """
    found = cluster_mean(cases)
    low = None if found.low is None else max(found.low, 0.0)  # no case is negative
    return figure_of(key, dataclasses.replace(found, low=low), definition)


def over_problems(key: str, values: dict[str, tuple[float, int]], definition: str) -> Figure:
    """The mean over problems of a share. The count is of episodes.

    Args:
        key: The figure's key.
        values: The share and the number of episodes of each problem.
        definition: The figure's definition.
    """
    found = cluster_mean(((name, share) for name, (share, _) in values.items()), share=True)
    count = sum(number for _, number in values.values())
    return figure_of(key, dataclasses.replace(found, count=count), definition)
