"""Tables of figures, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from retool_env.metrics.figures import Figure
from retool_env.metrics.intervals import FEW_CASES, Estimate, Interval
from retool_env.metrics.summary import Summary
from retool_env.protocol.program import FORMS, Form

COLUMNS: Mapping[str, Callable[[Summary], str]] = {
    "accuracy, 95 % interval": lambda s: _text(s.accuracy, "{}"),
    "with code": lambda s: _text(s.code_ratio, "{:.1%}"),
    "calls an episode": lambda s: _text(s.calls_per_episode, "{:.2f}"),
    "calls that ran": lambda s: _text(s.call_pass_rate, "{:.1%}"),
    "tokens": lambda s: _text(s.response_tokens, "{:.0f}"),
    "episodes": lambda s: f"{s.episodes}" + (f" (+{s.failed} failed)" if s.failed else ""),
}
"""The columns of a table of summaries: a function for each heading."""


def _share(summary: Summary, form: Form) -> str:
    """The share of calls whose program has a form."""
    if not summary.call_forms or not summary.calls:
        return "–"
    return f"{summary.call_forms[form] / summary.calls:.1%}"


def _recovery(field: str, form: Callable[[Interval], str] = str) -> Callable[[Summary], str]:
    """The text of a figure of recovery."""
    return lambda s: _shown(getattr(s.recovery, field) if s.recovery else None, form)


def _number(interval: Interval) -> str:
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


TOOL_USE: Mapping[str, Callable[[Summary], str]] = {
    "calls that ran, in all": lambda s: _text(s.calls_ok, "{}") + f" of {s.calls}",
    "lines of code a response": lambda s: _text(s.code_lines, "{:.1f}"),
    "first call at, of a response": lambda s: _text(s.first_call_at, "{:.1%}"),
    "last call ran, right responses": lambda s: _shown(s.last_call_ok_right),
    "last call ran, wrong responses": lambda s: _shown(s.last_call_ok_wrong),
    "failed calls whose next one ran": _recovery("next_call_ok"),
    "failed calls whose next one failed alike": _recovery("same_error"),
    "errors mended later": _recovery("mended"),
    "turns to mend one": _recovery("turns", _number),
    "right, of episodes with an error": _recovery("accuracy"),
    **{f"programs: {form}": partial(_share, form=form) for form in FORMS},
}
"""The rows of a table of tool use: a function for each heading."""


def table(rows: Mapping[str, Summary]) -> str:
    """Returns a Markdown table with one row for each summary, aligned for a terminal.

    Args:
        rows: The summaries by the name of their row.
    """
    cells = [["", *COLUMNS]]
    cells += [[name, *(show(s) for show in COLUMNS.values())] for name, s in rows.items()]
    return markdown(cells)


def tool_table(columns: Mapping[str, Summary]) -> str:
    """Returns a Markdown table of tool use and recovery, with one column for each summary.

    A share has its 95 % interval and its number of cases. A figure on fewer than 50 cases has the
    mark `†`, and a line below the table says so.

    Args:
        columns: The summaries by the name of their column.
    """
    cells = [["", *columns]]
    cells += [[name, *(show(s) for s in columns.values())] for name, show in TOOL_USE.items()]
    return _noted(cells)


def figures_table(figures: Sequence[Figure]) -> str:
    """A Markdown table of figures, a row each: key, mean with its 95 % interval, number of cases.

    No figure is left out. A figure on fewer than 50 cases has the mark `†`, and a line below the
    table says so. An unbounded interval, of one problem, is written `[–, –]`.

    Args:
        figures: The figures, in the order of the rows.
    """
    cells = [["figure", "mean [95 % interval]", "n"]]
    cells += [
        [figure.key, interval_text(figure), f"{figure.count}{' †' * figure.marked}"]
        for figure in figures
    ]
    return _noted(cells)


def _noted(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with a line that explains the mark `†` where a cell has it."""
    marked = any("†" in cell for row in cells for cell in row)
    return markdown(cells) + f"\n\n† fewer than {FEW_CASES} cases" * marked


def interval_text(figure: Figure) -> str:
    """A figure's mean with its 95 % interval; a dash without a case."""
    if figure.mean is None:
        return "–"
    low, high = (_text(bound, "{:.4g}") for bound in (figure.low, figure.high))
    return f"{figure.mean:.4g} [{low}, {high}]"


_FUNNEL = ("attempted", "well_formed", "ran", "right")


def highlights(figures: Sequence[Figure]) -> list[str]:
    """A few lines on figures that the tables lack: samples, the funnel of use, doubtful verdicts.

    Args:
        figures: All figures of one evaluation (`retool_env.metrics.measure`).
    """
    known = {figure.key: figure for figure in figures if figure.mean is not None}
    sizes = [int(key.rpartition("@")[2]) for key in known if key.startswith("accuracy/pass@")]
    lines = []
    if sizes and (k := max(sizes)) > 1:
        names = (f"pass@{k}", f"pass^{k}", f"maj@{k}")
        lines.append(", ".join(f"{n} {_percent(known[f'accuracy/{n}'])}" for n in names))
    if all(f"use/{stage}" in known for stage in _FUNNEL):
        stages = [f"{s.replace('_', ' ')} {_percent(known[f'use/{s}'])}" for s in _FUNNEL]
        lines.append(f"use of the interpreter: {' → '.join(stages)}")
    for key, figure in known.items():
        if key.startswith(("warning/", "use/missed/")) and figure.mean:
            lines.append(f"look at {_percent(figure)}: {figure.definition}")
    return lines


def _percent(figure: Figure) -> str:
    """A share with its interval, for a line of text."""
    text = f"{100 * (figure.mean or 0):.1f} %"
    if figure.low is not None and figure.high is not None:
        text += f" [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"
    return text + " †" * figure.marked


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, from its rows; the first row is the head.

    A bar in a cell is escaped, and line breaks become blanks, so a text stays in its cell.
    """
    cells = [[" ".join(cell.splitlines()).replace("|", "\\|") for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _text(value: object, form: str) -> str:
    return "–" if value is None else form.format(value)


def _shown(estimate: Estimate | None, form: Callable[[Interval], str] = str) -> str:
    return "–" if estimate is None else estimate.shown(form)
