"""Intervals of shares, differences and ratios over prefixes, where a problem is one cluster.

The value of a prefix is the mean over its samples of an arm, from 0 to 1. All prefixes, arms and
samples of a problem form one cluster. The variance is by the jackknife: with `C` problems, and with
the change `e` of the mean if a problem is left out, it is `(C - 1) / C * sum(e^2)`. Problems may
differ in their number of prefixes. A ratio is linearised.

| figure     | interval                                                                          |
|------------|-----------------------------------------------------------------------------------|
| share      | Wilson's interval, with the t quantile and with the effective number of samples   |
|            | (Rao and Scott, 1992): the number of samples, divided by a design effect          |
| difference | `d ± t * s`; where an arm is near 0 or 1, or both are decided, see below          |
| ratio      | the delta method, `q ± t * s`; elsewhere as for a difference                      |

The design effect of few cases is hardly known: the few problems with such a case decide it. So it
is averaged with the design effect of an assumed intra-class correlation. The average's weights are
the number of problems with a case of the rarer sort, and a number for the assumption: see
`ASSUMED_FEW` and `ASSUMED`. If the samples agree at almost all problems (`DECIDED`), the assumed
correlation is 1.

An arm is *near the edge* if its share is within `NEAR_THE_EDGE` cases of 0 or 1. There the cases of
a problem count as one case. Two arms are near the same edge if the mean of their shares is: so two
arms that hardly differ are treated alike, also if only one of them is within this number.

* Both arms near the same edge: `± t * s`, as elsewhere, times `1 + 3 / C`.
* One arm near an edge and the other one far from it, arms near different edges, or all `e` are 0:
  the difference and the ratio combine the intervals of the two shares, with the correlation of
  their `e` (Newcombe, 1998; Donner and Zou, 2012). A correlation of 1 counts as 0: it would give an
  interval without a width. With `FEW_PROBLEMS` problems or more, this is so as well if one arm is 0
  or 1 and the other one is not: the few cases of the other arm alone would give the spread.

Two arms are *decided* if the samples of a problem agree at almost all problems, as with greedy
sampling or with one sample: see `DECIDED`. Such arms differ at a few problems, and there by 1, so
the spread of their differences is unknown. If they differ by fewer than `NEAR_THE_EDGE` cases, the
difference combines the intervals of two other shares: of the gains, `max(f - c, 0)`, and of the
losses, `max(c - f, 0)`. All samples of a prefix count as one sample, and the design effect is the
larger one of the estimated and the assumed. The ratio is `1 + d / c`, by the bounds of `d`.

With few problems, most of which are alike, no interval of a difference is known to hold: see
`hardly_differ`. For numbers, which have no bounds, this is so with many problems as well: see
`hardly_vary`.

`t` is the quantile with `C - 1` degrees of freedom. If `e` is skewed, the mean and its standard
error vary together, and an interval by `t` holds the true value too seldom. So `t` is increased by
the second term of its Edgeworth expansion (Hall, 1992), from the skewness and the kurtosis of `e`.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from retool_env.metrics.estimators import NEAR_THE_EDGE, ClusterMean, t_quantile
from retool_env.metrics.intervals import wilson

ASSUMED_FEW, ASSUMED = (0.4, 3), (0.6, 4)
"""The intra-class correlation of the samples of a problem that is assumed without data, and the
number of problems that the assumption weighs: with fewer than `FEW_PROBLEMS` problems, and with
more."""
FEW_PROBLEMS, LEAST_DIFFERENT = 30, 5
"""With fewer problems than the first number, a difference or a ratio is shown if the two arms
differ at as many problems as the second number. A difference of numbers is always shown under this
condition only, where a problem counts if its difference is not the most frequent one."""
DECIDED = 0.12
"""Arms are decided if their variance within problems is at most this share of the whole variance
of one sample: 0 if all samples of a problem agree, 1 if the problems are alike."""


class Pair(NamedTuple):
    """One prefix in two arms."""

    problem: Hashable
    """The problem."""
    first: float
    """The mean over the samples of the first arm."""
    second: float
    """The mean over the samples of the second arm."""
    samples: float = 1
    """The number of samples of one arm."""


@dataclass(frozen=True)
class _Arm:
    """A share, linearised: arrays have one entry per problem."""

    mean: float
    low: float
    high: float
    residuals: np.ndarray[Any, Any]
    worth: float
    """The number of cases, where the cases of a problem count as one case."""

    @property
    def is_near_edge(self) -> bool:
        """Whether the share is within `NEAR_THE_EDGE` cases of 0 or 1."""
        return _is_near_edge(self.mean, self.worth)


def share(cases: Iterable[tuple[Hashable, float, float]]) -> ClusterMean:
    """The mean over prefixes of a share, with a 95 % interval.

    Args:
        cases: The problem, the mean and the number of samples of each prefix.

    Example:
        >>> found = share([("a", 1.0, 4), ("b", 0.5, 4), ("c", 0.75, 4)])
        >>> found.mean
        0.75
    """
    problems, values, samples = _columns(cases)
    if not len(values):
        return ClusterMean(0, 0, None, None, None)
    index = _index(problems)
    arm = _arm(index, values, samples)
    size = int(index.max()) + 1
    low, high = (None, None) if size < 2 else (arm.low, arm.high)
    return ClusterMean(len(values), size, arm.mean, low, high)


def difference(pairs: Sequence[Pair], level: float = 0.95) -> ClusterMean:
    """The mean over prefixes of `first - second` for two shares, with an interval.

    Args:
        pairs: The prefixes.
        level: The probability of the interval.
    """
    if not pairs:
        return ClusterMean(0, 0, None, None, None)
    first, second, size = _arms(pairs, level)
    mean = first.mean - second.mean
    if size < 2:
        return ClusterMean(len(pairs), size, mean, None, None)
    residuals = first.residuals - second.residuals
    if _few_differences(pairs, first):
        low, high = _by_gains_and_losses(pairs, level)
    elif _combines(first, second, residuals):
        r = _correlation(first, second)
        low = mean - _root(first.mean - first.low, second.high - second.mean, r)
        high = mean + _root(first.high - first.mean, second.mean - second.low, r)
    else:
        half = _half_width(residuals, level) * _caution(first, second)
        low, high = mean - half, mean + half
    return ClusterMean(len(pairs), size, mean, max(-1.0, low), min(1.0, high))


def ratio(pairs: Sequence[Pair]) -> ClusterMean:
    """The ratio `sum(first) / sum(second)` over prefixes, with a 95 % interval.

    Args:
        pairs: The prefixes, without selection.

    Returns:
        The ratio. It is `None` if the second arm sums to 0. A bound is `None` where it is
        unbounded.
    """
    if not pairs:
        return ClusterMean(0, 0, None, None, None)
    first, second, size = _arms(pairs)
    if not second.mean:
        return ClusterMean(len(pairs), size, None, None, None)
    mean = first.mean / second.mean
    if size < 2:
        return ClusterMean(len(pairs), size, mean, None, None)
    residuals = (first.residuals - mean * second.residuals) / second.mean
    if _few_differences(pairs, first):
        low, high = (1 + bound / second.mean for bound in _by_gains_and_losses(pairs))
    elif _combines(first, second, residuals):
        low, high = _combined_ratio(first, second)
    else:
        half = _half_width(residuals) * _caution(first, second)
        low, high = mean - half, mean + half
    return ClusterMean(len(pairs), size, mean, max(0.0, low), high)


def mean_share(cases: Iterable[tuple[Hashable, float, float]]) -> ClusterMean:
    """The mean over problems of a mean of several shares, such as an area under a curve.

    It varies less than a share, so the interval is `d ± t * s`; near 0 or 1 it is a share's.

    Args:
        cases: The problem, the mean and the number of samples of each case.
    """
    rows = list(cases)
    problems, values, samples = _columns(rows)
    if not rows or _arm(_index(problems), values, samples).is_near_edge:
        return share(rows)
    mean = mean_difference([Pair(problem, value, 0.0) for problem, value, _ in rows])
    if mean.low is None or mean.high is None:
        return mean
    return dataclasses.replace(mean, low=max(0.0, mean.low), high=min(1.0, mean.high))


def hardly_differ(pairs: Sequence[Pair], arms: str = "the two arms") -> str:
    """The reason why a difference or a ratio is not shown; empty if it is shown.

    Args:
        pairs: The prefixes, in the two arms.
        arms: The name of the two arms.
    """
    problems = {pair.problem for pair in pairs}
    differing = {pair.problem for pair in pairs if abs(pair.first - pair.second) > 1e-9}
    if len(problems) >= FEW_PROBLEMS or len(differing) >= LEAST_DIFFERENT:
        return ""
    return f"{arms} differ at fewer than {LEAST_DIFFERENT} problems, of fewer than {FEW_PROBLEMS}"


def hardly_vary(pairs: Sequence[Pair]) -> str:
    """The reason why a difference of numbers has no interval; empty if it has one.

    Args:
        pairs: The prefixes, in the two arms.
    """
    values: dict[Hashable, list[float]] = {}
    for pair in pairs:
        values.setdefault(pair.problem, []).append(pair.first - pair.second)
    means = Counter(round(sum(some) / len(some), 9) for some in values.values())
    if means.total() - max(means.values(), default=0) >= LEAST_DIFFERENT:
        return ""
    return f"fewer than {LEAST_DIFFERENT} problems have another difference than the others"


def mean_difference(pairs: Sequence[Pair], level: float = 0.95) -> ClusterMean:
    """The mean over prefixes of `first - second` for values of any range.

    The interval is `d ± t * s`, times `1 + 1 / C` with `C` problems: counts are skewed. It is not
    known to hold where `hardly_vary` gives a reason.

    Args:
        pairs: The prefixes.
        level: The probability of the interval.
    """
    if not pairs:
        return ClusterMean(0, 0, None, None, None)
    index = _index([pair.problem for pair in pairs])
    values = np.array([pair.first - pair.second for pair in pairs], dtype=float)
    mean, residuals = _linearised(index, values)
    if len(residuals) < 2:
        return ClusterMean(len(pairs), len(residuals), mean, None, None)
    half = _half_width(residuals, level) * (1 + 1 / len(residuals))
    return ClusterMean(len(pairs), len(residuals), mean, mean - half, mean + half)


def mean_difference_if_varied(pairs: Sequence[Pair]) -> ClusterMean:
    """`mean_difference`, without bounds where `hardly_vary` gives a reason.

    Args:
        pairs: The prefixes, in the two arms.
    """
    mean = mean_difference(pairs)
    return dataclasses.replace(mean, low=None, high=None) if hardly_vary(pairs) else mean


def detectable(pairs: Sequence[Pair], power: float = 0.8) -> float | None:
    """The smallest true difference that a test at 5 % detects with a probability.

    Args:
        pairs: The prefixes, in the two arms.
        power: The probability of the detection.

    Returns:
        `(t + t_power) * s`, by the standard error `s` of these prefixes; `None` with fewer than two
        problems, or if the prefixes do not differ.
    """
    if len(pairs) < 2:
        return None
    index = _index([pair.problem for pair in pairs])
    values = np.array([pair.first - pair.second for pair in pairs], dtype=float)
    _, residuals = _linearised(index, values)
    error = _error(residuals) if len(residuals) > 1 else 0.0
    if not error:
        return None
    degrees = len(residuals) - 1
    return (t_quantile(degrees) + t_quantile(degrees, 2 * power - 1)) * error


# --- parts --------------------------------------------------------------------------------------


def _columns(
    cases: Iterable[tuple[Hashable, float, float]],
) -> tuple[list[Hashable], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rows = list(cases)
    return (
        [row[0] for row in rows],
        np.array([row[1] for row in rows], dtype=float),
        np.array([row[2] for row in rows], dtype=float),
    )


def _index(problems: Sequence[Hashable]) -> np.ndarray[Any, Any]:
    """The number of each case's problem, in order of appearance."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(problems))}
    return np.fromiter(map(numbers.__getitem__, problems), int, len(problems))


