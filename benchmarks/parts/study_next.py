"""The next step of a model after a fault: a call of the tool or not, with which program.

The recovery ratio says how often a model is right after a fault. This says how it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean

from benchmarks.parts.study_cells import percent, points, table_of
from benchmarks.parts.study_changes import Change, Statistic, over_seeds
from benchmarks.parts.study_use import Evaluation
from retool_env.metrics.causal.continuation import (
    CONTROL,
    Cells,
    Continuation,
    arms_of,
    eligible,
    mean_value,
)
from retool_env.metrics.causal.intervals import share

NEXT: Mapping[str, Callable[[Continuation], bool]] = {
    "calls": lambda one: one.calls > 0,
    "same program": lambda one: one.repeats,
}
"""The steps that are counted, by name. A call with the same program is one of the calls."""

Row = Sequence[str | float]
"""A prefix: its problem, its shares in the order of `NEXT`, and its number of continuations."""


def read_next(cells: Cells) -> dict[str, list[Row]]:
    """The next steps of the continuations, as JSON values: a row of each prefix, by arm.

    Args:
        cells: The continuations of an evaluation. Infrastructure failures are left out.
    """
    made: dict[str, list[Row]] = {}
    for arm in (CONTROL, *arms_of(cells)):
        for (problem, *_), arms in eligible(cells, arm).items():
            found = [mean_value(arms[arm], does) for does in NEXT.values()]
            shares = [one for one in found if one is not None]
            if shares:
                row: Row = [problem, *(mean for mean, _ in shares), shares[0][1]]
                made.setdefault(arm, []).append(row)
    return made


def next_change(before: Sequence[Evaluation], after: Sequence[Evaluation], *arms: str) -> Change:
    """The change of the share of continuations that call the tool again.

    It is the mean of the changes of some arms, with equal weights, paired by problem: of each seed
    and arm, only the problems with prefixes in both models count. An arm counts at two such
    problems. Over several seeds it is the mean of their changes, and has no case if no arm counts
    with one of the seeds. The interval is by the jackknife over problems.

    Args:
        before: The evaluations of the first models, one a seed.
        after: The evaluations of the other models, in the same order.
        *arms: The arms: kinds of faults, or the control.
    """
    seeds = list[tuple[set[str], Statistic]]()
    for both in zip(before, after, strict=True):
        kept = list[tuple[list[Row], list[Row]]]()
        problems = set[str]()
        for arm in arms:
            first, second = (each["next"].get(arm, []) for each in both)
            shared = {str(row[0]) for row in first} & {str(row[0]) for row in second}
            if len(shared) > 1:
                own = [[row for row in side if row[0] in shared] for side in (first, second)]
                kept.append((own[0], own[1]))
                problems |= shared
        if not kept:
            return Change(None, None, None, 0)
        seeds.append((problems, partial(_mean_change, kept)))
    return over_seeds(seeds) if seeds else Change(None, None, None, 0)


def _mean_change(arms: Sequence[tuple[list[Row], list[Row]]], without: str | None) -> float:
    def mean(rows: Sequence[Row]) -> float:
        return fmean(float(row[1]) for row in rows if row[0] != without)

    return fmean(mean(second) - mean(first) for first, second in arms)


def next_table(
    columns: Mapping[str, Sequence[Evaluation]], rows: Mapping[str, Sequence[str]]
) -> list[str]:
    """A table of the next steps of some models, after the true result and after faults.

    Args:
        columns: The evaluations of each model, one a seed, by its name. The changes of the others
            are against the first one.
        rows: The arms of each row, by its name. A row of several arms has changes alone.
    """
    names = list(columns)

    def level(model: str, arms: Sequence[str], index: int) -> str:
        if len(arms) > 1:
            return "–"
        some = [row for each in columns[model] for row in each["next"].get(arms[0], ())]
        found = share((row[0], float(row[index]), float(row[-1])) for row in some)
        return percent(found.mean, found.low, found.high)

    def change(model: str, arms: Sequence[str]) -> str:
        both = columns[names[0]], columns[model]
        by_seed = [next_change([a], [b], *arms) for a, b in zip(*both, strict=True)]
        return points(next_change(*both, *arms), by_seed)

    def cells() -> Iterator[list[str]]:
        for name, arms in rows.items() if columns else ():
            row = [name]
            for model in names:
                row += [level(model, arms, 1), level(model, arms, 2)]
                row += [change(model, arms)] if model != names[0] else []
            yield row

    head = ["after"]
    for model in names:
        head += [f"{model}: calls again", "with the same program"]
        head += ["change of the calls"] if model != names[0] else []
    return table_of(head, cells())
