"""The page of one or several models: a table for the terminal, PNG files, and one HTML file."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retool_env.errors import DataError
from retool_env.evaluation.fields import checked
from retool_env.evaluation.folder import replace_json
from retool_env.evaluation.recover.figures import RESULT_FIELDS, SCHEMA
from retool_env.evaluation.recover.pictures import Results, draw, titles_of
from retool_env.evaluation.recover.records import RESULTS
from retool_env.evaluation.recover.sections import (
    NO_CASE,
    SECTIONS,
    Notes,
    Section,
    Table,
    by_key,
    comparison_table,
    counted,
    failures_table,
    hidden,
    kinds_table,
    rows_table,
    usage_table,
    value_text,
)
from retool_env.files import read_text
from retool_env.metrics.tables import markdown

PAGE = "page.html"
"""The name of the page."""

COMPARISONS = "comparisons.json"
"""The paired tests between models, beside the page of several models."""

_CAPTIONS = {
    "heat-map": "Effect of each fault in points; in brackets the recovery ratio, where it is "
    "shown.",
    "recovery": "Accuracy after a fault, against accuracy with the true result. On the line, a "
    "fault costs nothing.",
    "dose": "Accuracy and calls against the rate of faults, with 95 % intervals.",
    "outcomes": "Forked episodes by their state after further calls, with their number. The shares "
    "sum to 100 %.",
}

_TERMINAL = (("effect", "effect"), ("ratio", "recovery ratio"), ("detection/net", "notices, net"))
"""The columns of the faults in the terminal; the page has all."""

_MOST_KEYS = 8
"""The most hidden figures that the terminal names for one reason; the page names all."""


def read_results(folder: str | Path) -> dict[str, Any]:
    """Reads `results.json`.

    Args:
        folder: The folder of a model in the benchmark.

    Raises:
        DataError: The file is missing, damaged, or of a later version.
    """
    path = Path(folder) / RESULTS
    try:
        return checked(json.loads(read_text(path)), SCHEMA, RESULT_FIELDS)
    except FileNotFoundError:
        raise DataError(
            f"{path} was not found: name the folder of a finished `retool recover`"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error!s:.200}") from None


def comparable(results: Sequence[Results]) -> str:
    """The reason why several results can't be compared; empty if they can."""
    for name in ("suite_hash", "fingerprint", "revision"):
        values = sorted({str(one[name])[:12] for one in results})
        if len(values) > 1:
            return f"these folders differ in {name} ({', '.join(values)}): they can't be compared"
    if len({tuple(one["kinds"]) for one in results}) > 1:
        return "these folders differ in the kinds of faults: their dose curves can't be compared"
    return ""


def table(results: Sequence[Results], compared: Sequence[Mapping[str, Any]] = ()) -> str:
    """The main figures of each model as Markdown tables, and the figures that are not shown.

    Args:
        results: The results of each model.
        compared: The paired tests between the models.
    """
    titles, figures, notes = titles_of(results), [by_key(one) for one in results], Notes()
    tables = [rows_table(section, figures, titles, notes) for section in SECTIONS]
    rows = [row for one in tables for row in one[1:]]
    lines = [markdown([["", *titles], *rows])]
    for title, one, some in zip(titles, results, figures, strict=True):
        kinds, absent = kinds_table(_TERMINAL, some, notes)
        if kinds:
            lines += ["", markdown([[title, *kinds[0][1:]], *kinds[1:]])]
        lines += ["", title, *counted(one["counts"])]
        if absent:
            lines.append(f"no prefix is eligible for {', '.join(absent)}")
        for why, keys in hidden(some).items():
            more = len(keys) - _MOST_KEYS
            listed = ", ".join(keys[:_MOST_KEYS]) + f" and {more} more" * (more > 0)
            letter = notes.reasons.get(why)
            lines.append(f"not shown{f' ({letter})' if letter else ''}: {listed}: {why}")
    for pair in compared:
        first, second = (titles[pair[name] - 1] for name in ("first", "second"))
        heading, *tests = comparison_table(pair["tests"])
        lines += ["", markdown([[f"{first} − {second}", *heading[1:]], *tests])]
    if why := comparable(results):
        lines += ["", why]
    return "\n".join(lines)


def write_page(
    results: Sequence[Results], folder: Path, compared: Sequence[Mapping[str, Any]] = ()
) -> Path:
    """Writes the pictures and the page; the page needs no network and no other file.

    Args:
        results: The results of each model.
        folder: The folder of the files.
        compared: The paired tests between the models, which are also written.

    Returns:
        The page.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(results)
    for name, data in pictures.items():
        (folder / f"{name}.png").write_bytes(data)
    if len(results) > 1:
        replace_json(folder / COMPARISONS, {"pairs": list(compared)})
    path = folder / PAGE
    path.write_text(_page(results, pictures, compared), encoding="utf-8")
    return path


def _page(
    results: Sequence[Results],
    pictures: Mapping[str, bytes],
    compared: Sequence[Mapping[str, Any]],
) -> str:
    titles, first = titles_of(results), results[0]
    part = f"{first['part']}, quick" if first["quick"] else first["part"]
    body = [
        f"<h1>ReTool-Recover {_escaped(first['suite'])}: {_escaped(', '.join(titles))}</h1>",
        f"<p>{_INTRODUCTION}</p>",
        f"<p>Suite {_escaped(first['suite'])} ({_escaped(part)}), revision "
        f"{_escaped(first['revision'])}.</p>",
    ]
    if why := comparable(results):
        body.append(f"<p><strong>{_escaped(why)}</strong></p>")
    for section in SECTIONS:
        body += _section(section, results, titles, pictures)
        if section.title == SECTIONS[2].title:
            body += _compared(compared, titles)
    body += _costs(results, titles) + _not_shown(results, titles)
    body += [_details(one, title) for one, title in zip(results, titles, strict=True)]
    return _HTML.format(title=_escaped(", ".join(titles)), body="\n".join(body))


def _escaped(value: object) -> str:
    return html.escape(str(value))


def _section(
    section: Section,
    results: Sequence[Results],
    titles: Sequence[str],
    pictures: Mapping[str, bytes],
) -> list[str]:
    """The parts of a section; empty if it has neither a table nor a picture."""
    figures, notes, parts = [by_key(one) for one in results], Notes(), []
    if rows := rows_table(section, figures, titles, notes):
        parts.append(_table(rows))
    for title, some in zip(titles, figures, strict=True):
        kinds, absent = kinds_table(section.columns, some, notes)
        if len(kinds) > 1:
            parts += [f"<h3>{_escaped(title)}</h3>"] * (len(results) > 1) + [_table(kinds)]
        if absent and section.columns:
            names = _escaped(", ".join(absent))
            parts.append(f"<p><small>No prefix is eligible for {names}.</small></p>")
    for reason, letter in notes.reasons.items():
        parts.append(f"<p><small>({letter}) not shown: {_escaped(reason)}.</small></p>")
    for name, data in pictures.items():
        kind = next((one for one in section.pictures if name.startswith(one)), None)
        if kind is not None:
            parts.append(_picture(_escaped(_CAPTIONS[kind]), data))
    if not parts:
        return []
    return [f"<h2>{section.title}</h2>", f"<p>{_escaped(section.words)}</p>", *parts]


def _picture(caption: str, data: bytes) -> str:
    address = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return (
        f'<figure><div class="wide"><img src="{address}" alt="{caption}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(rows: Table) -> str:
    head = "".join(f"<th>{_escaped(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr><th>{_escaped(name)}</th>{''.join(f'<td>{_escaped(c)}</td>' for c in cells)}</tr>"
        for name, *cells in rows[1:]
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _compared(compared: Sequence[Mapping[str, Any]], titles: Sequence[str]) -> list[str]:
    parts = []
    for pair in compared:
        first, second = (_escaped(titles[pair[name] - 1]) for name in ("first", "second"))
        parts += [f"<h3>{first} minus {second}</h3>", _table(comparison_table(pair["tests"]))]
    words = (
        "The fault effects of two models, paired by problem. Above 0, the first model recovers "
        "better. Holm's method adjusts the p-values over the faults: below 0.05, the models differ."
    )
    return [f"<h2>Do the models differ?</h2><p>{words}</p>", *parts] if parts else []


def _costs(results: Sequence[Results], titles: Sequence[str]) -> list[str]:
    parts = ["<h2>What did the run cost?</h2>"]
    for title, one in zip(titles, results, strict=True):
        usage = one.get("usage")
        if usage and usage["arms"]:
            parts += [f"<h3>{_escaped(title)}</h3>"] * (len(results) > 1)
            parts.append(_table(usage_table(usage)))
            if usage["dollars"] is not None:
                words = f"All requests, also of lost episodes: ${usage['dollars']:,.2f}."
                parts.append(f"<p>{words}</p>")
    return parts if len(parts) > 1 else []


def _not_shown(results: Sequence[Results], titles: Sequence[str]) -> list[str]:
    """The cases that are left out, the hidden figures, and the bounds of failures."""
    parts = ["<h2>What is not shown, and why?</h2>"]
    for title, one in zip(titles, results, strict=True):
        figures = by_key(one)
        parts += [f"<h3>{_escaped(title)}</h3>"] * (len(results) > 1)
        parts.append(_listed(counted(one["counts"])))
        if failures := failures_table(figures):
            parts.append(
                "<p>Infrastructure failures do not count. If all had lowered or raised a figure, "
                "it would be:</p>"
            )
            parts.append(_table(failures))
        if reasons := hidden(figures):
            parts.append("<p>Figures that are not shown:</p>")
            parts.append(_listed(f"{why}: {', '.join(keys)}" for why, keys in reasons.items()))
    return parts


def _listed(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{_escaped(line)}</li>' for line in lines)}</ul>"


def _details(results: Results, title: str) -> str:
    names = (
        *("suite", "part", "suite_hash", "quick", "env", "revision", "k", "m", "samples", "seed"),
        *("protocols", "sampling", "model", "counts"),
    )
    settings = [["setting", "value"], *([name, json.dumps(results[name])] for name in names)]
    rows = [["figure", "mean [95 %]", "n", "problems", "meaning"]]
    for key, figure in by_key(results).items():
        shown = figure.get("shown", True) and figure["mean"] is not None
        value = value_text(figure) if shown else f"not shown: {figure.get('reason') or NO_CASE}"
        rows.append([key, value, str(figure["count"]), str(figure["problems"])])
        rows[-1].append(figure["definition"])
    return (
        f"<details><summary>Settings and all figures of {_escaped(title)}</summary>"
        f"{_table(settings)}{_table(rows)}</details>"
    )


_INTRODUCTION = (
    "How often the model uses its code interpreter, and how it recovers when a program fails or "
    "its result is false. Brackets hold 95 % intervals over problems. Differences are in points "
    "of percent."
)

_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ReTool-Recover: {title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8886; --soft: #8882; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 64rem;
  padding: 0 1rem; overflow-wrap: break-word; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; }}
h2 {{ font-size: 1.25rem; margin: 2.2rem 0 0.4rem; }}
h3 {{ font-size: 1rem; margin: 1rem 0 0; }}
p {{ max-width: 46rem; margin: 0.4rem 0; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.85rem; margin: 0.6rem 0;
  font-variant-numeric: tabular-nums; }}
td, th {{ border-bottom: 1px solid var(--line); padding: 0.25rem 0.8rem 0.25rem 0;
  text-align: left; vertical-align: top; }}
td {{ min-width: 4.5rem; white-space: nowrap; }}
details td {{ white-space: normal; }}
th {{ font-weight: 600; }}
tr > th:first-child {{ font-weight: 400; min-width: 9rem; position: sticky; left: 0;
  background: Canvas; }}
tr:first-child > th {{ font-weight: 600; border-bottom-width: 2px; }}
figure {{ margin: 1rem 0; }}
img {{ display: block; max-width: 100%; background: white; border-radius: 4px; }}
figcaption {{ font-size: 0.85rem; }}
summary {{ cursor: pointer; margin-top: 2rem; font-weight: 600; }}
@media (max-width: 700px) {{
  .wide > img {{ max-width: 46rem; }}
}}
</style>
</head>
<body>
{body}
</body>
</html>
"""