def _linearised(
    index: np.ndarray[Any, Any], values: np.ndarray[Any, Any]
) -> tuple[float, np.ndarray[Any, Any]]:
    """The mean, and its change if a problem is left out, for each problem."""
    numbers = np.bincount(index)
    total = len(values)
    mean = float(values.mean())
    if len(numbers) < 2:
        return mean, np.zeros(len(numbers))
    return mean, (np.bincount(index, values) - mean * numbers) / (total - numbers)


def _error(residuals: np.ndarray[Any, Any]) -> float:
    size = len(residuals)
    return math.sqrt((size - 1) / size * float(residuals @ residuals))


def _arms(pairs: Sequence[Pair], level: float = 0.95) -> tuple[_Arm, _Arm, int]:
    index = _index([pair.problem for pair in pairs])
    samples = np.array([pair.samples for pair in pairs], dtype=float)
    first, second = (_arm(index, values, samples, level) for values in _values(pairs))
    return first, second, len(first.residuals)


def _values(pairs: Sequence[Pair]) -> np.ndarray[Any, Any]:
    """The values of the two arms, 2 x prefixes."""
    return np.array([(pair.first, pair.second) for pair in pairs], dtype=float).T


def _arm(
    index: np.ndarray[Any, Any],
    values: np.ndarray[Any, Any],
    samples: np.ndarray[Any, Any],
    level: float = 0.95,
    cautious: bool = False,
) -> _Arm:
    """See the module: the mean with its interval. Cautious: by the larger design effect."""
    mean, residuals = _linearised(index, values)
    mean = min(1.0, max(0.0, mean))
    size, prefixes, by_problem = len(residuals), np.bincount(index), np.bincount(index, samples)
    total = float(by_problem.sum())
    spread = (size - 1) / size * float(residuals @ residuals)
    rarer = np.bincount(index, 1 - values if mean > 0.5 else values)
    informative = int((rarer > 1e-9).sum())
    # The reciprocals of the number of independent samples: estimated, and by the assumption.
    estimated = spread / (mean * (1 - mean)) if 0 < mean < 1 else 0.0
    alike = float(by_problem @ by_problem) / total
    correlation, weight = ASSUMED_FEW if size < FEW_PROBLEMS else ASSUMED
    if 0 < mean < 1 and _decided(index, values):
        correlation = 1.0
    assumed = (1 + (alike - 1) * correlation) / total
    reciprocal = (informative * estimated + weight * assumed) / (informative + weight)
    if cautious:
        reciprocal = max(estimated, assumed)
    interval = wilson(mean, max(1.0, 1 / reciprocal), t_quantile(max(size - 1, 1), level))
    worth = float(prefixes.sum()) ** 2 / float(prefixes @ prefixes)
    return _Arm(mean, interval.low, interval.high, residuals, worth)


