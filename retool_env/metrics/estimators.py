"""Estimates of figures from several samples of a problem, and from cases in clusters.

`pass_at_k`, `pass_hat_k` and `maj_at_k` say what `k` samples of a problem are worth, from its `n`
samples. Each is the exact mean over all subsets of size `k`, so a smaller `k` wastes no sample.
`cluster_mean` and `cluster_ratio` average over problems, with an interval.

The interval is t-distributed, with a degree of freedom fewer than there are clusters. These degrees
are whole numbers, for which the distribution is a finite sum; `t_quantile` solves it, so neither
scipy nor a table is needed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, cast

import numpy as np

from retool_env.errors import SettingsError
from retool_env.metrics.intervals import pooled


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of `k` samples is right, pass@k.

    The unbiased estimate of Chen et al. (2021, equation 1), `1 - C(n - c, k) / C(n, k)`: the share
    of the subsets of size `k` that hold a right sample.

    Args:
        n: Number of samples.
        c: Number of right samples.
        k: Size of a subset, from 1 to `n`.

    Raises:
        SettingsError: If `k` is not from 1 to `n`, or `c` not from 0 to `n`.

    Example:
        >>> pass_at_k(4, 1, 2)
        0.5
    """
    subsets = _subsets(n, c, k)
    return (subsets - math.comb(n - c, k)) / subsets


def pass_hat_k(n: int, c: int, k: int) -> float:
    """The chance that all of `k` samples are right, pass^k.

    The unbiased estimate of Yao et al. (2024, tau-bench), `C(c, k) / C(n, k)`: the share of the
    subsets of size `k` that hold right samples only.

    Args:
        n: Number of samples.
        c: Number of right samples.
        k: Size of a subset, from 1 to `n`.

    Raises:
        SettingsError: If `k` is not from 1 to `n`, or `c` not from 0 to `n`.

    Example:
        >>> pass_hat_k(4, 3, 2)
        0.5
    """
    subsets = _subsets(n, c, k)
    return math.comb(c, k) / subsets


def _subsets(n: int, c: int, k: int) -> int:
    if not 1 <= k <= n:
        raise SettingsError(f"k must be from 1 to the number of samples, but k = {k} and n = {n}")
    if not 0 <= c <= n:
        raise SettingsError(f"c must be from 0 to the number of samples, but c = {c} and n = {n}")
    return math.comb(n, k)


# --- majority votes -----------------------------------------------------------------------------


def answer_classes(
    answers: Sequence[str | None], equal: Callable[[str, str], bool]
) -> list[list[int]]:
    """Sort the answers of a problem into classes of equal answers.

    The answers are taken in their order. Each is compared with the first member of each class so
    far, and joins the first class that it is equal to.

    Args:
        answers: The answer of each sample; `None` for a sample without an answer, which belongs to
            no class.
        equal: Whether an answer (second argument) equals the first member of a class (first
            argument). Identical texts are equal without a question.

    Returns:
        The indices of each class, ascending; the classes in the order of their first members.
    """
    classes: list[list[int]] = []
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        for members in classes:
            first = cast(str, answers[members[0]])
            if first == answer or equal(first, answer):
                members.append(index)
                break
        else:
            classes.append([index])
    return classes


def maj_at_k(
    answers: Sequence[str | None],
    right: Sequence[bool],
    k: int,
    equal: Callable[[str, str], bool] = str.__eq__,
) -> float:
    """The chance that a majority vote of `k` samples is right, maj@k.

    The classes of equal answers (`answer_classes`) are built once, from all samples. A class is
    right if its first member is. In a subset of size `k` the classes with the most samples win. A
    tie counts as the share of the winning classes that are right. A subset without an answer counts
    as 0.

    The result is the mean over all subsets of size `k`. It is exact for any `k`: it is counted from
    the sizes of the classes, without a walk through the subsets.

    Args:
        answers: The answer of each sample; `None` for a sample without an answer, which has no
            vote.
        right: Whether each sample is right.
        k: Number of samples that vote, from 1 to the number of samples.
        equal: Whether two answers are equal. The first argument is the first member of a class.
            Identical texts are equal without a question.

    Raises:
        SettingsError: If `k` is not from 1 to the number of samples, or `answers` and `right`
            differ in length.

    Example:
        >>> maj_at_k(["7", "7", "8", None], [True, True, False, False], 4)
        1.0
        >>> maj_at_k(["7", "8"], [True, False], 2)
        0.5
    """
    return votes_at_k(len(answers), *class_sizes(answers, right, equal), k)


