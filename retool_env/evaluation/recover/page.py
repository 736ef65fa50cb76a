"""The page of one or several models: a table for the terminal, PNG files, and one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retool_env.errors import DataError
from retool_env.evaluation.document import Document
from retool_env.evaluation.fields import checked
from retool_env.evaluation.folder import replace_json
from retool_env.evaluation.records import RULES_OF_ONE_RUN, all_rules
from retool_env.evaluation.recover.figures import RESULT_FIELDS, SCHEMA
from retool_env.evaluation.recover.pictures import Results, draw, titles_of
from retool_env.evaluation.recover.records import RESULTS
from retool_env.evaluation.recover.sections import (
    NO_CASE,
    SECTIONS,
    Notes,
    Section,
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
from retool_env.metrics.causal.intervals import LEAST_DIFFERENT
from retool_env.metrics.tables import markdown

PAGE = "page.html"
"""The name of the page."""

COMPARISONS = "comparisons.json"
"""The paired tests between models, beside the page of several models."""

_CAPTIONS = {
    "heat-map": "Effect of each fault in points; in brackets the recovery ratio, where it is "
    "shown.",
    "recovery": "Accuracy with the true result (open marks) and after the fault (filled marks). "
    "The longer the line, the more a fault costs.",
    "dose": "Accuracy and calls against the rate of faults; the bands are 95 % intervals.",
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
    if apart := _rules_apart(results):
        return f"these folders differ in {', '.join(apart)}: they can't be compared"
    return ""


def _rules_apart(results: Sequence[Results]) -> list[str]:
    """The rules in which results differ, with their values, and the prompt without its text."""
    rules = [all_rules(one["rules"]) for one in results]
    apart = []
    for name in sorted({name for some in rules for name in some} - {*RULES_OF_ONE_RUN}):
        values = list(dict.fromkeys(json.dumps(some.get(name))[:40] for some in rules))
        if any(some.get(name) != rules[0].get(name) for some in rules):
            apart.append(f"{name} ({', '.join(values)})")
    if any(one["prompt"] != results[0]["prompt"] for one in results):
        apart.append("the prompt")
    return apart


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
    first = results[0]
    page = Document(f"ReTool-Recover {first['suite']}: {', '.join(titles_of(results))}")
    add_sections(page, results, compared)
    path = page.write(folder / PAGE)
    if len(results) > 1:
        replace_json(folder / COMPARISONS, {"pairs": list(compared)})
    return path


def add_sections(
    page: Document, results: Sequence[Results], compared: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Adds all figures of the benchmark to a page, in the order of a reader's questions.

    Args:
        page: The page.
        results: The results of each model.
        compared: The paired tests between the models.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    titles, first, pictures = titles_of(results), results[0], draw(results)
    part = f"{first['part']}, quick" if first["quick"] else first["part"]
    page.paragraph(_INTRODUCTION)
    page.paragraph(f"Suite {first['suite']} ({part}), revision {first['revision']}.")
    if why := comparable(results):
        page.warning(why)
    for section in SECTIONS:
        _add_section(page, section, results, titles, pictures)
        if section.title == SECTIONS[2].title:
            _add_comparisons(page, compared, titles)
    _add_costs(page, results, titles)
    _add_hidden(page, results, titles)
    for title, one in zip(titles, results, strict=True):
        _add_details(page, one, title)


def _add_section(
    page: Document,
    section: Section,
    results: Sequence[Results],
    titles: Sequence[str],
    pictures: Mapping[str, bytes],
) -> None:
    """Adds a section, if it has a table or a picture."""
    figures, notes = [by_key(one) for one in results], Notes()
    rows = rows_table(section, figures, titles, notes)
    kinds = [kinds_table(section.columns, some, notes) for some in figures]
    drawn = [name for name in pictures if name.startswith(section.pictures or " ")]
    if not (rows or drawn or any(len(table) > 1 or absent for table, absent in kinds)):
        return
    page.heading(section.title)
    page.paragraph(section.words)
    if rows:
        page.table(rows)
    for title, (table, absent) in zip(titles, kinds, strict=True):
        if len(table) > 1:
            page.table(table, title if len(results) > 1 else "")
        if absent and section.columns:
            page.paragraph(f"No prefix is eligible for {', '.join(absent)}.", small=True)
    for reason, letter in notes.reasons.items():
        page.paragraph(f"({letter}) not shown: {reason}.", small=True)
    for name in drawn:
        kind = next(kind for kind in section.pictures if name.startswith(kind))
        page.picture(name, pictures[name], _CAPTIONS[kind])


def _add_comparisons(
    page: Document, compared: Sequence[Mapping[str, Any]], titles: Sequence[str]
) -> None:
    if not compared:
        return
    page.heading("Do the models differ?")
    page.paragraph(
        "The fault effects of two models, paired by problem. Above 0, the first model recovers "
        "better. Holm's method adjusts the p-values over the faults: below 0.05, the models "
        f"differ. The interval is unknown if fewer than {LEAST_DIFFERENT} problems have another "
        "difference than the most frequent one."
    )
    for pair in compared:
        first, second = (titles[pair[name] - 1] for name in ("first", "second"))
        page.heading(f"{first} minus {second}", 3)
        page.table(comparison_table(pair["tests"]))


def _add_costs(page: Document, results: Sequence[Results], titles: Sequence[str]) -> None:
    known = [(t, one["usage"]) for t, one in zip(titles, results, strict=True) if one.get("usage")]
    known = [(title, usage) for title, usage in known if usage["arms"]]
    if known:
        page.heading("What did the run cost?")
    for title, usage in known:
        page.table(usage_table(usage), title if len(results) > 1 else "")
        if usage["dollars"] is not None:
            page.paragraph(f"All requests, also of lost episodes: ${usage['dollars']:,.2f}.")


def _add_hidden(page: Document, results: Sequence[Results], titles: Sequence[str]) -> None:
    """Adds the cases that are left out, the hidden figures, and the bounds of failures."""
    page.heading("What is not shown, and why?")
    for title, one in zip(titles, results, strict=True):
        figures = by_key(one)
        if len(results) > 1:
            page.heading(title, 3)
        page.listing(counted(one["counts"]))
        if failures := failures_table(figures):
            page.paragraph(
                "Infrastructure failures do not count. If all had lowered or raised a figure, it "
                "would be:"
            )
            page.table(failures)
        if reasons := hidden(figures):
            page.paragraph("Figures that are not shown:")
            page.listing(f"{why}: {', '.join(keys)}" for why, keys in reasons.items())


def _add_details(page: Document, results: Results, title: str) -> None:
    names = (
        *("suite", "part", "suite_hash", "quick", "env", "revision", "k", "m", "samples", "seed"),
        *("protocols", "rules", "prompt", "sampling", "model", "counts"),
    )
    rows = [["figure", "mean [95 %]", "n", "problems", "meaning"]]
    for key, figure in by_key(results).items():
        shown = figure.get("shown", True) and figure["mean"] is not None
        value = value_text(figure) if shown else f"not shown: {figure.get('reason') or NO_CASE}"
        rows.append([key, value, str(figure["count"]), str(figure["problems"])])
        rows[-1].append(figure["definition"])
    with page.details(f"Settings and all figures of {title}"):
        page.table([["setting", "value"], *([name, json.dumps(results[name])] for name in names)])
        page.table(rows)


_INTRODUCTION = (
    "How often the model uses its code interpreter, and how it recovers when a program fails or "
    "its result is false. Brackets hold 95 % intervals over problems. Differences are in points "
    "of percent."
)
