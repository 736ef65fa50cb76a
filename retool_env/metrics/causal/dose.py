"""Dose: accuracy and use of whole episodes against the rate of faults.

A transcript does not name the rate under which it was made, so the rates are given. The area under
the curve of accuracy is computed by the trapezoidal rule and divided by the range of the rates. It
is the mean accuracy over this range.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from retool_env.errors import SettingsError
from retool_env.metrics.causal.episodes import Episodes, calls, failure_bounds, mean, right
from retool_env.metrics.causal.figure import SHOWN_FROM, CausalFigure, causal, unless
from retool_env.metrics.causal.intervals import (
    Pair,
    hardly_differ,
    mean_difference_if_varied,
    mean_share,
    ratio,
    share,
)
from retool_env.metrics.estimators import cluster_mean
from retool_env.transcript import Transcript


def dose_figures(by_rate: Mapping[float, Iterable[Transcript]]) -> Iterator[CausalFigure]:
    """The figures at each rate, and the area under the curve of accuracy.

    Args:
        by_rate: The whole episodes at each rate of faults.

    Raises:
        SettingsError: If fewer than two rates are given.
    """
    if len(by_rate) < 2:
        raise SettingsError(f"a dose curve needs at least two rates of faults, not {len(by_rate)}")
    arms = {rate: Episodes.of(by_rate[rate]) for rate in sorted(by_rate)}
    for rate, arm in arms.items():
        yield causal(
            f"dose/{rate:g}/accuracy",
            share((p, mean(some, right), len(some)) for p, some in arm.by_problem.items()),
            f"Mean over problems of the share of right episodes at the rate {rate:g} of faults.",
            count=arm.count,
            failed=arm.failed,
            **failure_bounds(arm),
        )
        yield causal(
            f"dose/{rate:g}/calls",
            mean_difference_if_varied(
                [Pair(p, mean(some, calls), 0.0) for p, some in arm.by_problem.items()]
            ),
            f"Mean over problems of the mean number of calls at the rate {rate:g} of faults.",
            count=arm.count,
            failed=arm.failed,
        )
        cases = [
            (problem, call.faulty)
            for problem, some in arm.by_problem.items()
            for transcript in some
            for call in transcript.calls
        ]
        yield causal(
            f"dose/{rate:g}/injected",
            cluster_mean(((problem, float(faulty)) for problem, faulty in cases), share=True),
            f"Share of calls at which a fault took place, at the rate {rate:g} of faults. It is "
            "below the rate, because calls that are not eligible run truly.",
            count=len(cases),
        )
    yield from _areas(arms)


def _areas(arms: Mapping[float, Episodes]) -> Iterator[CausalFigure]:
    rates = list(arms)
    weights = dict(zip(rates, trapezoid(rates), strict=True))
    first = arms[rates[0]].by_problem
    problems = [p for p in first if all(p in arm.by_problem for arm in arms.values())]
    rows = []
    for problem in problems:
        groups = {rate: arm.by_problem[problem] for rate, arm in arms.items()}
        area = sum(weights[rate] * mean(some, right) for rate, some in groups.items())
        rows.append(Pair(problem, min(1.0, area), mean(first[problem], right), len(first[problem])))
    count = sum(len(arm.by_problem[p]) for arm in arms.values() for p in problems)
    more = {
        "count": count,
        "left_out": len({p for arm in arms.values() for p in arm.by_problem}) - len(problems),
        "failed": sum(arm.failed for arm in arms.values()),
    }
    yield causal(
        "dose/area",
        mean_share((row.problem, row.first, row.samples) for row in rows),
        "Area under the curve of accuracy against the rate of faults, divided by the range of the "
        "rates. Problems without episodes at a rate are left out.",
        **more,
        **_bounds(arms, weights, ratio=False),
    )
    made = causal(
        "dose/area_ratio",
        ratio(rows),
        f"The same area, divided by the accuracy at the rate {rates[0]:g}: 1 if faults cost "
        "nothing.",
        **more,
        **_bounds(arms, weights, ratio=True),
    )
    low = share((row.problem, row.second, row.samples) for row in rows).low
    reason = f"the lower bound of the accuracy at the rate {rates[0]:g} is below {SHOWN_FROM:.0%}"
    made = unless(made, reason if low is None or low < SHOWN_FROM else "")
    yield unless(made, hardly_differ(rows))


def _bounds(
    arms: Mapping[float, Episodes], weights: Mapping[float, float], ratio: bool
) -> dict[str, float]:
    """The fields `lowest` and `highest` of the area, or of its ratio to the first accuracy.

    The ratio falls with the first accuracy and rises with all others.
    """
    if not any(arm.failed for arm in arms.values()):
        return {}
    first, bounds = min(arms), {}
    for name, worth in (("lowest", 0.0), ("highest", 1.0)):
        shares = {
            rate: arm.share_right(1 - worth if ratio and rate == first else worth)
            for rate, arm in arms.items()
        }
        common = [p for p in shares[first] if all(p in some for some in shares.values())]
        area = sum(weights[rate] * some[p] for rate, some in shares.items() for p in common)
        whole = sum(shares[first][p] for p in common) if ratio else len(common)
        if whole:
            bounds[name] = area / whole
    return bounds


def trapezoid(points: list[float]) -> list[float]:
    """The weights of the trapezoidal rule, which sum to 1.

    Args:
        points: At least two ascending numbers.

    Example:
        >>> trapezoid([0.0, 0.5, 1.0])
        [0.25, 0.5, 0.25]
    """
    reach = points[-1] - points[0]
    before = [points[0], *points[:-1]]
    after = [*points[1:], points[-1]]
    return [(b - a) / (2 * reach) for a, b in zip(before, after, strict=True)]