def class_sizes(
    answers: Sequence[str | None], right: Sequence[bool], equal: Callable[[str, str], bool]
) -> tuple[list[int], list[bool]]:
    """The size of each class of `answer_classes`, and whether it is right: its first member is.

    Args:
        answers: The answer of each sample; `None` for a sample without an answer.
        right: Whether each sample is right.
        equal: Whether two answers are equal; see `answer_classes`.

    Raises:
        SettingsError: If `answers` and `right` differ in length.
    """
    if len(answers) != len(right):
        raise SettingsError(
            f"each answer needs a mark: {len(answers)} answers and {len(right)} marks were given"
        )
    classes = answer_classes(answers, equal)
    return [len(members) for members in classes], [bool(right[m[0]]) for m in classes]


def votes_at_k(n: int, sizes: Sequence[int], right: Sequence[bool], k: int) -> float:
    """`maj_at_k` from the sizes of the classes, for several `k` on the same classes.

    Args:
        n: Number of samples, the unanswered ones included.
        sizes: Number of samples in each class.
        right: Whether each class is right.
        k: Number of samples that vote, from 1 to `n`.

    Raises:
        SettingsError: If `k` is not from 1 to `n`, or the classes hold more than `n` samples.
    """
    subsets = _subsets(n, sum(sizes), k)
    unanswered = n - sum(sizes)
    # The binomials of up to 1,000 samples are floats. Beyond, whole numbers without a limit.
    kind: Any = float if n <= 1000 else object
    total: Any = 0
    # Right classes of one size win equally often, and 1,000 samples may have hundreds of them.
    winners = Counter(size for size, is_right in zip(sizes, right, strict=True) if is_right)
    for size, number in winners.items():
        others = list(sizes)
        others.remove(size)
        for votes in range(1, min(size, k) + 1):
            ways = _ways(others, unanswered, votes, k - votes, kind)
            total += (
                number
                * math.comb(size, votes)
                * sum(
                    count / (ties + 1) if kind is float else Fraction(count, ties + 1)
                    for ties, count in enumerate(ways)
                    if count
                )
            )
    return min(1.0, float(total / subsets))  # rounding must not push it past 1


