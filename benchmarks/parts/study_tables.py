"""The tables of figures on the page of `benchmarks.recovery`, in Markdown.

A row or a column that compares runs is of the seeds with which all of them are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.parts.study_cells import (
    NOT_RUN,
    percent,
    points,
    pooled,
    signed_number,
    signed_points,
    table_of,
)
from benchmarks.parts.study_changes import Change
from benchmarks.parts.study_figures import (
    GROUPS,
    accuracy,
    accuracy_change,
    group_of,
    kinds_of,
    pairs_of,
    recovery,
    recovery_change,
)
from benchmarks.parts.study_next import next_table
from benchmarks.parts.study_pictures import Results, along_run
from benchmarks.parts.study_plan import ALGORITHMS, RATES, SEEDS
from benchmarks.parts.study_use import USES, Evaluation, calls_of, observed_change, use_change
from benchmarks.parts.study_values import DISTANCES
from retool_env.faults import KINDS
from retool_env.metrics.causal.continuation import CONTROL
from retool_env.metrics.causal.intervals import difference

TRAINED = (*ALGORITHMS, *(run for run, rate in RATES.items() if rate))
"""The runs of RL in studies A and B."""
AFTER_FAULTS = ("cold", "grpo", "faults25")
"""The runs of `after_faults_table`."""
NEXT_ROWS: Mapping[str, Sequence[str]] = {
    "the true result": (CONTROL,),
    "explicit faults, seen kinds": kinds_of(True, "explicit"),
    "explicit faults, held-out kinds": kinds_of(False, "explicit"),
    **{f"`{kind}`": (kind,) for kind in KINDS},
}
"""The arms of each row of a table of next steps, by the name of the row."""
OBSERVED_HEAD = (
    *("run, steps", "with code", "first code at", "calls that ran"),
    *("failed calls", "next call ran", "right after a failed call"),
)
"""The columns of the observed figures."""


def figure_text(evaluation: Evaluation, key: str) -> str:
    """A share of an evaluation, as the cell of a table.

    Args:
        evaluation: The evaluation.
        key: The key of the figure.
    """
    figure = evaluation["figures"].get(key)
    if figure is None or figure["mean"] is None:
        return "–"
    text = percent(figure["mean"], figure["low"], figure["high"])
    return text if figure["shown"] else "not shown"


def _named(run: str, seeds: Sequence[int]) -> str:
    return f"{run}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def seeds_of(results: Results, *runs: str) -> list[int]:
    """The seeds with which all these runs are done."""
    return [seed for seed in SEEDS if all(f"{run}-{seed}" in results for run in runs)]


def _each_and_all(seeds: Sequence[int]) -> list[list[int]]:
    return [[seed] for seed in seeds] + ([list(seeds)] if len(seeds) > 1 else [])


def _compared(
    results: Results,
    runs: Sequence[str],
    base: str,
    columns: int,
    cells: Callable[[str, Sequence[int]], Sequence[str]],
    names: Callable[[str], str] = str,
) -> Iterator[list[str]]:
    """A row for each seed, and for all seeds, with which a run and its base are done.

    Args:
        results: The results.
        runs: The runs.
        base: The run that they are compared with.
        columns: The number of cells of a row, without its name.
        cells: The cells of a run and some seeds.
        names: The name of a run in the table.
    """
    for run in runs:
        seeds = seeds_of(results, run, base)
        for some in _each_and_all(seeds):
            yield [_named(names(run), some), *cells(run, some)]
        if missing := [seed for seed in SEEDS if seed not in seeds]:
            yield [_named(names(run), missing), NOT_RUN, *["–"] * (columns - 1)]


def wholes_of(results: Results, run: str, seeds: Sequence[int]) -> list[Evaluation]:
    """The evaluations of a run on the whole suite.

    Args:
        results: The results.
        run: The run.
        seeds: Seeds with which it is done.
    """
    return [results[f"{run}-{seed}"]["evaluations"]["whole"] for seed in seeds]


def _accuracy_text(results: Results, base: str, run: str, seeds: Sequence[int]) -> str:
    def change(some: Sequence[int]) -> Change:
        return accuracy_change(wholes_of(results, base, some), wholes_of(results, run, some))

    return pooled(change, seeds)


def _change_text(
    results: Results, base: str, run: str, seeds: Sequence[int], kinds: Sequence[str]
) -> str:
    def change(some: Sequence[int]) -> Change:
        return recovery_change(wholes_of(results, base, some), wholes_of(results, run, some), kinds)

    return pooled(change, seeds)


def use_table(results: Results) -> list[str]:
    """Accuracy without faults and the use of the tool, before and after training.

    Args:
        results: The results.
    """
    head = ("model", "right without faults", "calls", "tool gain", "over-use", "under-use")

    def rows() -> Iterator[list[str]]:
        for run in ("cold", *ALGORITHMS):
            for seed in SEEDS:
                name, part = f"{run}, seed {seed}", results.get(f"{run}-{seed}")
                if part is None:
                    yield [name, NOT_RUN, *["–"] * 4]
                    continue
                whole = part["evaluations"]["whole"]
                mean = accuracy([whole])
                keys = ("frequency/gain", "frequency/over_use", "frequency/under_use")
                yield [
                    name,
                    percent(mean.mean, mean.low, mean.high),
                    f"{calls_of(whole):.2f}",
                    *(figure_text(whole, key) for key in keys),
                ]

    return table_of(head, rows())


def use_changes_table(results: Results) -> list[str]:
    """The change of the use of the tool against the cold start.

    Args:
        results: The results.
    """

    def cells(run: str, seeds: Sequence[int]) -> list[str]:
        made = []
        for name in USES:

            def change(some: Sequence[int], name: str = name) -> Change:
                before, after = (wholes_of(results, each, some) for each in ("cold", run))
                return use_change(before, after, name)

            made.append(pooled(change, seeds, signed_number if name == "calls" else signed_points))
        return made

    return table_of(("run", *USES), _compared(results, TRAINED, "cold", len(USES), cells))


def recovery_table(results: Results) -> list[str]:
    """The recovery ratio of seen and of held-out kinds, and its change by the training.

    Args:
        results: The results.
    """
    head = (
        *("run", "accuracy, change", "seen kinds: ratio", "change"),
        *("held-out kinds: ratio", "change"),
    )

    def cells(run: str, seeds: Sequence[int]) -> list[str]:
        cold = run == "cold"
        made = ["–" if cold else _accuracy_text(results, "cold", run, seeds)]
        for kinds in (kinds_of(seen) for seen in (True, False)):
            mean = recovery(wholes_of(results, run, seeds), kinds)
            made.append(percent(mean.mean, mean.low, mean.high))
            made.append("–" if cold else _change_text(results, "cold", run, seeds, kinds))
        return made

    return table_of(head, _compared(results, ("cold", *ALGORITHMS), "cold", 5, cells))


def versus_table(results: Results) -> list[str]:
    """The other algorithms against GRPO, at the seeds of which both are done.

    Args:
        results: The results.
    """

    def cells(run: str, seeds: Sequence[int]) -> list[str]:
        groups = (kinds_of(seen) for seen in (True, False))
        ratios = (_change_text(results, "grpo", run, seeds, kinds) for kinds in groups)
        return [_accuracy_text(results, "grpo", run, seeds), *ratios]

    head = ("run", "accuracy", "seen kinds: ratio", "held-out kinds: ratio")
    others = [run for run in ALGORITHMS if run != "grpo"]
    return table_of(head, _compared(results, others, "grpo", 3, cells))


def sorts_table(results: Results) -> list[str]:
    """The change of the recovery ratio against the cold start, explicit and silent kinds apart.

    Args:
        results: The results.
    """
    sorts = [(seen, sort) for seen in (True, False) for sort in ("explicit", "silent")]

    def cells(run: str, seeds: Sequence[int]) -> list[str]:
        return [
            _change_text(results, "cold", run, seeds, kinds_of(seen, sort)) for seen, sort in sorts
        ]

    head = ("run", *(f"{GROUPS[not seen]}, {sort}" for seen, sort in sorts))
    return table_of(head, _compared(results, TRAINED, "cold", len(sorts), cells))


def along_table(results: Results) -> list[str]:
    """Accuracy and recovery on the problems along the runs, at three points of each run.

    Args:
        results: The results.
    """
    head = ("run, step", "right without faults", "seen kinds: ratio", "held-out kinds: ratio")

    def rows() -> Iterator[list[str]]:
        for run in TRAINED:
            seeds = seeds_of(results, run, "cold")
            if not seeds:
                yield [_named(run, SEEDS), NOT_RUN, *["–"] * 2]
                continue
            runs = [along_run(results, run, seed) for seed in seeds]
            for points_of_step in zip(*runs, strict=True):
                step, some = points_of_step[0][0], [each for _, each in points_of_step]
                cells = [accuracy(some), *(recovery(some, kinds_of(s)) for s in (True, False))]
                texts = (percent(each.mean, each.low, each.high) for each in cells)
                yield [f"{_named(run, seeds)}: step {step}", *texts]

    return table_of(head, rows())


def observed_table(results: Results) -> list[str]:
    """The use of the tool and the observed recovery in the rollouts of the training.

    Args:
        results: The results.
    """

    def rows() -> Iterator[list[str]]:
        for run in ALGORITHMS:
            for seed in SEEDS:
                part = results.get(f"{run}-{seed}")
                if part is None:
                    yield [f"{run}, seed {seed}", NOT_RUN, *["–"] * 5]
                    continue
                yield from thirds_rows(f"{run}, seed {seed}", part["training"])

    return table_of(OBSERVED_HEAD, rows())


def thirds_rows(name: str, training: Mapping[str, Any]) -> Iterator[list[str]]:
    """The rows of a training in a table with the columns `OBSERVED_HEAD`.

    Args:
        name: The name of the run in the table.
        training: The summaries of the thirds, by their last steps, in order.
    """
    before = 0
    for last, summary in training.items():
        own = summary["recovery"]
        yield [
            f"{name}, {before + 1} to {last}",
            _percent_of(summary["code_ratio"]),
            _percent_of(summary["first_call_at"]),
            _percent_of(summary["call_pass_rate"]),
            f"{own['next_call_ok']['count']:,}",
            *(_estimate(own[key]) for key in ("next_call_ok", "accuracy")),
        ]
        before = int(last)
    changes = (points(observed_change(training, key)) for key in ("next_call_ok", "accuracy"))
    yield [f"{name}, change", *["–"] * 4, *changes]


def _percent_of(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _estimate(estimate: dict[str, Any]) -> str:
    interval = estimate["interval"]
    return "–" if interval is None else percent(*(interval[k] for k in ("mean", "low", "high")))


def kinds_table(results: Results, effect: bool = False) -> list[str]:
    """The recovery ratio of each kind, for the cold start and for each run.

    Args:
        results: The results.
        effect: Whether the table has the fault effect in points instead.
    """
    seeds = {run: seeds_of(results, run, "cold") for run in ("cold", *TRAINED)}
    columns = {
        _named(run, some): wholes_of(results, run, some) for run, some in seeds.items() if some
    }
    return kinds_of_models(columns, effect)


def after_faults_table(results: Results) -> list[str]:
    """The next step after each kind of fault: cold start, GRPO, and GRPO under faults.

    Args:
        results: The results.
    """
    seeds = seeds_of(results, *AFTER_FAULTS)
    columns = {_named(run, seeds): wholes_of(results, run, seeds) for run in AFTER_FAULTS if seeds}
    return next_table(columns, NEXT_ROWS)


def kinds_of_models(columns: Mapping[str, Sequence[Evaluation]], effect: bool) -> list[str]:
    """The recovery ratio of each kind, or its fault effect, for some models.

    Args:
        columns: The evaluations of each model, one a seed, by its name.
        effect: Whether the table has the fault effect in points.
    """

    def text(wholes: Sequence[Evaluation], kind: str) -> str:
        if effect:
            found = difference(pairs_of(wholes, [kind])[kind])
            change = Change(found.mean, found.low, found.high, found.clusters)
            return "–" if found.mean is None else points(change).rpartition(":")[0]
        kept = recovery(wholes, [kind])
        many = f", {kept.clusters}" if kept.count else ""
        return percent(kept.mean, kept.low, kept.high) + many

    def rows() -> Iterator[list[str]]:
        for group in GROUPS if columns else ():
            for kind in (k for k in KINDS.values() if group_of(k.name) == group):
                row = [f"**{group}**" if group == GROUPS[1] else group]
                row += [f"`{kind.name}`" + r" \*" * kind.invented, kind.sort]
                yield row + [text(wholes, kind.name) for wholes in columns.values()]

    return table_of(("", "kind", "sort", *columns), rows())


def faults_table(results: Results) -> list[str]:
    """Training under faults: accuracy, and recovery from seen and held-out kinds, against rate 0.

    Args:
        results: The results.
    """
    head = (
        *("fault rate, seed", "right without faults", "change", "seen kinds: change"),
        *("held-out kinds: ratio", "change"),
    )

    def cells(run: str, seeds: Sequence[int]) -> list[str]:
        own = wholes_of(results, run, seeds)
        mean, held_out = accuracy(own), recovery(own, kinds_of(False))
        changes = ["–"] * 3
        if RATES[run]:
            groups = (kinds_of(seen) for seen in (True, False))
            changes = [_accuracy_text(results, "grpo", run, seeds)]
            changes += (_change_text(results, "grpo", run, seeds, kinds) for kinds in groups)
        right = percent(mean.mean, mean.low, mean.high)
        kept = percent(held_out.mean, held_out.low, held_out.high)
        return [right, *changes[:2], kept, changes[2]]

    rows = _compared(results, list(RATES), "grpo", 5, cells, lambda run: f"{RATES[run]:g}")
    return table_of(head, rows)


def values_table(results: Results) -> list[str]:
    """Study D: noticed, and adopted, by the distance of the false value.

    Args:
        results: The results.
    """
    head = ("model", "value", "cases", "problems", "noticed", "adopted (contagion)", "right")

    def rows() -> Iterator[list[str]]:
        parts = [part for part in results.values() if "values" in part]
        if not parts:
            yield ["all", NOT_RUN, *["–"] * 5]
        for part in parts:
            for model, measured in part["values"].items():
                checks = measured["figures"][next(iter(DISTANCES))]["checks_of_true"]
                share = percent(*(checks[k] for k in ("mean", "low", "high")))
                many = [str(checks[key]) for key in ("count", "clusters")]
                yield [model, "the true one", *many, f"checked: {share}", "–", "–"]
                for name in DISTANCES:
                    own = measured["figures"][name]
                    yield [
                        model,
                        name,
                        *(str(own["noticed"][key]) for key in ("count", "clusters")),
                        *(points(_change(own[key])) for key in ("noticed", "contagion")),
                        percent(*(own["right"][k] for k in ("mean", "low", "high"))),
                    ]

    return table_of(head, rows())


def _change(mean: dict[str, Any]) -> Change:
    return Change(mean["mean"], mean["low"], mean["high"], mean["clusters"])
