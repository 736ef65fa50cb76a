"""The comparison of runs: one `Comparison` for each pair, and Holm's method over all tests.

Up to four runs are compared in all pairs; more runs are each compared with the first. The tests on
all problems form one family of Holm's method, and the tests on single sets of problems another.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from retool_env.errors import SettingsError
from retool_env.evaluation.compare.flips import Flip, Table, flips_of, table_of
from retool_env.evaluation.compare.matching import Matching, match
from retool_env.evaluation.compare.outcomes import Outcomes, read_outcomes
from retool_env.evaluation.compare.paired import (
    PairedDifference,
    PairedProblem,
    paired_difference,
)
from retool_env.evaluation.compare.settings import (
    SettingDifference,
    check_settings,
    forced,
    setting_differences,
    unknown_settings,
)
from retool_env.evaluation.compare.tool_use import GroupUse, tool_use
from retool_env.metrics.accuracy import groups_of
from retool_env.metrics.causal.comparison import LEAST_PROBLEMS, holm

SCHEMA = 1
"""The version of `compare.json`."""

MOST_IN_ALL_PAIRS = 4
"""So many runs are compared in all pairs; more runs are each compared with the first."""

BANDS = (("hard", 1 / 3), ("medium", 2 / 3), ("easy", 1.0))
"""The bands of the pooled accuracy of two runs, each with its upper end."""


@dataclass(frozen=True)
class SetDifference:
    """The difference on a set of problems."""

    kind: str
    """The kind of the set: `data_set`, `difficulty`, `level`, `subject`."""
    value: str
    """The set's value of this kind."""
    difference: PairedDifference
    """The difference. A set of fewer than six problems is not tested."""


@dataclass(frozen=True)
class Band:
    """Problems of a similar pooled accuracy. The figures are descriptive: see the docs."""

    name: str
    """`hard`, `medium` or `easy`."""
    problems: int
    """Number of problems."""
    first: float
    """The accuracy of the first run."""
    second: float
    """The accuracy of the second run."""


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same problems."""

    first: str
    """The letter of the first run."""
    second: str
    """The letter of the second run. A positive difference means that this run is better."""
    matching: Matching
    """The problems of the runs."""
    settings: list[SettingDifference]
    """The settings in which the runs differ."""
    note: str
    """The reason why not all settings were compared; empty if they were."""
    overall: PairedDifference | None
    """The difference on all common problems; `None` if no problem counts."""
    sets: list[SetDifference]
    """The difference on each set of problems that the problems' metadata name."""
    bands: list[Band]
    """The accuracies by pooled accuracy."""
    uses: list[GroupUse]
    """Both runs by use of the tool."""
    table: Table
    """The episodes of one problem and number, by their verdicts in both runs."""
    flips: list[Flip]
    """The episodes whose verdicts differ."""
    differences: dict[str, float] = field(default_factory=dict)
    """The difference of each problem by its id."""