def _ways(others: Sequence[int], unanswered: int, most: int, rest: int, kind: Any) -> Any:
    """In how many ways `rest` samples are drawn of other classes that have `most` votes at most.

    Args:
        others: The sizes of the other classes.
        unanswered: Number of samples without an answer.
        most: The votes of the winning class.
        rest: Number of samples to draw.
        kind: The type of the counts.

    Returns:
        The ways by the number of other classes that have exactly `most` votes.
    """
    ties = min(rest // most, sum(size >= most for size in others))
    ways = np.zeros((rest + 1, ties + 1), dtype=kind)  # by samples drawn and by ties
    for drawn in range(min(unanswered, rest) + 1):
        ways[drawn, 0] = math.comb(unanswered, drawn)
    for size in others:
        before, ways = ways, ways.copy()  # a class of which no sample is drawn
        for drawn in range(1, min(size, most, rest) + 1):
            more = math.comb(size, drawn) * before[: rest + 1 - drawn]
            if drawn < most:
                ways[drawn:] += more
            elif ties:
                ways[drawn:, 1:] += more[:, :-1]
    return ways[rest]


# --- means over clusters ------------------------------------------------------------------------

NEAR_THE_EDGE = 5
"""A share that is within so many cases of 0 or 1 gets a Wilson interval."""


@dataclass(frozen=True)
class ClusterMean:
    """A mean over cases in clusters, with a 95 % confidence interval."""

    count: int
    """Number of cases."""
    clusters: int
    """Number of clusters."""
    mean: float | None
    """The mean; `None` without a case."""
    low: float | None
    """Lower bound of the interval; `None` where it is unbounded, with fewer than two clusters."""
    high: float | None
    """Upper bound of the interval; `None` where it is unbounded, with fewer than two clusters."""


def cluster_mean(cases: Iterable[tuple[Hashable, float]], share: bool = False) -> ClusterMean:
    """The mean of values over cases in clusters, with a 95 % interval.

    The cases of one cluster (the episodes of a problem) are not independent. The interval is
    `mean ± t * s`, by the variance over clusters of the linearised ratio `sum(y) / sum(n)`
    (`cluster_ratio`). Clusters may differ in size.

    A t interval of a share is wrong near 0 and 1: where all cases are alike, its width is 0. So a
    share without spread, or within five cases of 0 or 1, gets the interval of Rao, Scott and Wilson
    (`retool_env.metrics.intervals.pooled`). There a cluster counts as one case, if its cases are
    alike. The interval of a share is cut to the range from 0 to 1.

    The interval of another mean is not cut, and its width is 0 where all clusters are alike.

    One cluster says nothing of the difference between clusters, so the interval is then unbounded:
    both bounds are `None`. Without a case the mean is `None` as well.

    Args:
        cases: The cluster (the problem's id) and the value of each case.
        share: Whether the values are shares, which lie from 0 to 1.

    Raises:
        SettingsError: If a value of a share is not from 0 to 1.

    Example:
        >>> found = cluster_mean([("a", 1), ("a", 3), ("b", 5), ("c", 7)])
        >>> found.count, found.clusters, found.mean
        (4, 3, 4.0)
    """
    values: dict[Hashable, list[float]] = {}
    for cluster, value in cases:
        if share and not 0 <= value <= 1:
            raise SettingsError(f"a share must be from 0 to 1, not {value!r}")
        values.setdefault(cluster, []).append(value)
    clusters = {name: (math.fsum(some), len(some)) for name, some in values.items()}
    found = _ratio(clusters, sum(map(len, values.values())))
    if not share or found.mean is None or found.low is None or found.high is None:
        return found
    spread = found.low < found.high
    # What the cases are worth at most: clusters of one size whose cases are alike count once each.
    worth = found.count**2 / sum(n * n for _, n in clusters.values())
    if spread and NEAR_THE_EDGE < worth * found.mean < worth - NEAR_THE_EDGE:
        low, high = max(0.0, found.low), min(1.0, found.high)
        return ClusterMean(found.count, found.clusters, found.mean, low, high)
    # Fractions hold shares exactly, so that the order does not matter; `pooled` computes with them.
    exact = [(c, cast(int, sum(map(Fraction, some))), len(some)) for c, some in values.items()]
    interval = pooled(exact).interval
    assert interval is not None  # there are cases
    low, high = min(found.mean, float(interval.low)), max(found.mean, float(interval.high))
    return ClusterMean(found.count, found.clusters, found.mean, low, high)


def cluster_ratio(cases: Iterable[tuple[Hashable, float, float]]) -> ClusterMean:
    """The ratio `sum(y) / sum(n)` over cases in clusters, with a 95 % interval.

    The ratio is linearised: `C / (C - 1) * sum((y_c - ratio * n_c)^2) / sum(n)^2` is its variance,
    where `y_c` and `n_c` are the sums of one of the `C` clusters. The interval is `ratio ± t * s`
    with `C - 1` degrees of freedom. With fewer than two clusters it is unbounded.

    Args:
        cases: The cluster, the value `y` and the weight `n` of each case: tokens and right answers,
            say. Weights are not negative.

    Returns:
        The ratio, on the number of cases. It is `None` where the weights sum to 0.
    """
    parts: dict[Hashable, tuple[list[float], list[float]]] = {}
    count = 0
    for cluster, value, weight in cases:
        values, weights = parts.setdefault(cluster, ([], []))
        values.append(value)
        weights.append(weight)
        count += 1
    sums = {name: (math.fsum(ys), math.fsum(ns)) for name, (ys, ns) in parts.items()}
    return _ratio(sums, count)


def _ratio(clusters: Mapping[Hashable, tuple[float, float]], count: int) -> ClusterMean:
    """See `cluster_ratio`, of the sums of each cluster."""
    size = len(clusters)
    total = math.fsum(y for y, _ in clusters.values())
    number = math.fsum(n for _, n in clusters.values())
    if not number:
        return ClusterMean(count, size, None, None, None)
    mean = total / number
    if size < 2:
        return ClusterMean(count, size, mean, None, None)
    spread = math.fsum((y - mean * n) ** 2 for y, n in clusters.values())
    error = math.sqrt(size / (size - 1) * spread) / number
    half = t_quantile(size - 1) * error
    return ClusterMean(count, size, mean, mean - half, mean + half)


@cache
def t_quantile(degrees: int, level: float = 0.95) -> float:
    """The bound that a t-distributed value stays within, up to its sign, with a probability.

    Args:
        degrees: Degrees of freedom, a whole number of at least 1.
        level: The probability, between 0 and 1.

    Raises:
        SettingsError: If `degrees` is below 1, or `level` is not between 0 and 1.

    Example:
        >>> round(t_quantile(9), 3)
        2.262
    """
    if degrees < 1:
        raise SettingsError(f"degrees must be at least 1, not {degrees}")
    if not 0 < level < 1:
        raise SettingsError(f"level must be between 0 and 1, not {level!r}")
    low, high = 0.0, math.pi / 2  # angles, whose tangent is t over the root of the degrees
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _t_within(middle, degrees) < level else (low, middle)
    return math.tan(high) * math.sqrt(degrees)


def _t_within(angle: float, degrees: int) -> float:
    """The probability of `abs(t) < tan(angle) * sqrt(degrees)`.

    These are the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    odd = degrees % 2
    sine, cosine = math.sin(angle), math.cos(angle)
    term, terms = cosine if odd else 1.0, []
    for index in range(odd + 1, degrees, 2):
        terms.append(term)
        term *= cosine * cosine * index / (index + 1)
    share = sine * math.fsum(terms)
    return 2 / math.pi * (angle + share) if odd else share
