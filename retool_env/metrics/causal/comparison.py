"""Two models on the same problems: a paired test for each kind of fault.

The models have prefixes of their own, so they are paired by problem: the fault effect of a problem
is the mean over its prefixes. Placebos are not tested. The p-values of all kinds are adjusted by
Holm's method (1979), so that the chance of any false finding is at most 5 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retool_env.faults import KINDS
from retool_env.metrics.causal.continuation import (
    CONTROL,
    arms_of,
    by_prefix,
    eligible,
    pairs,
    read_continuations,
)
from retool_env.metrics.causal.intervals import Pair, detectable, mean_difference_if_varied
from retool_env.metrics.sign_flip import sign_flip_p
from retool_env.transcript import Transcript

LEAST_PROBLEMS = 6
"""Kinds with fewer problems of both models are not tested: a test would hardly find anything, and
would make the other tests stricter."""


@dataclass(frozen=True)
class Comparison:
    """The fault effect of one model minus the fault effect of another, on the same problems."""

    kind: str
    """The kind of the fault."""
    problems: int
    """Number of problems with prefixes of both models."""
    difference: float
    """The mean difference of the fault effects."""
    low: float | None
    """Lower bound of the 95 % interval; `None` if unknown: the difference hardly varies."""
    high: float | None
    """Upper bound of the 95 % interval; `None` if unknown: the difference hardly varies."""
    detectable: float | None
    """The smallest difference that a test at 5 % detects with 80 % power."""
    p: float
    """The p-value of the sign-flip test."""
    adjusted: float
    """The p-value, adjusted by Holm's method over the kinds."""


def compare_models(first: Iterable[Transcript], second: Iterable[Transcript]) -> list[Comparison]:
    """Compare the fault effects of two models, one test a kind.

    Args:
        first: The forked transcripts of the first model.
        second: The forked transcripts of the second model.
    """
    effects = [_effects(transcripts) for transcripts in (first, second)]
    rows = []
    for kind in effects[0]:
        a, b = (effect.get(kind, {}) for effect in effects)
        both = [Pair(problem, a[problem], b[problem]) for problem in a if problem in b]
        if len(both) >= LEAST_PROBLEMS:
            rows.append((kind, both, sign_flip_p([pair.first - pair.second for pair in both])))
    made = []
    for (kind, both, p), adjusted in zip(rows, holm([row[2] for row in rows]), strict=True):
        mean = mean_difference_if_varied(both)
        made.append(
            Comparison(
                kind,
                len(both),
                float(mean.mean or 0.0),
                mean.low,
                mean.high,
                detectable(both),
                p,
                adjusted,
            )
        )
    return made


def _effects(transcripts: Iterable[Transcript]) -> dict[str, dict[str, float]]:
    """The fault effect by kind and problem."""
    cells = by_prefix(read_continuations(transcripts))
    effects: dict[str, dict[str, float]] = {}
    for kind in arms_of(cells):
        if KINDS[kind].sort == "placebo":
            continue
        values: dict[str, list[float]] = {}
        for pair in pairs(eligible(cells, kind), kind, CONTROL, lambda one: one.right):
            values.setdefault(str(pair.problem), []).append(pair.first - pair.second)
        effects[kind] = {name: sum(some) / len(some) for name, some in values.items()}
    return effects


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method.

    Args:
        values: The p-values of all tests.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=lambda index: values[index])
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted
