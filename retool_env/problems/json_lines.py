"""A user's own problems: a file with a problem a row."""

import os
import re
from decimal import Decimal
from pathlib import Path

from retool_env.errors import DataError
from retool_env.files import file_fault
from retool_env.problem import Problem, ProblemList, ProblemsUnavailable
from retool_env.problems.columns import (
    ANSWER_KEYS,
    QUESTION_KEYS,
    WORKED_KEYS,
    MissingColumn,
    Row,
    find_column,
    gold_of,
    is_missing,
    question_of,
)
from retool_env.problems.loading import collect
from retool_env.problems.rows import read_rows

MOST_METADATA = 200
"""Characters of a text that may be metadata."""

_TELLS_ANSWER = re.compile(
    "answer|solution|gold|truth|target|label|output|response|completion|generat|rational"
    "|explanation|reason|thought|proof|hint|working|result|expected|final|reference|boxed|reward"
)


def jsonl(
    path: str | os.PathLike[str],
    *,
    question_key: str | None = None,
    answer_key: str | None = None,
) -> ProblemList:
    r"""Read problems from a file of one's own.

    It may be JSON lines, or any other form of `retool_env.problems.rows`. An answer may be a
    number, or text; of text with `####`, as in GSM8K, what follows the last one counts, and of
    text with a `\boxed{}`, its content. A column `id` names the problem; without one it is called
    `jsonl/<file's stem>/<row>`, rows counted from 0 and blank lines left out. Other columns of
    integers and of short texts become metadata, but for those that could give the answer away: by
    their names (`rationale`, `expected_output`, ...), or since they hold a `\boxed{}`.

    A question that comes again with the same answer is left out, and counted in the source's
    `retool_env.problems.ProblemList.omitted`.

    Args:
        path: The file.
        question_key: The column of the question; by default the first of `QUESTION_KEYS`.
        answer_key: The column of the answer; by default the first of `ANSWER_KEYS`, where a
            `solution` must have a `\boxed{}`. A column named here holds the answer with or
            without one.

    Raises:
        ProblemsUnavailable: There is no such file, or it is not a regular one.
        ValueError: A row can't be used, or two rows answer a question differently; the message
            names the file, the row and the reason.
    """
    if fault := file_fault(path):
        raise ProblemsUnavailable(fault)
    stem = Path(path).stem if Path(path).suffix.lower() != ".gz" else Path(Path(path).stem).stem

    def convert(index: int, row: Row) -> Problem:
        return row_problem(row, f"jsonl/{stem}/{index}", question_key, answer_key)

    return collect(read_rows(path), os.fspath(path), convert)


def row_problem(
    row: Row, default_id: str, question_key: str | None = None, answer_key: str | None = None
) -> Problem:
    """The problem of one row; arguments as in `jsonl`, and the id of a row without one.

    Raises:
        ValueError: There is no question or no answer, or it can't be used.
    """
    question_keys = QUESTION_KEYS if question_key is None else (question_key,)
    answer_keys = ANSWER_KEYS if answer_key is None else (answer_key,)
    try:
        question = question_of(row, question_keys)
        gold = gold_of(row, answer_keys, WORKED_KEYS if answer_key is None else ())
    except MissingColumn as error:
        raise MissingColumn(f"{error}; name yours with question_key= and answer_key=") from None
    id_ = find_column(row, ("id",))
    used = {
        column[0]
        for column in (id_, find_column(row, question_keys), find_column(row, answer_keys))
        if column is not None
    }
    metadata = {
        name: value
        for name, value in row.items()
        if name not in used and _may_be_metadata(name, value)
    }
    if id_ is None or is_missing(id_[1]):
        return Problem(default_id, question, gold, metadata)
    if not isinstance(id_[1], str | int | Decimal):
        raise DataError(f"the id ({id_[0]!r}) is neither text nor a number: {id_[1]!r:.60}")
    return Problem(str(id_[1]), question, gold, metadata)


def _may_be_metadata(name: str, value: object) -> bool:
    if _TELLS_ANSWER.search(name.casefold()):
        return False
    if isinstance(value, str):
        return len(value) <= MOST_METADATA and "\\boxed" not in value and "####" not in value
    return isinstance(value, int)
