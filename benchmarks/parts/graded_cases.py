"""Published test cases of other projects, and the verdicts of two graders on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.parts.graders import MathVerify, OurGrader, Pair
from retool_env.problems.rows import read_rows

KINDS = ("single", "boxed", "prose")


@dataclass(frozen=True)
class Case:
    """One published test case."""

    project: str
    """The name of the case's file, without the suffix."""
    answer: str
    gold: str
    expected: bool
    """Whether a correct grader accepts the answer."""
    kind: str
    """One of `KINDS`."""
    where: str
    """Where the case stands in the project's tests; empty if unknown."""


def read_cases(folder: Path) -> list[Case]:
    """The cases of all `*.jsonl` files of a folder.

    Raises:
        ValueError: If the folder or its files are missing, or a line is not a case. The message
            names file and line.
    """
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder; name one with PROJECT.jsonl files")
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise ValueError(f"the folder {str(folder)!r} lacks *.jsonl files; add one per project")
    return [
        Case(
            file.stem,
            **_text_columns(line, row, "answer", "gold"),
            expected=_column(line, row, "expected", bool, "true or false"),
            kind=_kind(line, row),
            where=str(row.get("where", "")),
        )
        for file in files
        for line, row in read_rows(file)
    ]


def read_set_aside(path: Path) -> dict[Pair, str]:
    """Read the cases that are set aside, and return the reasons by answer and gold.

    Raises:
        ValueError: If the file can't be read, or a line lacks a key. The message names file and
            line.
    """
    reasons = {}
    for line, row in read_rows(path):
        columns = _text_columns(line, row, "answer", "gold", "reason")
        reasons[columns["answer"], columns["gold"]] = columns["reason"]
    return reasons


def _text_columns(line: str, row: dict[str, Any], *names: str) -> dict[str, str]:
    return {name: _column(line, row, name, str, "a text") for name in names}


def _column(line: str, row: dict[str, Any], name: str, type_: type, called: str) -> Any:
    if name not in row:
        raise ValueError(f"{line}: the key {name!r} is missing, there are only {sorted(row)}")
    if not isinstance(row[name], type_):
        raise ValueError(f"{line}: {name!r} must be {called}, not {row[name]!r:.60}")
    return row[name]


def _kind(line: str, row: dict[str, Any]) -> str:
    kind = _column(line, row, "kind", str, "a text")
    if kind not in KINDS:
        raise ValueError(f"{line}: 'kind' must be one of {', '.join(KINDS)}, not {kind!r:.60}")
    return kind


def grade_cases(
    cases: Iterable[Case], grader: OurGrader, peer: MathVerify
) -> list[tuple[Case, bool | None, bool | None]]:
    """Grade published cases with both graders.

    Args:
        cases: The cases.
        grader: The grader of this project.
        peer: math-verify.

    Returns:
        Each case with the verdicts of the grader and of math-verify.
    """
    return [
        (case, grader.grade(case.answer, case.gold)[0], peer.grade(case.answer, case.gold)[0])
        for case in cases
    ]


def count_cases(
    graded: list[tuple[Case, bool | None, bool | None]],
) -> dict[str, dict[str, dict[str, int]]]:
    """Count the right verdicts by kind and project.

    The project `each once` counts a case once, even if several projects published it.
    """
    counts: dict[str, dict[str, Counter[str]]] = {}
    seen = set()
    for case, verdict, peer_verdict in graded:
        right = {
            "cases": 1,
            "ours": int(verdict is case.expected),
            "math-verify": int(peer_verdict is case.expected),
        }
        projects = [case.project, "all"]
        if (same := (case.kind, case.answer, case.gold, case.expected)) not in seen:
            seen.add(same)
            projects.append("each once")
        for project in projects:
            counts.setdefault(case.kind, {}).setdefault(project, Counter()).update(right)
    sums = ("all", "each once")  # last
    return {
        kind: {name: dict(of_kind[name]) for name in sorted(of_kind, key=lambda n: (n in sums, n))}
        for kind in KINDS
        if (of_kind := counts.get(kind))
    }


def split_cases(folder: Path, set_aside: Path | None) -> tuple[list[Case], list[tuple[Case, str]]]:
    """Read the cases of a folder, and separate the cases that are set aside.

    Args:
        folder: The folder of published cases.
        set_aside: The file of cases to set aside; `None`: keep all cases.

    Returns:
        The kept cases, and the cases that are set aside with their reasons.

    Raises:
        ValueError: See `read_cases` and `read_set_aside`. Also if a case to set aside is unknown.
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
