"""Problems from the user's own file, which has one problem in each row."""

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
"""The most characters of a text that becomes metadata."""

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
    r"""Reads problems from your own file, in any form of `retool_env.problems.rows`.

    The answer is a number or text. Of a text with `####`, as in GSM8K, only the text after the last
    `####` counts. Of a text with a `\boxed{}`, only the content of the box counts.

    A column `id` names the problem. Without this column, the id is `jsonl/<stem>/<row>`: the stem
    of the file's name, and the row's number from 0 without blank lines. Integers and short texts in
    other columns become metadata. A column is not metadata if it could reveal the answer: by its
    name (`rationale`, `expected_output`, ...), or because its text has a `\boxed{}`.

    A repeated question with the same answer is omitted, and counted in `ProblemList.omitted`.

    Args:
        path: The path of the file.
        question_key: The column of the question. `None`: the first of `QUESTION_KEYS` that has a
            value.
        answer_key: The column of the answer, with or without a box. `None`: the first of
            `ANSWER_KEYS` that has a value; a column `solution` must have a `\boxed{}`.

    Raises:
        ProblemsUnavailable: The file does not exist, or is not a regular file.
        ValueError: A row does not give a problem, or two rows give a question different answers.
            The error text names the file, the row and the reason.
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
    """Returns the problem of a row.

    Args:
        row: The values of the row by column.
        default_id: The id of the problem if the row has no id.
        question_key: The column of the question; `None`: one of `QUESTION_KEYS`.
        answer_key: The column of the answer; `None`: one of `ANSWER_KEYS`.

    Raises:
        ValueError: The row has no question or no answer, or one of them can't be used.
    """
    question_keys = QUESTION_KEYS if question_key is None else (question_key,)
    answer_keys = ANSWER_KEYS if answer_key is None else (answer_key,)
    try:
        question = question_of(row, question_keys)
        gold = gold_of(row, answer_keys, WORKED_KEYS if answer_key is None else ())
    except MissingColumn as error:
        raise MissingColumn(f"{error}; name yours with question_key= and answer_key=") from None
    columns = [find_column(row, keys) for keys in (("id",), question_keys, answer_keys)]
    id_, used = columns[0], {column[0] for column in columns if column is not None}
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
