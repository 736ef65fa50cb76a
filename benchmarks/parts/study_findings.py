"""The first table on the page of `benchmarks.recovery`: each change, by seed and over the seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.parts.study_cells import (
    NOT_RUN,
    Written,
    figures_of,
    points,
    pooled,
    signed_number,
    signed_points,
)
from benchmarks.parts.study_changes import Change
from benchmarks.parts.study_figures import accuracy_change, kinds_of, recovery_change
from benchmarks.parts.study_pictures import Results
from benchmarks.parts.study_plan import SEEDS
from benchmarks.parts.study_use import USES, observed_change, use_change

Evaluations = Sequence[dict[str, Any]]
"""The evaluations of a run, one a seed."""
Compared = Callable[[Evaluations, Evaluations], Change]
"""The change between two runs."""


def _use(name: str) -> Compared:
    return lambda before, after: use_change(before, after, name)


def _recovery(seen: bool) -> Compared:
    return lambda before, after: recovery_change(before, after, kinds_of(seen))


QUESTIONS: tuple[tuple[str, str, str, Compared], ...] = (
    ("accuracy without faults", "grpo", "cold", accuracy_change),
    *((name, "grpo", "cold", _use(name)) for name in USES),
    ("recovery, seen kinds", "grpo", "cold", _recovery(True)),
    ("recovery, held-out kinds", "grpo", "cold", _recovery(False)),
    ("recovery, held-out kinds", "faults10", "grpo", _recovery(False)),
    ("recovery, held-out kinds", "faults25", "grpo", _recovery(False)),
    ("accuracy without faults", "faults25", "grpo", accuracy_change),
)
"""The figures of the table: a figure, a run, the run that it is compared with, and the change."""
NAMES = {
    "cold": "cold start",
    "grpo": "GRPO",
    "faults10": "GRPO under faults, rate 0.1",
    "faults25": "GRPO under faults, rate 0.25",
}
"""The names of the runs in the table."""
OBSERVED = {
    "next_call_ok": "a failed call's next call ran",
    "accuracy": "right after a failed call",
}
"""The observed figures of the table, which change from the first to the last third of GRPO."""


def findings_table(results: Results) -> list[str]:
    """The change of each figure, with each seed and over all seeds.

    Args:
        results: The results.
    """
    rows = []
    for figure, run, base, compared in QUESTIONS:
        written = signed_number if figure == "calls" else signed_points
        change = _changes(results, run, base, compared)
        name = f"{figure}: {NAMES[run]} against {NAMES[base]}"
        rows.append(_row(name, change, _common(results, run, base), written))
    for key, figure in OBSERVED.items():
        cells = [f"{figure}: last third of GRPO against the first"]
        for seed in SEEDS:
            part = results.get(f"grpo-{seed}")
            cells.append(points(observed_change(part["training"], key)) if part else NOT_RUN)
        rows.append([*cells, "–"])
    head = ("figure", *(f"seed {seed}" for seed in SEEDS), "these seeds together")
    return figures_of(head, iter(rows))


def _common(results: Results, *runs: str) -> list[int]:
    return [seed for seed in SEEDS if all(f"{run}-{seed}" in results for run in runs)]


def _changes(
    results: Results, run: str, base: str, compared: Compared
) -> Callable[[Sequence[int]], Change]:
    def wholes(name: str, seeds: Sequence[int]) -> Evaluations:
        return [results[f"{name}-{seed}"]["evaluations"]["whole"] for seed in seeds]

    return lambda seeds: compared(wholes(base, seeds), wholes(run, seeds))


def _row(
    name: str, change: Callable[[Sequence[int]], Change], seeds: Sequence[int], written: Written
) -> list[str]:
    cells = [points(change([s]), written=written) if s in seeds else NOT_RUN for s in SEEDS]
    return [name, *cells, pooled(change, seeds, written) if len(seeds) > 1 else "–"]