def _is_near_edge(share: float, worth: float) -> bool:
    return worth * min(share, 1 - share) < NEAR_THE_EDGE


def _same_edge(first: _Arm, second: _Arm) -> bool:
    """Whether both arms are near the same edge: the mean of their shares is."""
    return _is_near_edge((first.mean + second.mean) / 2, first.worth)


def _combines(first: _Arm, second: _Arm, residuals: np.ndarray[Any, Any]) -> bool:
    """Whether the interval combines the intervals of the two shares."""
    unlike = (first.is_near_edge or second.is_near_edge) and not _same_edge(first, second)
    one_constant = (first.mean in (0, 1)) != (second.mean in (0, 1))
    unlike = unlike or (one_constant and len(residuals) >= FEW_PROBLEMS)
    return unlike or not np.any(np.abs(residuals) > 1e-12)


def _decided(index: np.ndarray[Any, Any], *arms: np.ndarray[Any, Any]) -> bool:
    """Whether almost all samples of a problem agree in these arms: see `DECIDED`."""
    numbers, within, whole = np.bincount(index), 0.0, 0.0
    for values in arms:
        means = np.bincount(index, values) / numbers
        within += float(numbers @ (means * (1 - means))) / len(values)
        whole += float(values.mean() * (1 - values.mean()))
    return within <= DECIDED * whole


