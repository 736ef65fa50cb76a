"""The cells and the tables of the study's page: shares and changes with intervals, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from benchmarks.parts.study_changes import Change

NOT_SHOWN = "not shown"
"""The verdict of a change whose interval holds 0 or rests on too little."""
NOT_RUN = "not run"
"""The text of a cell whose part has not been run."""


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


Written = Callable[[float | None], str]
"""Writes a change as text, with its sign."""


def signed_points(change: float | None) -> str:
    """A change of a share, in points."""
    return "–" if change is None else f"{100 * change:+.0f}".replace("-", "−")


def signed_number(change: float | None) -> str:
    """A change of a number, such as the number of calls."""
    return "–" if change is None else f"{change:+.2f}".replace("-", "−")


def points(change: Change, by_seed: Sequence[Change] = (), written: Written = signed_points) -> str:
    """A change, with its interval and its verdict.

    Args:
        change: The change.
        by_seed: The changes of the seeds that it pools. It is shown only if each of them is: its
            interval says nothing about other seeds.
        written: Writes a number; in points.
    """
    if change.mean is None:
        return "–"
    verdict = change.verdict
    agree = sum(one.verdict == verdict for one in by_seed)
    if verdict != NOT_SHOWN and agree < len(by_seed):
        verdict = f"{NOT_SHOWN} ({agree} of {len(by_seed)} seeds)"
    return f"{written(change.mean)} [{written(change.low)}, {written(change.high)}]: {verdict}"


def pooled(
    change: Callable[[Sequence[int]], Change],
    seeds: Sequence[int],
    written: Written = signed_points,
) -> str:
    """The text of the change over some seeds.

    Args:
        change: The change over some seeds.
        seeds: The seeds.
        written: Writes a number; in points.
    """
    by_seed = [change([seed]) for seed in seeds] if len(seeds) > 1 else ()
    return points(change(seeds), by_seed, written)


def rows_of(head: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    """A table in Markdown.

    Args:
        head: The names of the columns.
        rows: The rows.
    """
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def table_of(head: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    """A table of figures, or a line of text if no part of it has been run.

    A run has one row for all seeds that have not been run.

    Args:
        head: The names of the columns.
        rows: The rows. The first cell is the run, with its seed.
    """
    kept: list[Sequence[str]] = []
    missing: dict[str, tuple[int, list[str]]] = {}  # by run: its row, and the seeds not run
    for row in rows:
        run, _, seed = row[0].rpartition(", seed ")
        if run and row[1] == NOT_RUN:
            at, seeds = missing.setdefault(run, (len(kept), []))
            seeds.append(seed)
            if len(seeds) > 1:
                kept[at] = [f"{run}, seeds {', '.join(seeds)}", *row[1:]]
                continue
        kept.append(row)
    if all({*row[1:]} <= {NOT_RUN, "–"} for row in kept):
        return ["No part of this table has been run."]
    return rows_of(head, iter(kept))
