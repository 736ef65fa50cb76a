"""The page of `benchmarks.recovery`: tables and pictures of the parts that are done.

Everything on the page comes from the files of results, so it can be made anew without a run. A
claim with an interval that holds 0, or that rests on too few problems, is *not shown*; a part that
has not been run says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from agents.base.records import write_atomically
from benchmarks.parts.study_cells import NOT_RUN, rows_of
from benchmarks.parts.study_findings import findings_table
from benchmarks.parts.study_larger_tables import (
    larger_kinds_table,
    larger_next_table,
    larger_observed_table,
    larger_table,
)
from benchmarks.parts.study_pictures import Results, draw, draw_values, observed_and_causal
from benchmarks.parts.study_plan import STUDIES, Plan, all_parts, hours_left
from benchmarks.parts.study_tables import (
    after_faults_table,
    along_table,
    faults_table,
    kinds_table,
    observed_table,
    recovery_table,
    sorts_table,
    use_changes_table,
    use_table,
    values_table,
    versus_table,
)

PICTURE, VALUES_PICTURE = "recovery_study.png", "recovery_values.png"
"""The names of the pictures, beside the page."""
HEAD = Path(__file__).with_name("recovery_study.md")
"""The text of the page around the tables, with a line `{{name}}` for each table."""


def read_parts(plan: Plan) -> Results:
    """The results of the parts that are done.

    Args:
        plan: The plan.

    Raises:
        SettingsError: If a file is damaged, or belongs to other weights.
    """
    done = [part for part in all_parts() if plan.done(part.name) and not part.elsewhere]
    return {part.name: plan.read(part.name) for part in done}


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
        "findings": lambda: findings_table(results),
        "parts": lambda: parts_table(plan, results),
        "use": lambda: use_table(results),
        "use_changes": lambda: use_changes_table(results),
        "recovery": lambda: recovery_table(results),
        "along": lambda: along_table(results),
        "observed": lambda: observed_table(results),
        "versus": lambda: versus_table(results),
        "sorts": lambda: sorts_table(results),
        "kinds": lambda: kinds_table(results),
        "effects": lambda: kinds_table(results, effect=True),
        "after_faults": lambda: after_faults_table(results),
        "faults": lambda: faults_table(results),
        "larger": lambda: larger_table(results),
        "larger_kinds": lambda: larger_kinds_table(results),
        "larger_next": lambda: larger_next_table(results),
        "larger_observed": lambda: larger_observed_table(results),
        "values": lambda: values_table(results),
        "picture": lambda: [_image(PICTURE, bool(series), "observed and causal recovery")],
        "values_picture": lambda: [_image(VALUES_PICTURE, has_values, "study D")],
    }
    lines = []
    for line in HEAD.read_text(encoding="utf-8").splitlines():
        name = line.strip("{}")
        lines += tables[name]() if line == f"{{{{{name}}}}}" else [line]
    write_atomically(page, "\n".join(lines) + "\n")
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


def parts_table(plan: Plan, results: Results) -> list[str]:
    """The parts: studies, hours, and whether they are done.

    Args:
        plan: The plan.
        results: The results.
    """

    def rows() -> Iterator[list[str]]:
        for part in all_parts():
            state = "done" if plan.done(part.name) else NOT_RUN
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
