"""Test cases that other projects have published, and the verdicts on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.parts.graders import MathVerify, Ours, Pair
from retool_env.problems.rows import read_rows

KINDS = ("single", "boxed", "prose")


@dataclass(frozen=True)
class Case:
    """One published test case."""

    project: str
    """Name of its file, without the suffix."""
    answer: str
    gold: str
    expected: bool
    """Whether the answer is to be accepted."""
    kind: str
    """One of `KINDS`."""
    where: str
    """The place in the project's tests; may be empty."""


def read_cases(folder: Path) -> list[Case]:
    """The cases of all `*.jsonl` files of a folder.

    Raises:
        ValueError: There is no such folder, no such file in it, or a line is not a case; the message names file and line.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}: it should hold PROJECT.jsonl files")
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise ValueError(f"the folder {str(folder)!r} holds no file *.jsonl, one a project")
    return [
        Case(
            file.stem,
            **_text_columns(place, row, "answer", "gold"),
            expected=_column(place, row, "expected", bool, "true or false"),
            kind=_kind(place, row),
            where=str(row.get("where", "")),
        )
        for file in files
        for place, row in read_rows(file)
    ]


def read_set_aside(path: Path) -> dict[Pair, str]:
    """The reasons of a file of cases that are set aside, by answer and gold.

    Raises:
        ValueError: The file cannot be read, or a line lacks a key; the message names file and line.
    """
    reasons = {}
    for place, row in read_rows(path):
        columns = _text_columns(place, row, "answer", "gold", "reason")
        reasons[columns["answer"], columns["gold"]] = columns["reason"]
    return reasons


def _text_columns(place: str, row: dict[str, Any], *names: str) -> dict[str, str]:
    return {name: _column(place, row, name, str, "a text") for name in names}


def _column(place: str, row: dict[str, Any], name: str, type_: type, called: str) -> Any:
    if name not in row:
        raise ValueError(f"{place}: the key {name!r} is missing, there are only {sorted(row)}")
    if not isinstance(row[name], type_):
        raise ValueError(f"{place}: {name!r} must be {called}, not {row[name]!r:.60}")
    return row[name]


def _kind(place: str, row: dict[str, Any]) -> str:
    kind = _column(place, row, "kind", str, "a text")
    if kind not in KINDS:
        raise ValueError(f"{place}: 'kind' must be one of {', '.join(KINDS)}, not {kind!r:.60}")
    return kind


def grade_cases(
    cases: Iterable[Case], ours: Ours, peer: MathVerify
) -> list[tuple[Case, bool | None, bool | None]]:
    """Each case with the verdict of the grader and that of math-verify."""
    return [
        (case, ours.grade(case.answer, case.gold)[0], peer.grade(case.answer, case.gold)[0])
        for case in cases
    ]


def count_cases(
    graded: list[tuple[Case, bool | None, bool | None]],
) -> dict[str, dict[str, dict[str, int]]]:
    """Right verdicts by kind and project; the project `each once` counts a case that several have only once."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    seen = set()
    for case, ours, theirs in graded:
        right = {
            "cases": 1,
            "ours": int(ours is case.expected),
            "math-verify": int(theirs is case.expected),
        }
        projects = [case.project, "all"]
        if (same := (case.kind, case.answer, case.gold, case.expected)) not in seen:
            seen.add(same)
            projects.append("each once")
        for project in projects:
            counts.setdefault(case.kind, {}).setdefault(project, Counter()).update(right)
    sums = ("all", "each once")  # last
    return {
        kind: {name: dict(each[name]) for name in sorted(each, key=lambda n: (n in sums, n))}
        for kind in KINDS
        if (each := counts.get(kind))
    }


def split_cases(folder: Path, set_aside: Path | None) -> tuple[list[Case], list[tuple[Case, str]]]:
    """The cases of a folder, and apart from them those that are set aside, with the reasons.

    Raises:
        ValueError: As of `read_cases` and `read_set_aside`; or what is set aside is not among the cases.
    """
    cases = read_cases(folder)
    reasons = read_set_aside(set_aside) if set_aside else {}
    if unknown := reasons.keys() - {(case.answer, case.gold) for case in cases}:
        answer, gold = min(unknown)
        raise ValueError(
            f"{set_aside}: {len(unknown)} of its cases are not in {folder}, such as "
            f"answer {answer!r:.60}, gold {gold!r:.60}"
        )
    kept = [case for case in cases if (case.answer, case.gold) not in reasons]
    pairs = [(case, reasons.get((case.answer, case.gold))) for case in cases]
    return kept, [(case, reason) for case, reason in pairs if reason is not None]
