"""The paired difference of accuracy on common problems, with its interval and its test.

A problem is one case: its difference is the mean over the second run's samples minus the mean over
the first run's samples. The interval is `retool_env.metrics.causal.intervals.difference`, a t
interval over problems that falls back to a combination of two Wilson intervals near accuracies of 0
and 1. The percentile bootstrap over problems is too narrow with 20 problems, so it is not used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retool_env.evaluation.compare.outcomes import Outcome
from retool_env.metrics.causal.comparison import LEAST_PROBLEMS
from retool_env.metrics.causal.intervals import Pair, difference, hardly_differ
from retool_env.metrics.estimators import ClusterMean, t_quantile
from retool_env.metrics.sign_flip import sign_flip_p


@dataclass(frozen=True)
class PairedProblem:
    """One problem in two runs."""

    first: tuple[Outcome, ...]
    """The episodes of the first run."""
    second: tuple[Outcome, ...]
    """The episodes of the second run."""

    @property
    def pair(self) -> Pair | None:
        """The accuracies of both runs; `None` if no episode of a run counts."""
        a, b = (_counted(some) for some in (self.first, self.second))
        if not a or not b:
            return None
        samples = min(len(a), len(b))
        # The first arm of a pair is the one from which the other is subtracted.
        return Pair(None, sum(b) / len(b), sum(a) / len(a), samples)

    def bound(self, first: bool, second: bool) -> float:
        """The difference if all episodes that do not count had turned out in one way.

        Args:
            first: Whether they are right in the first run.
            second: Whether they are right in the second run.
        """
        return _assumed(self.second, second) - _assumed(self.first, first)


def _counted(outcomes: Iterable[Outcome]) -> list[bool]:
    return [one.right for one in outcomes if one.right is not None]


def _assumed(outcomes: Sequence[Outcome], right: bool) -> float:
    values = [right if one.right is None else one.right for one in outcomes]
    return sum(values) / len(values)


@dataclass(frozen=True)
class PairedDifference:
    """The accuracy of a second run minus the accuracy of a first run, on the same problems."""

    problems: int
    """Number of problems that count."""
    first: float
    """The accuracy of the first run: the mean over problems of the mean over samples."""
    second: float
    """The accuracy of the second run."""
    difference: float
    """The second accuracy minus the first."""
    low: float | None
    """Lower bound of the 95 % interval; `None` where it is unbounded, with one problem."""
    high: float | None
    """Upper bound of the 95 % interval; `None` where it is unbounded, with one problem."""
    p: float | None
    """The p-value of the sign-flip test; `None` if the difference is not tested."""
    adjusted: float | None
    """The p-value, adjusted by Holm's method over all tests of its kind."""
    detectable: float | None
    """The smallest true difference that a test at 5 % detects with 80 % power; `None` with fewer
    than six problems, where the p-value is never below 5 %."""
    failed: int
    """Number of episodes of both runs that do not count."""
    lowest: float | None
    """The difference if all episodes that do not count lowered it; `None` if all count."""
    highest: float | None
    """The difference if all episodes that do not count raised it; `None` if all count."""
    caution: str
    """The reason why the interval may be too narrow; empty without a reason."""


def paired_difference(problems: Sequence[PairedProblem]) -> PairedDifference | None:
    """The paired difference on problems.

    Args:
        problems: The problems, each in both runs.

    Returns:
        The difference; `None` if no problem counts.
    """
    pairs = [
        pair._replace(problem=number)
        for number, one in enumerate(problems)
        if (pair := one.pair) is not None
    ]
    if not pairs:
        return None
    found = interval_of(pairs)
    assert found.mean is not None  # there is a pair
    outcomes = [one for problem in problems for one in (*problem.first, *problem.second)]
    failed = sum(one.right is None for one in outcomes)
    count = len(problems)
    bounds = [
        sum(one.bound(right, not right) for one in problems) / count if failed else None
        for right in (True, False)
    ]
    return PairedDifference(
        problems=len(pairs),
        first=sum(pair.second for pair in pairs) / len(pairs),
        second=sum(pair.first for pair in pairs) / len(pairs),
        difference=found.mean,
        low=found.low,
        high=found.high,
        p=sign_flip_p([pair.first - pair.second for pair in pairs]),
        adjusted=None,
        detectable=detectable(found),
        failed=failed,
        lowest=bounds[0],
        highest=bounds[1],
        caution=hardly_differ(pairs, "the two runs"),
    )


def interval_of(pairs: Sequence[Pair]) -> ClusterMean:
    """The mean difference over problems with its 95 % interval.

    Runs that agree at all problems have no spread. With 95 % confidence they would differ at less
    than a share of `1 - 0.025 ** (1 / C)` of all problems, by 0 cases of `C` (Clopper and Pearson,
    1934), and there by one at most.

    Args:
        pairs: The problems, at least one.
    """
    found = difference(pairs)
    if found.low is None or any(pair.first != pair.second for pair in pairs):
        return found
    share = 1 - 0.025 ** (1 / len(pairs))
    return dataclasses.replace(found, low=-share, high=share)


def detectable(interval: ClusterMean, power: float = 0.8) -> float | None:
    """The smallest true difference that such a comparison detects at 5 % with a probability.

    It is the half width of the interval, times `1 + t_power / t`. So it grows with the interval
    where few problems decide the spread.

    Args:
        interval: The difference with its interval.
        power: The probability of the detection.

    Returns:
        The difference; `None` with fewer than `LEAST_PROBLEMS` problems: the smallest p-value of
        five problems is 2 / 2 ** 5.
    """
    if interval.clusters < LEAST_PROBLEMS or interval.low is None or interval.high is None:
        return None
    degrees = interval.clusters - 1
    factor = 1 + t_quantile(degrees, 2 * power - 1) / t_quantile(degrees)
    return (interval.high - interval.low) / 2 * factor
