"""A user's own problems: one JSON object a line."""

import os
from pathlib import Path
from typing import Any

from retool_env.files import file_fault
from retool_env.grading import extract_boxed, is_equivalent
from retool_env.problems.data_sets import worked_result
from retool_env.problems.loading import Row, json_rows
from retool_env.problems.problem import Problem, ProblemList, ProblemsUnavailable

QUESTION_KEYS = ("question", "problem", "input", "prompt")
"""Columns taken for the question, the first that a row has."""

ANSWER_KEYS = ("answer", "output", "solution")
"""Columns taken for the answer; of a ``solution``, the content of its last ``\\boxed{}``."""


def jsonl(
    path: str | os.PathLike[str],
    *,
    question_key: str | None = None,
    answer_key: str | None = None,
) -> ProblemList:
    """Read problems from a JSON-lines file.

    An answer may be a number, or text; of text with ``####``, as in GSM8K, what follows the last
    one counts. A column `id` names the problem; without one it is called
    ``jsonl/<file's stem>/<row>``, rows counted from 0 and blank lines left out. Other columns of
    text and integers become metadata, but for those that could give the answer away.

    Args:
        path: The file.
        question_key: The column of the question; by default the first of :data:`QUESTION_KEYS`.
        answer_key: The column of the answer; by default the first of :data:`ANSWER_KEYS`.

    Raises:
        ProblemsUnavailable: There is no such file, or it is not a regular one.
        ValueError: A line can't be used; the message names the file, the line and the reason.
    """
    if fault := file_fault(path):
        raise ProblemsUnavailable(fault)
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for index, (place, row) in enumerate(json_rows(path)):
        try:
            problem = row_problem(row, f"jsonl/{Path(path).stem}/{index}", question_key, answer_key)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: {error}") from error
        if problem.id in places:
            raise ValueError(
                f"{place}: the id {problem.id!r} is already that of {places[problem.id]}"
            )
        places[problem.id] = place
        problems.append(problem)
    if not problems:
        raise ValueError(f"{os.fspath(path)}: the file holds no problem")
    return ProblemList(problems)


def row_problem(
    row: Row, default_id: str, question_key: str | None = None, answer_key: str | None = None
) -> Problem:
    """The problem of one row; arguments as in :func:`jsonl`, and the id of a row without one.

    Raises:
        TypeError: The question is not text, or the answer neither text nor a number.
        ValueError: There is none, or it is empty.
    """
    question_key = _key(row, "question", question_key, QUESTION_KEYS)
    answer_key = _key(row, "answer", answer_key, ANSWER_KEYS)
    question = row[question_key]
    if not isinstance(question, str):
        raise TypeError(f"the question ({question_key!r}) is not text: {question!r:.60}")
    answer = _answer(row[answer_key], answer_key)
    if not is_equivalent(f"\\boxed{{{answer}}}", answer):
        raise ValueError(
            f"the answer ({answer_key!r}) could not be given in a \\boxed{{}}, even word for word: braces must be closed, "
            f"and one value be named: {answer!r:.60}"
        )
    hidden = {"id", question_key, *ANSWER_KEYS, answer_key}
    metadata = {
        key: value
        for key, value in row.items()
        if key not in hidden and isinstance(value, str | int)
    }
    id_ = row.get("id")
    return Problem(default_id if id_ is None else str(id_), question.strip(), answer, metadata)


def _key(row: Row, what: str, wanted: str | None, candidates: tuple[str, ...]) -> str:
    if wanted is not None:
        if wanted not in row:
            raise ValueError(f"no column {wanted!r} for the {what}, only {sorted(row)}")
        return wanted
    for key in candidates:
        if key in row:
            return key
    raise ValueError(
        f"no column for the {what}: expected one of {', '.join(candidates)}, found {sorted(row)}; "
        f"name yours with {what}_key="
    )


def _answer(value: Any, key: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"the answer ({key!r}) is neither text nor a number: {value!r:.60}")
    text = str(value).strip()
    if "####" in text:
        return worked_result(text)
    if key == "solution":
        if (text := extract_boxed(text)) is None:
            raise ValueError("the solution has no \\boxed{} with the answer")
        text = text.strip()
    if not text:
        raise ValueError(f"the answer ({key!r}) is empty")
    return text
