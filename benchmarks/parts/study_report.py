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

from benchmarks.parts.study_cells import NOT_RUN, figures_of, percent, points, pooled, rows_of
from benchmarks.parts.study_figures import (
    GROUPS,
    Change,
    accuracy,
    accuracy_change,
    group_of,
    kinds_of,
    pairs_of,
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
from retool_env.metrics.causal.intervals import difference

PICTURE, VALUES_PICTURE = "recovery_study.png", "recovery_values.png"
"""The names of the pictures, beside the page."""
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
        "versus": lambda: versus_table(results),
        "sorts": lambda: sorts_table(results),
        "kinds": lambda: kinds_table(results),
        "effects": lambda: kinds_table(results, effect=True),
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


def _figure(evaluation: dict[str, Any], key: str) -> str:
    figure = evaluation["figures"].get(key)
    if figure is None or figure["mean"] is None:
        return "–"
    text = percent(figure["mean"], figure["low"], figure["high"])
    return text if figure["shown"] else "not shown"


def _named(run: str, seeds: Sequence[int]) -> str:
    return f"{run}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _common(results: Results, *runs: str) -> list[int]:
    """The seeds of which all these runs are done."""
    return [seed for seed in SEEDS if all(f"{run}-{seed}" in results for run in runs)]


def _each_and_all(seeds: Sequence[int]) -> list[list[int]]:
    return [[seed] for seed in seeds] + ([list(seeds)] if len(seeds) > 1 else [])


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
    return [*lines, "", *rows_of(("study", "part", "hours", "state", "command"), rows())]


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

    return figures_of(head, rows())


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
            seeds = _common(results, run, "cold")
            for some in _each_and_all(seeds):
                row = [
                    _named(run, some),
                    "–" if run == "cold" else _accuracy_text(results, "cold", run, some),
                ]
                for seen in (True, False):
                    kinds = kinds_of(seen)
                    ratio = recovery(_wholes(results, run, some), kinds)
                    row.append(percent(ratio.mean, ratio.low, ratio.high))
                    row.append(
                        "–" if run == "cold" else _change_text(results, "cold", run, some, kinds)
                    )
                yield row
            missing = [seed for seed in SEEDS if seed not in seeds]
            if missing:
                yield [_named(run, missing), NOT_RUN, *["–"] * 4]

    return figures_of(head, rows())


def _accuracy_text(results: Results, base: str, run: str, seeds: Sequence[int]) -> str:
    def change(some: Sequence[int]) -> Change:
        return accuracy_change(_wholes(results, base, some), _wholes(results, run, some))

    return pooled(change, seeds)


def _change_text(
    results: Results, base: str, run: str, seeds: Sequence[int], kinds: Sequence[str]
) -> str:
    def change(some: Sequence[int]) -> Change:
        return recovery_change(_wholes(results, base, some), _wholes(results, run, some), kinds)

    return pooled(change, seeds)


def versus_table(results: Results) -> list[str]:
    """The other algorithms against GRPO, at the seeds of which both are done.

    Args:
        results: The results.
    """

    def rows() -> Iterator[list[str]]:
        for run in (name for name in ALGORITHMS if name != "grpo"):
            seeds = _common(results, run, "grpo")
            for some in _each_and_all(seeds):
                ratios = (
                    _change_text(results, "grpo", run, some, kinds_of(seen))
                    for seen in (True, False)
                )
                yield [_named(run, some), _accuracy_text(results, "grpo", run, some), *ratios]
            if missing := [seed for seed in SEEDS if seed not in seeds]:
                yield [_named(run, missing), NOT_RUN, *["–"] * 2]

    return figures_of(("run", "accuracy", "seen kinds: ratio", "held-out kinds: ratio"), rows())


def sorts_table(results: Results) -> list[str]:
    """The change of the recovery ratio against the cold start, explicit and silent kinds apart.

    Args:
        results: The results.
    """
    head = (
        "run",
        *(f"{g}, {sort}" for g in ("seen", "held out") for sort in ("explicit", "silent")),
    )

    def rows() -> Iterator[list[str]]:
        for run in (*ALGORITHMS, *(name for name, rate in RATES.items() if rate)):
            if seeds := _common(results, run, "cold"):
                groups = [
                    [kind for kind in kinds_of(seen) if KINDS[kind].sort == sort]
                    for seen in (True, False)
                    for sort in ("explicit", "silent")
                ]
                texts = (_change_text(results, "cold", run, seeds, kinds) for kinds in groups)
                yield [_named(run, seeds), *texts]
            else:
                yield [_named(run, SEEDS), NOT_RUN, *["–"] * 3]

    return figures_of(head, rows())


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

    return figures_of(head, rows())


def _percent_of(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _estimate(estimate: dict[str, Any]) -> str:
    interval = estimate["interval"]
    return "–" if interval is None else percent(*(interval[k] for k in ("mean", "low", "high")))


def kinds_table(results: Results, effect: bool = False) -> list[str]:
    """The recovery ratio of each kind before and after GRPO, at the seeds of which all models ran.

    Args:
        results: The results.
        effect: Whether the table has the fault effect in points instead.
    """
    runs = ("cold", "grpo", "faults25")
    seeds = _common(results, *runs)
    suffix = f", {_named('', seeds)[2:]}" if seeds else ""
    names = ("cold start", "after GRPO", "after GRPO, faults 0.25")

    def text(run: str, kind: str) -> str:
        if not seeds:
            return NOT_RUN
        if effect:
            pairs = pairs_of(_wholes(results, run, seeds), [kind])[kind]
            found = difference(pairs)
            change = Change(found.mean, found.low, found.high, found.clusters)
            return "–" if found.mean is None else points(change).rpartition(":")[0]
        kept = recovery(_wholes(results, run, seeds), [kind])
        many = f", {kept.clusters} problems" if kept.count else ""
        return percent(kept.mean, kept.low, kept.high) + many

    def rows() -> Iterator[list[str]]:
        for group in GROUPS if seeds else ():
            for kind in (k for k in KINDS.values() if group_of(k.name) == group):
                row = [f"**{group}**" if group == GROUPS[1] else group]
                row += [f"`{kind.name}`" + r" \*" * kind.invented, kind.sort]
                yield row + [text(run, kind.name) for run in runs]

    return figures_of(("", "kind", "sort", *(name + suffix for name in names)), rows())


def faults_table(results: Results) -> list[str]:
    """Training under faults: accuracy, and recovery from seen and held-out kinds, against rate 0.

    Args:
        results: The results.
    """
    head = (
        *("fault rate, seed", "right without faults", "change", "seen kinds: change"),
        *("held-out kinds: ratio", "change"),
    )

    def rows() -> Iterator[list[str]]:
        for run, rate in RATES.items():
            seeds = _common(results, run, "grpo")
            for some in _each_and_all(seeds):
                own = _wholes(results, run, some)
                mean, ratio = accuracy(own), recovery(own, kinds_of(False))
                changes = ["–"] * 3
                if rate:
                    changes = [
                        _accuracy_text(results, "grpo", run, some),
                        *(
                            _change_text(results, "grpo", run, some, kinds_of(s))
                            for s in (True, False)
                        ),
                    ]
                kept = percent(ratio.mean, ratio.low, ratio.high)
                right = percent(mean.mean, mean.low, mean.high)
                yield [_named(f"{rate:g}", some), right, *changes[:2], kept, changes[2]]
            missing = [seed for seed in SEEDS if seed not in seeds]
            if missing:
                yield [_named(f"{rate:g}", missing), NOT_RUN, *["–"] * 4]

    return figures_of(head, rows())


def values_table(results: Results) -> list[str]:
    """Study D: noticed, and adopted, by the distance of the false value.

    Args:
        results: The results.
    """
    head = ("model", "value", "cases", "noticed", "adopted (contagion)", "right")

    def rows() -> Iterator[list[str]]:
        parts = [part for part in results.values() if "values" in part]
        if not parts:
            yield ["all", NOT_RUN, *["–"] * 4]
        for part in parts:
            for model, measured in part["values"].items():
                checks = measured["figures"][next(iter(DISTANCES))]["checks_of_true"]
                share = percent(*(checks[k] for k in ("mean", "low", "high")))
                yield [model, "the true one", str(checks["count"]), f"checked: {share}", "–", "–"]
                for name in DISTANCES:
                    own = measured["figures"][name]
                    yield [
                        model,
                        name,
                        str(own["noticed"]["count"]),
                        *(points(_change(own[key])) for key in ("noticed", "contagion")),
                        percent(*(own["right"][k] for k in ("mean", "low", "high"))),
                    ]

    return figures_of(head, rows())


def _change(mean: dict[str, Any]) -> Change:
    return Change(mean["mean"], mean["low"], mean["high"], mean["clusters"])
