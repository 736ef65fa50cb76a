"""Figures of recovery: they count prefixes, bound infrastructure failures, and may be hidden."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retool_env.metrics.causal.continuation import (
    CONTROL,
    Cells,
    Value,
    count,
    failures,
    mean_value,
    pairs,
)
from retool_env.metrics.causal.intervals import (
    Pair,
    detectable,
    difference,
    hardly_differ,
    hardly_vary,
    mean_difference,
    ratio,
    share,
)
from retool_env.metrics.estimators import ClusterMean
from retool_env.metrics.figure import Figure

SHOWN_FROM = 0.2
"""A recovery ratio is shown if the lower bound of control accuracy is at least this."""


@dataclass(frozen=True)
class CausalFigure(Figure):
    """A figure over prefixes. `count` is its number of continuations or episodes."""

    prefixes: int = 0
    """Number of prefixes; for whole episodes, of problems."""
    left_out: int = 0
    """Number of prefixes, or of forks, that do not count: not eligible for the fault, without the
    arm, or not judged, as the definition says."""
    shown: bool = True
    """Whether the figure is shown."""
    reason: str = ""
    """The reason why it is not shown."""
    failed: int = 0
    """Number of infrastructure failures. They are excluded."""
    lowest: float | None = None
    """The figure if all failures had turned out so as to lower it; `None` if not computed."""
    highest: float | None = None
    """The figure if all failures had turned out so as to raise it; `None` if not computed."""
    detectable: float | None = None
    """The smallest difference that a test at 5 % detects with 80 % power; `None` if the figure is
    not a difference."""
    equivalent: bool | None = None
    """Whether the 90 % interval lies within 5 points of 0, which is an equivalence test at 5 %;
    `None` if not tested."""


def causal(key: str, mean: ClusterMean, definition: str, **more: Any) -> CausalFigure:
    """A figure with a mean and its interval. It is hidden without a case.

    Args:
        key: The figure's key.
        mean: The mean with its interval. Its number of cases is the number of prefixes.
        definition: The figure's definition.
        more: Further fields of the figure. `count` replaces the number of prefixes.
    """
    made = CausalFigure(
        *(key, mean.count, mean.clusters, mean.mean, mean.low, mean.high, definition),
        prefixes=mean.count,
        shown=mean.mean is not None,
        reason="" if mean.mean is not None else "it has no case",
    )
    return dataclasses.replace(made, **more)


def arm_share(
    key: str, cells: Cells, arm: str, value: Value, definition: str, left_out: int = 0
) -> CausalFigure:
    """The share of an arm: the mean over prefixes of the mean over samples.

    Args:
        key: The figure's key.
        cells: The continuations.
        arm: The arm.
        value: Whether a continuation counts.
        definition: The figure's definition.
        left_out: Number of prefixes that do not count.
    """

    def estimate(failed: float | None) -> ClusterMean:
        means = {p: mean_value(arms.get(arm, ()), value, failed) for p, arms in cells.items()}
        return share((p[0], m[0], m[1]) for p, m in means.items() if m)

    return causal(
        key,
        estimate(None),
        definition,
        count=count(cells, arm),
        left_out=left_out,
        failed=(number := failures(cells, arm)),
        lowest=estimate(0.0).mean if number else None,
        highest=estimate(1.0).mean if number else None,
    )


def _compared(
    estimate: Callable[[list[Pair]], ClusterMean],
    key: str,
    cells: Cells,
    arms: tuple[str, str],
    value: Value,
    definition: str,
    **more: Any,
) -> CausalFigure:
    number = failures(cells, *arms)
    compared = pairs(cells, *arms, value)
    both = {p: c for p, c in cells.items() if all(arm in c for arm in arms)}
    bounds: dict[str, Any] = {}
    if number:
        bounds["lowest"] = estimate(pairs(cells, *arms, value, (0.0, 1.0))).mean
        bounds["highest"] = estimate(pairs(cells, *arms, value, (1.0, 0.0))).mean
    fields = {"count": count(both, *arms), "failed": number, **bounds, **more}
    return unless(causal(key, estimate(compared), definition, **fields), hardly_differ(compared))


def unless(figure: CausalFigure, reason: str) -> CausalFigure:
    """The figure, hidden if there is a reason and it has none yet.

    Args:
        figure: The figure.
        reason: The reason; empty: the figure stays as it is.
    """
    if not (reason and figure.shown):
        return figure
    return dataclasses.replace(figure, shown=False, reason=reason)


def arm_difference(
    key: str,
    cells: Cells,
    arms: tuple[str, str],
    value: Value,
    definition: str,
    left_out: int = 0,
) -> CausalFigure:
    """The difference of a share between two arms, on the same prefixes.

    Args:
        key: The figure's key.
        cells: The continuations.
        arms: The first arm, and the arm that is subtracted.
        value: Whether a continuation counts.
        definition: The figure's definition.
        left_out: Number of prefixes that do not count.
    """
    smallest = detectable(pairs(cells, *arms, value))
    more = {"left_out": left_out, "detectable": smallest}
    return _compared(difference, key, cells, arms, value, definition, **more)


def arm_ratio(
    key: str,
    cells: Cells,
    arms: tuple[str, str],
    value: Value,
    definition: str,
    left_out: int = 0,
) -> CausalFigure:
    """The ratio of a share between two arms, over all prefixes without selection.

    It is hidden if the lower bound of the second arm's share is below `SHOWN_FROM`.

    Args:
        key: The figure's key.
        cells: The continuations.
        arms: The first arm, and the arm that it is divided by.
        value: Whether a continuation counts.
        definition: The figure's definition.
        left_out: Number of prefixes that do not count.
    """
    made = _compared(ratio, key, cells, arms, value, definition, left_out=left_out)
    base = share((p.problem, p.second, p.samples) for p in pairs(cells, *arms, value))
    if made.mean is None or (base.low is not None and base.low >= SHOWN_FROM):
        return made
    reason = f"the lower bound of the accuracy of the arm {arms[1]} is below {SHOWN_FROM:.0%}"
    return dataclasses.replace(made, shown=False, reason=reason)


def more_of(key: str, cells: Cells, arm: str, value: Value, definition: str) -> CausalFigure:
    """The mean number of something in an arm, minus its mean number in the control arm.

    It is hidden if it hardly varies between problems.

    Args:
        key: The figure's key.
        cells: The continuations.
        arm: The arm.
        value: The number of a continuation.
        definition: The figure's definition.
    """
    compared = pairs(cells, arm, CONTROL, value)
    made = causal(
        key,
        mean_difference(compared),
        definition,
        count=count(cells, arm, CONTROL),
        failed=failures(cells, arm, CONTROL),
        detectable=detectable(compared),
    )
    return unless(made, hardly_vary(compared))
