"""The figures of `benchmarks.recovery`: a model's evaluation, a training run, and their changes.

The record of an evaluation holds the figures of `retool recover`, and the values of each prefix, so
that two models can be compared without their episodes.

The recovery ratio of several kinds is the mean of their ratios, with equal weights. Which prefixes
a kind has depends on the programs of the model, so a ratio of all prefixes together would change
with the mix of the kinds. A kind counts if it has right continuations of the true result at
two problems or more; for a change, in both models. So all replicates of the jackknife have the same
kinds.

A change between two models is paired by problem: of each seed and kind, only the problems with
prefixes in both models count. Over several seeds it is the mean of their changes. The interval is
by the jackknife over problems: all prefixes, kinds, seeds and both models of a problem form one
cluster. So the interval says nothing about other training seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.parts.study_changes import Change, Statistic, over_seeds
from benchmarks.parts.study_next import read_next
from benchmarks.parts.study_use import Evaluation, read_use
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
from retool_env.metrics.causal.intervals import Pair, mean_difference_if_varied, ratio, share
from retool_env.metrics.estimators import ClusterMean
from retool_env.metrics.summary import summarise_along

_FIGURES = ("dose/0", "dose/area", "frequency/", "ratio/", "effect/", "contagion/", "detection/")
_FIELDS = ("mean", "low", "high", "count", "problems", "shown", "reason")
_ORIGIN = (
    *("suite", "suite_hash", "fingerprint", "revision", "sampling", "seed"),
    *("k", "m", "samples"),
)

SAME_TEXT = ("always_timeout", "cut")
"""The held-out kinds that show at the fork what a seen kind shows: `timeout` and `always_cut`. They
differ from it in later calls only, so no claim about held-out kinds rests on them."""
LEAST_OF_KIND = 2
"""A kind counts in a mean if it is right from the true result at this number of problems."""
GROUPS = ("seen", "held out", "held out, same text as a seen kind")
"""The groups of kinds."""


def group_of(kind: str) -> str:
    """The group of a kind of faults, one of `GROUPS`."""
    return GROUPS[0] if KINDS[kind].seen else GROUPS[1 + (kind in SAME_TEXT)]


def kinds_of(seen: bool, sort: str = "") -> tuple[str, ...]:
    """The kinds of faults, without placebos, that training may use, or that claims are about.

    Args:
        seen: Whether training may use them; `False`: the held-out kinds without `SAME_TEXT`.
        sort: `explicit` or `silent`; empty: both.
    """
    group, sorts = GROUPS[0 if seen else 1], (sort,) if sort else ("explicit", "silent")
    return tuple(k for k in KINDS if group_of(k) == group and KINDS[k].sort in sorts)


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
        "of": {"weights": found["model"]["weights"], **{name: found[name] for name in _ORIGIN}},
        "counts": found["counts"],
        "figures": {
            figure["key"]: {name: figure[name] for name in _FIELDS}
            for figure in found["figures"]
            if figure["key"].startswith(_FIGURES)
        },
        "accuracy": _shares(arms.get(("dose", "0"), [])),
        "use": read_use(arms),
        "next": read_next(cells),
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


Prefixes = Mapping[str, Sequence[Pair]]
"""The prefixes by kind of fault: right after the fault, and from the true result."""


def pairs_of(evaluations: Iterable[Evaluation], kinds: Iterable[str]) -> dict[str, list[Pair]]:
    """The prefixes of some kinds of faults.

    Args:
        evaluations: The evaluations, of one model or of several seeds.
        kinds: The kinds of faults.
    """
    some = list(evaluations)
    return {
        kind: [Pair(*row) for each in some for row in each["pairs"].get(kind, ())] for kind in kinds
    }


def paired(
    before: Evaluation, after: Evaluation, kinds: Iterable[str]
) -> tuple[dict[str, list[Pair]], dict[str, list[Pair]]]:
    """The prefixes at the problems that have prefixes in both models, for each kind.

    Args:
        before: The evaluation of the first model.
        after: The evaluation of the other model.
        kinds: The kinds of faults.
    """
    made: tuple[dict[str, list[Pair]], dict[str, list[Pair]]] = ({}, {})
    for kind in kinds:
        sides = [pairs_of([one], [kind])[kind] for one in (before, after)]
        problems = [{pair.problem for pair in side} for side in sides]
        shared = problems[0] & problems[1]
        for own, side in zip(made, sides, strict=True):
            own[kind] = [pair for pair in side if pair.problem in shared]
    return made


def counted(*models: Prefixes, least: int = LEAST_OF_KIND) -> list[str]:
    """The kinds that count: right from the true result at enough problems, in each model.

    Args:
        *models: The prefixes of each model.
        least: The least number of problems, two or more: with fewer, a replicate of the jackknife
            would lose the kind.
    """

    def problems(some: Iterable[Pair]) -> int:
        return len({pair.problem for pair in some if pair.second})

    kinds = models[0]
    return [k for k in kinds if all(problems(m.get(k, ())) >= least for m in models)]


def mean_ratio(prefixes: Prefixes, kinds: Sequence[str], without: str | None = None) -> float:
    """The mean of the recovery ratios of some kinds, which have equal weights.

    Args:
        prefixes: The prefixes.
        kinds: The kinds, each of them right from the true result at enough problems.
        without: A problem that is left out.
    """
    ratios = []
    for kind in kinds:
        some = [pair for pair in prefixes[kind] if pair.problem != without]
        ratios.append(sum(pair.first for pair in some) / sum(pair.second for pair in some))
    return sum(ratios) / len(ratios)


def recovery(
    evaluations: Iterable[Evaluation], kinds: Sequence[str], least: int = LEAST_OF_KIND
) -> ClusterMean:
    """The recovery ratio of one kind, or the mean ratio of several kinds, with its interval.

    Args:
        evaluations: The evaluations, of one model or of several seeds. The ratio of one kind is of
            all prefixes together, and the mean ratio of several kinds is the mean of the seeds.
            This mean has no case if no kind counts with one of the seeds.
        kinds: The kinds of faults.
        least: See `counted`.
    """
    some, nothing = list(evaluations), ClusterMean(0, 0, None, None, None)
    if len(kinds) == 1:
        return ratio(pairs_of(some, kinds)[kinds[0]])
    count, seeds = 0, list[tuple[list[str], Statistic]]()
    for each in some:
        prefixes = pairs_of([each], kinds)
        kept = counted(prefixes, least=least)
        if not kept:
            return nothing
        count += sum(len(prefixes[kind]) for kind in kept)
        seeds.append((problems_of(prefixes, kept), partial(mean_ratio, prefixes, kept)))
    if not seeds:
        return nothing
    found = over_seeds(seeds)
    low = None if found.low is None else max(0.0, found.low)
    return ClusterMean(count, found.problems, found.mean, low, found.high)


def problems_of(prefixes: Prefixes, kinds: Iterable[str]) -> list[str]:
    """The problems of some kinds, sorted."""
    return sorted({str(pair.problem) for kind in kinds for pair in prefixes[kind]})


def accuracy(evaluations: Iterable[Evaluation]) -> ClusterMean:
    """The accuracy without faults, with its interval.

    Args:
        evaluations: The evaluations, of one model or of several seeds.
    """
    rows = (item for each in evaluations for item in each["accuracy"].items())
    return share((problem, mean, count) for problem, (mean, count) in rows)


def recovery_change(
    before: Sequence[Evaluation],
    after: Sequence[Evaluation],
    kinds: Sequence[str],
    least: int = LEAST_OF_KIND,
) -> Change:
    """The change of the mean recovery ratio of some kinds, paired by problem.

    Over several seeds it is the mean of their changes. It has no case if no kind counts with one of
    the seeds.

    Args:
        before: The evaluations of the first models, one a seed.
        after: The evaluations of the other models, in the same order.
        kinds: The kinds of faults.
        least: See `counted`.
    """
    seeds = list[tuple[list[str], Statistic]]()
    for both in zip(before, after, strict=True):
        first, second = paired(*both, kinds)
        kept = counted(first, second, least=least)
        if not kept:
            return Change(None, None, None, 0)
        seeds.append((problems_of(first, kept), partial(_difference, first, second, kept)))
    return over_seeds(seeds) if seeds else Change(None, None, None, 0)


def _difference(
    first: Prefixes, second: Prefixes, kinds: Sequence[str], without: str | None
) -> float:
    return mean_ratio(second, kinds, without) - mean_ratio(first, kinds, without)


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
    found = mean_difference_if_varied(rows)
    return Change(found.mean, found.low, found.high, found.clusters)