@dataclass(frozen=True)
class Report:
    """Several runs and their comparisons."""

    runs: list[Outcomes]
    """The runs."""
    comparisons: list[Comparison]
    """The comparisons."""

    def of(self, name: str) -> Outcomes:
        """The run with a letter."""
        return next(run for run in self.runs if run.name == name)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values: `compare.json`."""
        return {
            "schema": SCHEMA,
            "runs": [
                {
                    "name": one.name,
                    "path": str(one.run.path),
                    "kind": one.run.kind,
                    "title": one.run.title,
                    "problems": len(one.problems),
                    "episodes": len(one.all),
                    "failed": sum(outcome.right is None for outcome in one.all),
                }
                for one in self.runs
            ],
            "comparisons": [_json(one) for one in self.comparisons],
        }


def _json(comparison: Comparison) -> dict[str, Any]:
    values = dataclasses.asdict(comparison)
    values["matching"]["common"] = [key[0] for key in comparison.matching.common]
    return values


def compare(
    paths: Sequence[str | Path], allowed: Collection[str] = (), force: bool = False
) -> Report:
    """Compares runs on the problems that they share.

    Args:
        paths: The runs: folders, files, or `RUN@STEP`.
        allowed: Names of settings in which the runs may differ.
        force: Whether the runs may differ in all settings.

    Raises:
        SettingsError: Fewer than two runs are named, or their settings differ.
        DataError: A run is damaged or empty, or two runs share no problem.
    """
    if not 2 <= len(paths) <= len(ascii_uppercase):
        raise SettingsError(f"name from 2 to {len(ascii_uppercase)} runs, not {len(paths)}")
    runs = [read_outcomes(path, name) for path, name in zip(paths, ascii_uppercase, strict=False)]
    return compare_outcomes(runs, allowed, force)


def compare_outcomes(
    runs: Sequence[Outcomes], allowed: Collection[str] = (), force: bool = False
) -> Report:
    """Compares runs that were read; see `compare`.

    Args:
        runs: The runs.
        allowed: Names of settings in which the runs may differ.
        force: Whether the runs may differ in all settings.
    """
    pairs = [
        (first, second, setting_differences(first, second, allowed))
        for first, second in _pairs(runs)
    ]
    if not force:
        check_settings(pairs)
    made = [_comparison(first, second, forced(settings)) for first, second, settings in pairs]
    return Report(list(runs), _adjusted(made))


def _pairs(runs: Sequence[Outcomes]) -> Iterable[tuple[Outcomes, Outcomes]]:
    if len(runs) <= MOST_IN_ALL_PAIRS:
        return itertools.combinations(runs, 2)
    return [(runs[0], other) for other in runs[1:]]


def _comparison(first: Outcomes, second: Outcomes, settings: list[SettingDifference]) -> Comparison:
    matching = match(first, second)
    problems = {
        key: PairedProblem(first.episodes[key], second.episodes[key]) for key in matching.common
    }
    pairs = [(key[0], one.pair) for key, one in problems.items()]
    return Comparison(
        first=first.name,
        second=second.name,
        matching=matching,
        settings=settings,
        note=unknown_settings(first, second),
        overall=paired_difference(list(problems.values())),
        sets=list(_sets(first, matching, problems)),
        bands=list(_bands(problems.values())),
        uses=tool_use(list(problems.values())),
        table=table_of(problems),
        flips=flips_of(problems),
        differences={name: pair.first - pair.second for name, pair in pairs if pair is not None},
    )


def _sets(
    run: Outcomes, matching: Matching, problems: dict[Any, PairedProblem]
) -> Iterable[SetDifference]:
    """The differences on sets, where the problems have at least two sets of a kind."""
    kinds: dict[str, dict[str, list[PairedProblem]]] = {}
    for key in matching.common:
        for kind, value in groups_of(run.problems[key]):
            kinds.setdefault(kind, {}).setdefault(value, []).append(problems[key])
    for kind, values in kinds.items():
        if len(values) < 2:
            continue
        for value in sorted(values, key=lambda text: (text.isdigit(), len(text), text)):
            if (found := paired_difference(values[value])) is None:
                continue
            tested = found.problems >= LEAST_PROBLEMS
            yield SetDifference(
                kind, value, found if tested else dataclasses.replace(found, p=None)
            )


def _bands(problems: Iterable[PairedProblem]) -> Iterable[Band]:
    pairs = [pair for one in problems if (pair := one.pair) is not None]
    lowest = -math.inf
    for name, highest in BANDS:
        some = [p for p in pairs if lowest < (p.first + p.second) / 2 <= highest + 1e-9]
        lowest = highest + 1e-9
        if some:
            first, second = (
                sum(values) / len(some)
                for values in ([p.second for p in some], [p.first for p in some])
            )
            yield Band(name, len(some), first, second)


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with p-values that are adjusted by Holm's method."""
    overall = _holm([one.overall for one in comparisons])
    sets = iter(_holm([row.difference for one in comparisons for row in one.sets]))
    return [
        dataclasses.replace(
            one,
            overall=all_problems,
            sets=[dataclasses.replace(row, difference=next(sets)) for row in one.sets],
        )
        for one, all_problems in zip(comparisons, overall, strict=True)
    ]


def _holm(differences: Sequence[PairedDifference | None]) -> list[Any]:
    known = [one.p for one in differences if one is not None and one.p is not None]
    adjusted = dict(zip(known, holm(known), strict=True))  # equal p-values are adjusted alike
    return [
        one and dataclasses.replace(one, adjusted=None if one.p is None else adjusted[one.p])
        for one in differences
    ]
