"""The leaderboard as a page, as Markdown and as JSON, and its short form for the terminal.

A figure that can't be shown is a dash with a letter; the reason stands below the table.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retool_env.evaluation.document import Document, check_place
from retool_env.evaluation.folder import replace_json
from retool_env.evaluation.leaderboard.entries import Entry, LeftOutRun, Table
from retool_env.evaluation.leaderboard.measures import FAMILIES, SPLITS
from retool_env.evaluation.leaderboard.ranks import PairTest, pair_tests, rank_intervals
from retool_env.evaluation.recover.records import RecoverRecord
from retool_env.evaluation.recover.sections import NO_CASE, Notes, percent, points
from retool_env.evaluation.recover.submission import CAN_NOT_SHOW
from retool_env.metrics.figure import Figure
from retool_env.metrics.tables import markdown
from retool_env.printable import one_line

SCHEMA = 1
"""The version of `leaderboard.json`."""

NAMES = ("leaderboard.html", "leaderboard.md", "leaderboard.json")
"""The files of the leaderboard."""

Columns = Sequence[tuple[str, str]]
"""Key and heading of figures."""

HEADINGS = {
    "accuracy": "right",
    "uplift": "uplift by the tool",
    "faults": "right after a fault",
}
"""The headings of the figures by which models are ranked."""

_MAIN: Columns = (*HEADINGS.items(), ("effect", "fault effect"))
_USE: Columns = (
    *(("attempted", "attempts"), ("well_formed", "well formed"), ("ran", "ran")),
    ("invented", "invented output"),
)

_TERMINAL: Columns = tuple(HEADINGS.items())
_COST: Columns = (("tokens", "tokens written"), ("dollars", "dollars"))
_FAMILIES = {
    "explicit": "explicit",
    "explicit_persistent": "explicit, persistent",
    "silent": "silent",
    "silent_persistent": "silent, persistent",
    "placebo": "placebo (control)",
}
_SPLITS = {"seen": "kinds that training may use", "held_out": "held-out kinds"}

_POINTS = ("uplift", "effect", "detection")


@dataclass(frozen=True)
class Row:
    """One model in a table."""

    entry: Entry
    """The run."""
    title: str
    """The name of the model, unique in its table."""
    rank: tuple[int, int] | None
    """The best and the worst possible rank; `None`: not ranked."""

    @property
    def rank_text(self) -> str:
        """The rank as a text: `2`, `1–3`, or a dash."""
        if self.rank is None:
            return "–"
        best, worst = self.rank
        return str(best) if best == worst else f"{best}–{worst}"


@dataclass(frozen=True)
class Ranked:
    """A table whose models are ranked."""

    table: Table
    """The table."""
    by: str
    """The key of the figure that ranks."""
    rows: tuple[Row, ...]
    """The models, the best first; models without a rank last."""
    tests: tuple[PairTest, ...]
    """The tests between the models that have a rank, by their index in `rows`."""


def ranked(table: Table, by: str) -> Ranked:
    """Ranks the models of a table.

    A model has no rank if a check failed, or without a case of the figure. A figure that is not
    shown for want of an interval still ranks, because the ranks rest on the tests between models.

    Args:
        table: The table.
        by: The key of a figure, one of `measures.RANKED`.
    """
    able = [e for e in table.entries if not e.distrusted and e.measures.values.get(by)]
    able.sort(key=lambda entry: -(entry.measures.figures[by].mean or 0.0))
    tests = pair_tests([entry.measures.values[by] for entry in able])
    ranks = dict(zip(map(id, able), rank_intervals(len(able), tests), strict=True))
    entries = [*able, *(entry for entry in table.entries if id(entry) not in ranks)]
    titles = [one_line(entry.record.model.title) for entry in entries]
    rows = [
        Row(
            entry,
            title if titles.count(title) == 1 else f"{title} ({one_line(entry.name)})",
            ranks.get(id(entry)),
        )
        for entry, title in zip(entries, titles, strict=True)
    ]
    return Ranked(table, by, tuple(rows), tuple(tests))


def _hidden(figure: Figure) -> str:
    """The reason why a figure is not shown; empty if it is shown."""
    if getattr(figure, "shown", True) and figure.mean is not None:
        return ""
    return getattr(figure, "reason", "") or NO_CASE


def cell(figure: Figure, notes: Notes) -> str:
    """A figure with its 95 % interval and its number of cases and problems.

    Args:
        figure: The figure.
        notes: The reasons for dashes.
    """
    if reason := _hidden(figure):
        return notes.dash(reason)
    form = _form(figure.key)
    assert figure.mean is not None  # it is shown
    bounds = (figure.low, figure.high)
    ends = ("–" if bound is None else form(bound).removesuffix(" %") for bound in bounds)
    size = f"n {figure.count:,} ({figure.problems})"
    return f"{form(figure.mean)} [{', '.join(ends)}] {size}"


def _form(key: str) -> Callable[[float], str]:
    if key == "dollars":
        return "${:,.4f}".format
    if key == "tokens":
        return "{:,.0f}".format
    if key.startswith("recovery/"):
        return "{:.2f}".format
    return points if key.partition("/")[0] in _POINTS else percent


def _cells(rows: Iterable[Row], columns: Columns, notes: Notes) -> list[list[str]]:
    """A table with a row for each model."""
    body = [
        [row.title, *(cell(row.entry.measures.figures[key], notes) for key, _ in columns)]
        for row in rows
    ]
    return [["model", *(heading for _, heading in columns)], *body]


def _first_table(one: Ranked, columns: Columns, notes: Notes) -> list[list[str]]:
    """Model, rank, whether the run was checked, and figures."""
    (model, *head), *body = _cells(one.rows, columns, notes)
    return [
        [model, "rank", "checked", *head],
        *(
            [title, row.rank_text, checked_text(row.entry), *cells]
            for row, (title, *cells) in zip(one.rows, body, strict=True)
        ),
    ]


def checked_text(entry: Entry) -> str:
    """Whether the checks of a run passed."""
    if entry.findings is None:
        return "unchecked"
    return f"FAILED: {', '.join(entry.failed)}" if entry.failed else "passed"


def _visible_text(entry: Entry) -> str:
    measures = entry.measures
    if not measures.visible:
        return "no"
    return f"yes: {measures.visible} of {measures.prefixes} prefixes"


def document(tables: Sequence[Ranked], left_out: Sequence[LeftOutRun]) -> Document:
    """The page.

    Args:
        tables: The tables, in their order.
        left_out: The runs that are in no table.
    """
    page = Document("Leaderboard of models with a code interpreter")
    by = HEADINGS[tables[0].by] if tables else ""
    page.paragraph(
        f"Models are ranked by the column “{by}”. A rank such as 1–3 is an interval: the data "
        "can't tell the model from the other models with these ranks. Two models have ranks apart "
        "only if a paired t test over their common problems, adjusted by Holm's method over all "
        "pairs of the table, finds a difference at 5 %."
    )
    page.paragraph(
        "Each cell holds the figure, its 95 % interval over problems, and the number of cases and, "
        "in brackets, of problems. Uplift, effect and detection are differences in points of "
        "percent."
    )
    if len(tables) > 1:
        page.warning(
            "Runs of different settings are not comparable. They stand in different tables, and no "
            "rank goes across tables."
        )
    for number, one in enumerate(tables, 1):
        _add_table(page, number, one, tables[0])
    if left_out:
        page.heading("Left out")
        page.listing(f"{one_line(run.name)}: {one_line(run.reason, 400)}" for run in left_out)
    page.heading("What do the checks show?")
    page.paragraph(
        "A check computes the verdicts anew, compares each fork with its parent and each faulty "
        "result with its fault, and runs a sample of the programs again. A run that fails has no "
        f"rank. {CAN_NOT_SHOW} An unchecked run may have been altered at any place."
    )
    return page


def _add_table(page: Document, number: int, one: Ranked, first: Ranked) -> None:
    notes, settings = Notes(), one.table.settings
    page.heading(f"{number}. {one.table.title}")
    page.paragraph(f"Revision {settings['revision']}, problems {settings['fingerprint'][:12]}.")
    if one is not first:
        page.paragraph("It differs from table 1 in these settings:")
        page.listing(one.table.differences(first.table))
    page.table(_first_table(one, _MAIN, notes))
    page.table(_cells(one.rows, _USE, notes), "Use of the tool in episodes without faults")
    if settings["command"] == "retool recover":
        for split in SPLITS:
            columns = [(f"recovery/{name}/{split}", _FAMILIES[name]) for name in FAMILIES]
            columns.append((f"detection/{split}", "notices, net of control"))
            caption = f"Recovery ratio after faults: {_SPLITS[split]}"
            page.table(_cells(one.rows, columns, notes), caption)
    page.table(_costs(one.rows, notes), "Cost and sampling of an episode without faults")
    for reason, letter in notes.reasons.items():
        page.paragraph(f"({letter}) not shown: {one_line(reason, 200)}.", small=True)
    with page.details("Settings, tests between the models, checks and definitions"):
        page.table([["setting", "value"], *([n, _value(v)] for n, v in settings.items())])
        if one.tests:
            page.table(_tests(one), f"Tests of “{HEADINGS[one.by]}”: the first minus the second")
        for row in one.rows:
            if row.entry.findings:
                page.paragraph(f"Checks of {row.title}:")
                page.listing(one_line(str(finding), 300) for finding in row.entry.findings)
        figures = one.rows[0].entry.measures.figures.items()
        page.listing(f"{key}: {figure.definition}" for key, figure in figures if figure.definition)


def _value(value: object) -> str:
    return one_line(value if isinstance(value, str) else json.dumps(value), 300)


def _costs(rows: Iterable[Row], notes: Notes) -> list[list[str]]:
    head, *body = _cells(rows, _COST, notes)
    names = ("behind", "reasoning hidden", "parents, forks, samples", "sampling", "weights", "run")
    made = [[*head, *names]]
    for row, cells in zip(rows, body, strict=True):
        record = row.entry.record
        sizes = [record.k, *(getattr(record, name, "–") for name in ("m", "samples"))]
        made.append(
            [
                *cells,
                "an API" if record.model.kind == "api" else "local weights",
                _visible_text(row.entry) if isinstance(record, RecoverRecord) else "–",
                ", ".join(map(str, sizes)),
                one_line(", ".join(f"{name} {v}" for name, v in record.sampling.items()), 200),
                one_line(record.model.fingerprint) or "–",
                one_line(row.entry.name),
            ]
        )
    return made


def _tests(one: Ranked) -> list[list[str]]:
    head = ["first", "second", "problems", "difference, points", "p", "p, by Holm"]
    made = [head]
    for test in one.tests:
        ends = ["–" if b is None else points(b) for b in (test.low, test.high)]
        shown = "–" if test.difference is None else points(test.difference)
        made.append(
            [
                one.rows[test.first].title,
                one.rows[test.second].title,
                str(test.problems),
                f"{shown} [{', '.join(ends)}]",
                *("–" if p is None else f"{p:.4f}" for p in (test.p, test.adjusted)),
            ]
        )
    return made


def terminal(tables: Sequence[Ranked], left_out: Sequence[LeftOutRun]) -> str:
    """The ranks and the main figures as Markdown tables, and the runs that are left out.

    Args:
        tables: The tables.
        left_out: The runs that are in no table.
    """
    lines: list[str] = []
    for number, one in enumerate(tables, 1):
        notes = Notes()
        rows = _first_table(one, _TERMINAL, notes)
        lines += [
            f"{number}. {one.table.title}, ranked by “{HEADINGS[one.by]}”",
            "",
            markdown(rows),
        ]
        lines += [f"({letter}) {one_line(why, 200)}" for why, letter in notes.reasons.items()]
        if number > 1:
            differing = one.table.differences(tables[0].table)
            lines.append(f"not comparable with table 1: {'; '.join(differing)}")
        lines.append("")
    lines += [f"left out: {one_line(r.name)}: {one_line(r.reason, 400)}" for r in left_out]
    return "\n".join(lines).rstrip("\n")


def to_json(tables: Sequence[Ranked], left_out: Sequence[LeftOutRun]) -> dict[str, Any]:
    """The content of `leaderboard.json`.

    Args:
        tables: The tables.
        left_out: The runs that are in no table.
    """
    return {
        "schema": SCHEMA,
        "tables": [
            {
                "title": one.table.title,
                "by": one.by,
                "settings": one.table.settings,
                "rows": [_row_json(row) for row in one.rows],
                "tests": [dataclasses.asdict(test) for test in one.tests],
            }
            for one in tables
        ],
        "left_out": [dataclasses.asdict(run) for run in left_out],
    }


def _row_json(row: Row) -> dict[str, Any]:
    entry = row.entry
    record = entry.record
    return {
        "rank": None if row.rank is None else list(row.rank),
        "model": dataclasses.asdict(record.model),
        "run": entry.name,
        "checks": None
        if entry.findings is None
        else [dataclasses.asdict(finding) for finding in entry.findings],
        "sampling": record.sampling,
        "sizes": {name: getattr(record, name, None) for name in ("k", "m", "samples")},
        "visible": {"prefixes": entry.measures.prefixes, "visible": entry.measures.visible},
        "figures": {key: figure.to_json() for key, figure in entry.measures.figures.items()},
    }


def write(tables: Sequence[Ranked], left_out: Sequence[LeftOutRun], folder: Path) -> list[Path]:
    """Writes the page, the Markdown and the JSON, in place of earlier ones.

    Args:
        tables: The tables.
        left_out: The runs that are in no table.
        folder: The folder of the files; it is made.

    Returns:
        The files.

    Raises:
        SettingsError: A file of this name is not of an earlier leaderboard.
    """
    paths = [folder / name for name in NAMES]
    check_place(paths[0], NAMES[1:])
    page = document(tables, left_out)
    page.write(paths[0])
    paths[1].write_text(page.markdown(), encoding="utf-8")
    replace_json(paths[2], to_json(tables, left_out))
    return paths
