"""The figures of `benchmarks.recovery`: a model's evaluation, a training run, and their changes.

The record of an evaluation holds the figures of `retool recover`, and the values of each prefix, so
that two models can be compared without their episodes. A change between two models is paired by
problem. Its interval is by the jackknife over problems: all prefixes, kinds, seeds and both models
of a problem form one cluster. So the interval says nothing about other training seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.replication import rollouts, thirds
from retool_env.evaluation.recover.figures import results, selected
from retool_env.evaluation.recover.records import read_arms, read_left_out, read_recover
from retool_env.faults import KINDS
from retool_env.metrics.causal.continuation import (
    CONTROL,
    arms_of,
    by_prefix,
    eligible,
    pairs,
    read_continuations,
)
from retool_env.metrics.causal.intervals import Pair, mean_difference, ratio, share
from retool_env.metrics.estimators import ClusterMean, t_quantile
from retool_env.metrics.summary import summarise_along

Evaluation = Mapping[str, Any]
"""The record of an evaluation, as JSON values."""

LEAST_PROBLEMS = 10
"""A change of fewer problems is not shown."""
_FIGURES = ("dose/0", "dose/area", "frequency/", "ratio/", "effect/", "contagion/", "detection/")
_FIELDS = ("mean", "low", "high", "count", "problems", "shown", "reason")


def kinds_of(seen: bool) -> tuple[str, ...]:
    """The kinds of faults, without the placebos, that training may use, or that are held out."""
    return tuple(k.name for k in KINDS.values() if k.seen is seen and k.sort != "placebo")


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The record of a finished folder of `retool recover`.

    Args:
        folder: The folder.
    """
    record, left_out = read_recover(folder), read_left_out(folder)
    arms = selected(record, read_arms(folder, tokens=False), left_out)
    found = results(folder)
    forks = [t for (protocol, _), some in arms.items() if protocol == "fork" for t in some]
    cells = by_prefix(read_continuations(forks))
    rows = {
        kind: [
            [str(pair.problem), pair.first, pair.second, pair.samples]
            for pair in pairs(eligible(cells, kind), kind, CONTROL, lambda one: one.right)
        ]
        for kind in arms_of(cells)
    }
    return {
        "counts": found["counts"],
        "figures": {
            figure["key"]: {name: figure[name] for name in _FIELDS}
            for figure in found["figures"]
            if figure["key"].startswith(_FIGURES)
        },
        "accuracy": _shares(arms.get(("dose", "0"), [])),
        "pairs": {kind: some for kind, some in rows.items() if some},
    }


def _shares(episodes: Iterable[Any]) -> dict[str, list[float]]:
    """The share of right episodes and their number, by problem."""
    right: dict[str, list[bool]] = {}
    for one in episodes:
        if one.scored:
            right.setdefault(one.problem.id, []).append(bool(one.correct))
    return {problem: [sum(some) / len(some), len(some)] for problem, some in right.items()}


def read_training(folder: Path) -> dict[str, Any]:
    """The figures of the training rollouts of a run, by the last step of each third.

    Args:
        folder: The folder of the run.
    """
    by_third = summarise_along(rollouts(folder), thirds(folder))
    return {str(last): summary.to_json() for last, summary in by_third.items()}


def pairs_of(evaluations: Iterable[Evaluation], kinds: Iterable[str]) -> list[Pair]:
    """The prefixes of some kinds of faults: right after the fault, and from the true result.

    Args:
        evaluations: The evaluations, of one model or of several seeds.
        kinds: The kinds of faults.
    """
    chosen = set(kinds)
    return [
        Pair(*row)
        for evaluation in evaluations
        for kind, rows in evaluation["pairs"].items()
        if kind in chosen
        for row in rows
    ]


def recovery(evaluations: Iterable[Evaluation], kinds: Iterable[str]) -> ClusterMean:
    """The recovery ratio of some kinds together, with its interval.

    Args:
        evaluations: The evaluations, of one model or of several seeds.
        kinds: The kinds of faults.
    """
    return ratio(pairs_of(evaluations, kinds))


def accuracy(evaluations: Iterable[Evaluation]) -> ClusterMean:
    """The accuracy without faults, with its interval.

    Args:
        evaluations: The evaluations, of one model or of several seeds.
    """
    rows = (item for each in evaluations for item in each["accuracy"].items())
    return share((problem, mean, count) for problem, (mean, count) in rows)


@dataclass(frozen=True)
class Change:
    """The change of a figure between two models."""

    mean: float | None
    """The change; `None` if one of the figures has no case."""
    low: float | None
    """Lower bound of the 95 % interval."""
    high: float | None
    """Upper bound of the 95 % interval."""
    problems: int
    """The number of problems."""

    @property
    def verdict(self) -> str:
        """`higher`, `lower`, or `not shown` where the interval holds 0 or rests on too little."""
        if self.low is None or self.high is None or self.problems < LEAST_PROBLEMS:
            return "not shown"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "not shown"


def recovery_change(
    before: Sequence[Evaluation], after: Sequence[Evaluation], kinds: Iterable[str]
) -> Change:
    """The change of the recovery ratio of some kinds together.

    Args:
        before: The evaluations of the first models, one a seed.
        after: The evaluations of the other models, one a seed.
        kinds: The kinds of faults.
    """
    chosen = tuple(kinds)
    return jackknife(pairs_of(before, chosen), pairs_of(after, chosen), _ratio)


def accuracy_change(before: Sequence[Evaluation], after: Sequence[Evaluation]) -> Change:
    """The change of the accuracy without faults, over the problems of both models.

    Args:
        before: The evaluations of the first models, one a seed.
        after: The evaluations of the other models, in the same order.
    """
    rows = [
        Pair(problem, second["accuracy"][problem][0], mean)
        for first, second in zip(before, after, strict=True)
        for problem, (mean, _) in first["accuracy"].items()
        if problem in second["accuracy"]
    ]
    found = mean_difference(rows)
    return Change(found.mean, found.low, found.high, found.clusters)


def jackknife(
    before: Sequence[Pair],
    after: Sequence[Pair],
    statistic: Callable[[Sequence[Pair]], float | None],
) -> Change:
    """The change of a statistic, with an interval by the jackknife over problems.

    Args:
        before: The prefixes of the first model.
        after: The prefixes of the other model.
        statistic: Maps prefixes to a number; `None` where it is not defined.
    """
    problems = sorted({str(pair.problem) for pair in (*before, *after)})

    def change(without: str | None) -> float:
        kept = [[p for p in some if p.problem != without] for some in (before, after)]
        first, second = (statistic(some) for some in kept)
        return math.nan if first is None or second is None else second - first

    mean, count = change(None), len(problems)
    if math.isnan(mean):
        return Change(None, None, None, count)
    without = np.array([change(problem) for problem in problems])
    if count < 2 or np.isnan(without).any():
        return Change(mean, None, None, count)
    variance = (count - 1) / count * float(((without - without.mean()) ** 2).sum())
    half = t_quantile(count - 1) * math.sqrt(variance)
    return Change(mean, mean - half, mean + half, count)


def _ratio(some: Sequence[Pair]) -> float | None:
    base = sum(pair.second for pair in some)
    return sum(pair.first for pair in some) / base if base else None