def _few_differences(pairs: Sequence[Pair], first: _Arm) -> bool:
    """Whether the arms are decided, and differ by few cases: see the module."""
    a, b = _values(pairs)
    few = first.worth * float(np.abs(a - b).mean()) < NEAR_THE_EDGE
    return few and _decided(_index([pair.problem for pair in pairs]), a, b)


def _by_gains_and_losses(pairs: Sequence[Pair], level: float = 0.95) -> tuple[float, float]:
    """The bounds of a difference of two arms that hardly differ: see the module."""
    first, second = _values(pairs)
    index, alone = _index([pair.problem for pair in pairs]), np.ones(len(pairs))
    gain, loss = (
        _arm(index, np.maximum(0.0, some), alone, level, cautious=True)
        for some in (first - second, second - first)
    )
    r, mean = _correlation(gain, loss), gain.mean - loss.mean
    low = mean - _root(gain.mean - gain.low, loss.high - loss.mean, r)
    return low, mean + _root(gain.high - gain.mean, loss.mean - loss.low, r)


def _caution(first: _Arm, second: _Arm) -> float:
    """The factor of the width of a difference or a ratio: above 1 near an edge."""
    return 1 + 3 / len(first.residuals) if _same_edge(first, second) else 1.0


def _half_width(residuals: np.ndarray[Any, Any], level: float = 0.95) -> float:
    """`t * s`, where `t` has `C - 1` degrees of freedom and a correction for skewed residuals."""
    size = len(residuals)
    second = float(np.mean(residuals**2))
    if not second:
        return 0.0
    skewness = float(np.mean(residuals**3)) / second**1.5
    excess = float(np.mean(residuals**4)) / second**2 - 3
    t = t_quantile(size - 1, level)
    # Hall (1992): the second term of the Edgeworth expansion of both tails of a t statistic.
    lost = skewness**2 * (t**4 + 2 * t**2 - 3) / 18 - excess * (t**2 - 3) / 12
    return (t + max(0.0, lost) * t / size) * _error(residuals)


def _correlation(first: _Arm, second: _Arm) -> float:
    """The correlation of the residuals; 0 if an arm has no spread, or if it is 1."""
    a, b = first.residuals, second.residuals
    size = math.sqrt(float(a @ a) * float(b @ b))
    r = float(a @ b) / size if size > 1e-15 else 0.0
    return max(-1.0, r) if r < 1 - 1e-9 else 0.0


def _root(a: float, b: float, r: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * r * a * b + b * b))


def _combined_ratio(first: _Arm, second: _Arm) -> tuple[float, float]:
    """The bounds of `first / second` from the bounds of both (Donner and Zou, 2012)."""
    a, b, r, low, high = first.mean, second.mean, _correlation(first, second), 0.0, math.inf
    product = a * b - r * (a - first.low) * (second.high - b)
    inner = product**2 - first.low * second.high * (2 * a - first.low) * (2 * b - second.high)
    if (bottom := second.high * (2 * b - second.high)) > 0:
        low = (product - math.sqrt(max(0.0, inner))) / bottom
    product = a * b - r * (first.high - a) * (b - second.low)
    inner = product**2 - first.high * second.low * (2 * a - first.high) * (2 * b - second.low)
    if (bottom := second.low * (2 * b - second.low)) > 0:
        high = (product + math.sqrt(max(0.0, inner))) / bottom
    return min(low, a / b), max(high, a / b)
