"""The first table on the page of `benchmarks.recovery`: each change, by seed and over the seeds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from benchmarks.parts.study_cells import (
    NOT_RUN,
    Written,
    points,
    pooled,
    signed_number,
    signed_points,
    table_of,
)
from benchmarks.parts.study_changes import LEAST_PROBLEMS, Change
from benchmarks.parts.study_figures import (
    LEAST_OF_KIND,
    accuracy_change,
    kinds_of,
    recovery_change,
)
from benchmarks.parts.study_next import next_change
from benchmarks.parts.study_pictures import Results
from benchmarks.parts.study_plan import SEEDS
from benchmarks.parts.study_tables import seeds_of, wholes_of
from benchmarks.parts.study_use import USES, Evaluation, observed_change, use_change
from retool_env.metrics.causal.continuation import CONTROL

Evaluations = Sequence[Evaluation]
"""The evaluations of a run, one a seed."""
Compared = Callable[[Evaluations, Evaluations], Change]
"""The change between two runs."""


def _use(name: str) -> Compared:
    return lambda before, after: use_change(before, after, name)


def _recovery(seen: bool, sort: str = "", least: int = LEAST_OF_KIND) -> Compared:
    return lambda before, after: recovery_change(before, after, kinds_of(seen, sort), least)


def _next(*arms: str) -> Compared:
    return lambda before, after: next_change(before, after, *arms)


HELD_OUT: tuple[tuple[str, Compared], ...] = (
    ("recovery, held-out kinds", _recovery(False)),
    ("– explicit kinds alone", _recovery(False, "explicit")),
    ("– silent kinds alone", _recovery(False, "silent")),
    (f"– kinds at {LEAST_PROBLEMS} problems or more", _recovery(False, least=LEAST_PROBLEMS)),
)
"""The recovery from held-out kinds by the rule that was committed first, and by three others."""
CALLS_AGAIN: tuple[tuple[str, Compared], ...] = (
    ("calls again after explicit faults, held-out kinds", _next(*kinds_of(False, "explicit"))),
    ("– explicit faults, seen kinds", _next(*kinds_of(True, "explicit"))),
    ("– the true result", _next(CONTROL)),
)
"""The next step of the model. No rule was set for these before the runs were looked at."""
QUESTIONS: tuple[tuple[str, str, str, Compared], ...] = (
    ("accuracy without faults", "grpo", "cold", accuracy_change),
    *((name, "grpo", "cold", _use(name)) for name in USES),
    ("recovery, seen kinds", "grpo", "cold", _recovery(True)),
    *((name, "grpo", "cold", change) for name, change in HELD_OUT),
    *((name, "grpo", "cold", change) for name, change in CALLS_AGAIN),
    *((name, "faults10", "grpo", change) for name, change in HELD_OUT),
    *((name, "faults25", "grpo", change) for name, change in HELD_OUT),
    *(
        ("accuracy without faults", rate, "grpo", accuracy_change)
        for rate in ("faults10", "faults25")
    ),
)
"""The figures of the table: a figure, a run, the run that it is compared with, and the change."""
NAMES = {
    "cold": "cold start",
    "grpo": "GRPO",
    "ppo": "PPO",
    "faults10": "GRPO under faults, rate 0.1",
    "faults25": "GRPO under faults, rate 0.25",
}
"""The names of the runs in the table."""
OBSERVED = {
    "next_call_ok": "a failed call's next call ran",
    "accuracy": "right after a failed call",
}
"""The observed figures of the table, which change from the first to the last third of a run."""
OBSERVED_RUNS = ("grpo", "ppo")
"""The runs of the observed figures. Spare rollouts and DAPO select the recorded episodes."""


def findings_table(results: Results) -> list[str]:
    """The change of each figure, with each seed and over all seeds.

    Args:
        results: The results.
    """
    rows = []
    for figure, run, base, compared in QUESTIONS:
        written = signed_number if figure == "calls" else signed_points
        change = _changes(results, run, base, compared)
        name = f"{NAMES[run]} against {NAMES[base]}: {figure}"
        rows.append(_row(name, change, seeds_of(results, run, base), written))
    for run, (key, figure) in itertools.product(OBSERVED_RUNS, OBSERVED.items()):
        cells = [f"{NAMES[run]}, last third against the first: {figure}"]
        for seed in SEEDS:
            part = results.get(f"{run}-{seed}")
            cells.append(points(observed_change(part["training"], key)) if part else NOT_RUN)
        rows.append([*cells, "–"])
    head = ("figure", *(f"seed {seed}" for seed in SEEDS), "these seeds together")
    return table_of(head, iter(rows))


def _changes(
    results: Results, run: str, base: str, compared: Compared
) -> Callable[[Sequence[int]], Change]:
    return lambda seeds: compared(wholes_of(results, base, seeds), wholes_of(results, run, seeds))


def _row(
    name: str, change: Callable[[Sequence[int]], Change], seeds: Sequence[int], written: Written
) -> list[str]:
    cells = [points(change([s]), written=written) if s in seeds else NOT_RUN for s in SEEDS]
    return [name, *cells, pooled(change, seeds, written) if len(seeds) > 1 else "–"]
