"""The page of `benchmarks.recovery`: tables and pictures of the parts that are done.

Everything on the page comes from the files of results, so it can be made anew without a run. A
claim with an interval that holds 0, or that rests on too few problems, is *not shown*; a part that
has not been run says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.study_figures import (
    GROUPS,
    Change,
    accuracy,
    accuracy_change,
    group_of,
    kinds_of,
    recovery,
    recovery_change,
)
from benchmarks.parts.study_pictures import Results, draw, draw_values, observed_and_causal
from benchmarks.parts.study_plan import (
    ALGORITHMS,
    RATES,
    SEEDS,
    STUDIES,
    Plan,
    all_parts,
    hours_left,
)
from benchmarks.parts.study_values import DISTANCES
from retool_env.faults import KINDS

PICTURE, VALUES_PICTURE = "recovery_study.png", "recovery_values.png"
"""The names of the pictures, beside the page."""
NOT_RUN = "not run"
"""The text of a cell whose part has not been run."""
HEAD = Path(__file__).with_name("recovery_study.md")
"""The text of the page around the tables, with a line `{{name}}` for each table."""


def read_parts(plan: Plan) -> Results:
    """The results of the parts that are done.

    Args:
        plan: The plan.
    """
    names = [part.name for part in all_parts() if plan.done(part.name)]
    return {name: json.loads(plan.file(name).read_text(encoding="utf-8")) for name in names}


def write_page(plan: Plan, page: Path) -> None:
    """Write the page, and its pictures beside it.

    Args:
        plan: The plan.
        page: The Markdown file.
    """
    results = read_parts(plan)
    series = observed_and_causal(results)
    has_values = any("values" in part for part in results.values())
    tables: dict[str, Callable[[], list[str]]] = {
        "parts": lambda: parts_table(plan, results),
        "use": lambda: use_table(results),
        "recovery": lambda: recovery_table(results),
        "observed": lambda: observed_table(results),
        "kinds": lambda: kinds_table(results),
        "faults": lambda: faults_table(results),
        "values": lambda: values_table(results),
        "picture": lambda: [_image(PICTURE, bool(series), "observed and causal recovery")],
        "values_picture": lambda: [_image(VALUES_PICTURE, has_values, "study D")],
    }
    lines = []
    for line in HEAD.read_text(encoding="utf-8").splitlines():
        name = line.strip("{}")
        lines += tables[name]() if line == f"{{{{{name}}}}}" else [line]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if series:
        page.with_name(PICTURE).write_bytes(draw(series))
    if has_values:
        page.with_name(VALUES_PICTURE).write_bytes(draw_values(results))


def _image(name: str, drawn: bool, text: str) -> str:
    return (
        f"![{text}]({name})"
        if drawn
        else f"The picture ({text}) needs parts that have not been run."
    )


# --- texts of figures ---------------------------------------------------------------------------


def percent(mean: float | None, low: float | None, high: float | None) -> str:
    """A share with its interval, in percent.

    Args:
        mean: The share; `None`: it has no case.
        low: Lower bound of the interval; `None`: unknown.
        high: Upper bound of the interval; `None`: unknown.
    """
    if mean is None:
        return "–"
    return f"{100 * mean:.0f} % [{_bound(low)}, {_bound(high)}]"


def _bound(bound: float | None) -> str:
    return "–" if bound is None else f"{100 * bound:.0f}"


def points(change: Change) -> str:
    """A change in points, with its interval and its verdict.

    Args:
        change: The change.
    """
    if change.mean is None:
        return "–"
    interval = f"[{_signed(change.low)}, {_signed(change.high)}]"
    return f"{_signed(change.mean)} {interval}: {change.verdict}"


def _signed(number: float | None) -> str:
    return "–" if number is None else f"{100 * number:+.0f}".replace("-", "−")


def _figure(evaluation: dict[str, Any], key: str) -> str:
    figure = evaluation["figures"].get(key)
    if figure is None or figure["mean"] is None:
        return "–"
    text = percent(figure["mean"], figure["low"], figure["high"])
    return text if figure["shown"] else "not shown"


def _rows(head: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _figures(head: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    """A table of figures, or a line of text if no part of it has been run.

    A run has one row for all seeds that have not been run.
    """
    kept: list[Sequence[str]] = []
    missing: dict[str, list[str]] = {}  # the seeds that have not been run, by run
    for row in rows:
        run, _, seed = row[0].rpartition(", seed ")
        if run and row[1] == NOT_RUN:
            seeds = missing.setdefault(run, [])
            seeds.append(seed)
            if len(seeds) > 1:
                kept[-1] = [f"{run}, seeds {', '.join(seeds)}", *row[1:]]
                continue
        kept.append(row)
    if all({*row[1:]} <= {NOT_RUN, "–"} for row in kept):
        return ["No part of this table has been run."]
    return _rows(head, iter(kept))


# --- tables -------------------------------------------------------------------------------------


def parts_table(plan: Plan, results: Results) -> list[str]:
    """The parts: studies, hours, and whether they are done.

    Args:
        plan: The plan.
        results: The results.
    """

    def rows() -> Iterator[list[str]]:
        for part in all_parts():
            state = NOT_RUN
            if done := results.get(part.name):
                spent = sum(done["seconds"].values()) / 60
                state = f"done, {done['date'][:10]}, {spent:.0f} minutes"
            command = part.elsewhere or f"python -m benchmarks.recovery --part {part.name}"
            yield [part.study, f"`{part.name}`", f"{part.hours:g}", state, f"`{command}`"]

    lines = [
        f"- **{study}.** {question} Left: {hours_left(plan, study):.1f} hours."
        for study, question in STUDIES.items()
    ]
    return [*lines, "", *_rows(("study", "part", "hours", "state", "command"), rows())]


def _pairs(
    results: Results, runs: Sequence[str]
) -> Iterator[tuple[str, int, dict[str, Any] | None]]:
    for run in runs:
        for seed in SEEDS:
            yield run, seed, results.get(f"{run}-{seed}")


def use_table(results: Results) -> list[str]:
    """Accuracy without faults and the use of the tool, before and after training.

    Args:
        results: The results.
    """
    head = ("model", "right without faults", "calls", "tool gain", "over-use", "under-use")

    def rows() -> Iterator[list[str]]:
        for run, seed, part in _pairs(results, ("cold", *ALGORITHMS)):
            name = f"{run}, seed {seed}"
            if part is None:
                yield [name, NOT_RUN, *["–"] * 4]
                continue
            whole = part["evaluations"]["whole"]
            mean = accuracy([whole])
            calls = whole["figures"].get("dose/0/calls", {}).get("mean")
            keys = ("frequency/gain", "frequency/over_use", "frequency/under_use")
            yield [
                name,
                percent(mean.mean, mean.low, mean.high),
                "–" if calls is None else f"{calls:.2f}",
                *(_figure(whole, key) for key in keys),
            ]

    return _figures(head, rows())


def recovery_table(results: Results) -> list[str]:
    """The recovery ratio of seen and of held-out kinds, and its change by the training.

    Args:
        results: The results.
    """
    head = (
        *("run", "accuracy, change", "seen kinds: ratio", "change"),
        *("held-out kinds: ratio", "change"),
    )

    def rows() -> Iterator[list[str]]:
        for run in ("cold", *ALGORITHMS):
            seeds = [seed for seed in SEEDS if f"{run}-{seed}" in results]
            seeds = [seed for seed in seeds if f"cold-{seed}" in results]
            for some in [[seed] for seed in seeds] + ([seeds] if len(seeds) > 1 else []):
                name = f"{run}, {'all seeds' if len(some) > 1 else f'seed {some[0]}'}"
                before, after = (_wholes(results, each, some) for each in ("cold", run))
                row = [name, "–" if run == "cold" else points(accuracy_change(before, after))]
                for seen in (True, False):
                    kinds = kinds_of(seen)
                    ratio = recovery(after, kinds)
                    changed = recovery_change(before, after, kinds)
                    row.append(percent(ratio.mean, ratio.low, ratio.high))
                    row.append("–" if run == "cold" else points(changed))
                yield row
            missing = [str(seed) for seed in SEEDS if seed not in seeds]
            if missing:
                yield [f"{run}, seeds {', '.join(missing)}", NOT_RUN, *["–"] * 4]

    return _figures(head, rows())


def _wholes(results: Results, run: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    return [results[f"{run}-{seed}"]["evaluations"]["whole"] for seed in seeds]


def observed_table(results: Results) -> list[str]:
    """The use of the tool and the observed recovery in the rollouts of the training.

    Args:
        results: The results.
    """
    head = (
        *("run, steps", "with code", "first code at", "calls that ran"),
        *("failed calls", "next call ran", "right after a failed call"),
    )

    def rows() -> Iterator[list[str]]:
        for run, seed, part in _pairs(results, tuple(ALGORITHMS)):
            if part is None:
                yield [f"{run}, seed {seed}", NOT_RUN, *["–"] * 5]
                continue
            before = 0
            for last, summary in part["training"].items():
                own = summary["recovery"]
                yield [
                    f"{run}, seed {seed}, {before + 1} to {last}",
                    _percent_of(summary["code_ratio"]),
                    _percent_of(summary["first_call_at"]),
                    _percent_of(summary["call_pass_rate"]),
                    f"{own['next_call_ok']['count']:,}",
                    *(_estimate(own[key]) for key in ("next_call_ok", "accuracy")),
                ]
                before = int(last)

    return _figures(head, rows())


def _percent_of(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _estimate(estimate: dict[str, Any]) -> str:
    interval = estimate["interval"]
    return "–" if interval is None else percent(*(interval[k] for k in ("mean", "low", "high")))


def kinds_table(results: Results) -> list[str]:
    """The effect and the recovery ratio of each kind, before and after GRPO, all seeds that ran.

    Args:
        results: The results.
    """
    runs = ("cold", "grpo", "faults25")
    seeds = {run: [s for s in SEEDS if f"{run}-{s}" in results] for run in runs}

    def rows() -> Iterator[list[str]]:
        for group in GROUPS if any(seeds.values()) else ():
            for kind in (k for k in KINDS.values() if group_of(k.name) == group):
                row = [f"**{group}**" if group == GROUPS[1] else group]
                row += [f"`{kind.name}`" + r" \*" * kind.invented, kind.sort]
                for run in runs:
                    kept = recovery(_wholes(results, run, seeds[run]), [kind.name])
                    many = f", n = {kept.count}" if kept.count else ""
                    text = percent(kept.mean, kept.low, kept.high)
                    row.append(f"{text}{many}" if seeds[run] else NOT_RUN)
                yield row

    return _figures(
        ("", "kind", "sort", "cold start", "after GRPO", "after GRPO, faults 0.25"), rows()
    )


def faults_table(results: Results) -> list[str]:
    """Training under faults: recovery from held-out kinds, and accuracy, against rate 0.

    Args:
        results: The results.
    """
    head = ("fault rate, seed", "right without faults", "change", "held-out kinds: ratio", "change")

    def rows() -> Iterator[list[str]]:
        for run, rate in RATES.items():
            for seed in SEEDS:
                name = f"{rate:g}, seed {seed}"
                if not {f"{run}-{seed}", f"grpo-{seed}"} <= results.keys():
                    yield [name, NOT_RUN, *["–"] * 3]
                    continue
                base, own = (_wholes(results, each, [seed]) for each in ("grpo", run))
                ratio, mean = recovery(own, kinds_of(False)), accuracy(own)
                changes = accuracy_change(base, own), recovery_change(base, own, kinds_of(False))
                texts = [points(change) if rate else "–" for change in changes]
                yield [
                    name,
                    percent(mean.mean, mean.low, mean.high),
                    texts[0],
                    percent(ratio.mean, ratio.low, ratio.high),
                    texts[1],
                ]

    return _figures(head, rows())


def values_table(results: Results) -> list[str]:
    """Study D: noticed, and adopted, by the distance of the false value.

    Args:
        results: The results.
    """
    head = ("model", "false value", "cases", "noticed", "adopted (contagion)", "right")

    def rows() -> Iterator[list[str]]:
        parts = [part for part in results.values() if "values" in part]
        if not parts:
            yield ["all", NOT_RUN, *["–"] * 4]
        for part in parts:
            for model, measured in part["values"].items():
                for name in DISTANCES:
                    own = measured["figures"][name]
                    yield [
                        model,
                        name,
                        str(own["noticed"]["count"]),
                        *(points(_change(own[key])) for key in ("noticed", "contagion")),
                        percent(*(own["right"][k] for k in ("mean", "low", "high"))),
                    ]

    return _figures(head, rows())


def _change(mean: dict[str, Any]) -> Change:
    return Change(mean["mean"], mean["low"], mean["high"], mean["clusters"])
