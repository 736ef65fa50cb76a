"""The public data sets AIME, DAPO-Math-17k, GSM8K, MATH and MATH-500.

Each function returns a source in memory. `retool_env.problems.catalogue` names the files and the
data set on the Hub; `retool_env.problems.loading` finds the rows there.
`retool_env.problems.columns` reads their columns. An id holds the row's position in the original
data set, so that a problem has the same id from every place.
"""

import os
import re
from collections import Counter
from typing import Literal

from retool_env.errors import SettingsError
from retool_env.problem import Problem, ProblemList
from retool_env.problems.catalogue import DATA_SETS
from retool_env.problems.columns import (
    ANSWER_KEYS,
    Reason,
    Row,
    find_column,
    gold_of,
    is_number,
    question_of,
    worked_result,
)
from retool_env.problems.loading import load

Location = str | os.PathLike[str] | None

_YEARS = (2024, 2025, 2026)
_DAPO_PREFIX = re.compile(
    r"\A\s*Solve the following math problem step by step\. The last line of your response should "
    r"be of the form Answer: \$?Answer.{0,80}is the answer to the problem\.\s*"
)
_DAPO_SUFFIX = re.compile(
    r"\s*Remember to put your answer on its own line after \"Answer:\"\.?\s*\Z"
)
_OF_THOUSANDS = (Reason.NOT_GRADABLE, Reason.CONFLICT)
"""The reasons to omit a row of a large data set, which nobody can correct by hand.

A data set of 30 problems omits only repeated questions.
"""


def aime(year: Literal[2024, 2025, 2026] | None = None, *, path: Location = None) -> ProblemList:
    """Loads the 30 problems of AIME I and II of a year, or the 60 of ReTool's evaluation set.

    `retool_env.problems.columns` lists the columns. They include the columns of the files of
    ReTool, HuggingFaceH4, Maxwell-Jia, math-ai, MathArena and OpenCompass.

    Args:
        year: The year of the problems; `None` for 2024 and 2025, the years of ReTool.
        path: A file of this one year, in any form of `retool_env.problems.rows`. `None`: the file
            `aime24`, `aime25` or `aime26` (`.jsonl`, `.parquet`, ...) in the folder of
            `RETOOL_DATA`, or the Hub if the file is missing.

    Raises:
        ProblemsUnavailable: The file is missing, and the Hub can't be reached.
        ValueError: The year has no problems, `path` is given without a year, or a row does not give
            a problem.
    """
    if year is None:
        if path is not None:
            raise SettingsError(
                "path is the file of one year: pass year=2024, year=2025 or year=2026 with it"
            )
        years = (aime(2024), aime(2025))
        omitted = sum((Counter(source.omitted) for source in years), Counter())
        return ProblemList((source[i] for source in years for i in range(len(source))), omitted)
    if year not in _YEARS:
        raise SettingsError(f"year must be 2024, 2025, 2026 or None (2024 and 2025), not {year!r}")
    data_set = DATA_SETS[f"aime/{year}"]
    metadata: dict[str, str | int] = {"year": year}
    if year > 2025:
        # The two years of ReTool have no date: their transcripts stay the same.
        metadata["published"] = data_set.published

    def convert(index: int, row: Row) -> Problem:
        question = bare_question(question_of(row))
        return Problem(f"aime/{year}/{index}", question, gold_of(row), metadata)

    return load(path, data_set.files, data_set.hub, convert)


def gsm8k(split: Literal["train", "test"] = "train", *, path: Location = None) -> ProblemList:
    """Loads GSM8K: grade-school word problems whose answers are integers.

    The columns are `question` and `answer`. The answer is a number, or a worked solution with its
    result after `####`.

    Args:
        split: `train`, with 7,473 problems, or `test`, with 1,319 problems.
        path: A file in any form of `retool_env.problems.rows`. `None`: the file `gsm8k_<split>` in
            the folder of `RETOOL_DATA`, or the Hub if the file is missing.

    Raises:
        ProblemsUnavailable: The file is missing, and the Hub can't be reached.
        ValueError: The split is unknown, or a row has no result.
    """
    _check_split(split)

    def convert(index: int, row: Row) -> Problem:
        answer = find_column(row, ANSWER_KEYS)
        if answer is not None and isinstance(answer[1], str) and not is_number(answer[1]):
            try:
                worked_result(answer[1])
            except ValueError as error:
                raise SettingsError(f"the answer ({answer[0]!r}) {error}") from None
        return Problem(f"gsm8k/{split}/{index}", question_of(row), gold_of(row))

    data_set = DATA_SETS[f"gsm8k/{split}"]
    return load(path, data_set.files, data_set.hub, convert, _OF_THOUSANDS)


def math(split: Literal["train", "test"] = "train", *, path: Location = None) -> ProblemList:
    r"""Loads MATH: competition problems whose answers are LaTeX expressions.

    The columns are `problem` and `answer`, or `problem` and `solution`, whose last `\boxed{}` is
    the answer. The columns `level` and `subject` or `type` are optional. A few rows have no final
    answer; they can't be graded and are omitted.

    Args:
        split: `train`, with 7,500 problems on the Hub, or `test`, with 5,000 problems.
        path: A file in any form of `retool_env.problems.rows`. `None`: the file
            `math_levels_3_to_5_<split>` in the folder of `RETOOL_DATA`, or the Hub if the file is
            missing.

    Raises:
        ProblemsUnavailable: The file is missing, and the Hub can't be reached.
        ValueError: The split is unknown, or a row lacks a column.
    """
    _check_split(split)

    def convert(index: int, row: Row) -> Problem:
        gold = gold_of(row, trust_formulas=True)
        return Problem(f"math/{split}/{index}", question_of(row), gold, _kind(row))

    data_set = DATA_SETS[f"math/{split}"]
    leave_out = (Reason.NO_ANSWER, *_OF_THOUSANDS)
    return load(path, data_set.files, data_set.hub, convert, leave_out)


def math500(*, path: Location = None) -> ProblemList:
    """Loads MATH-500: 500 problems from the test split of MATH.

    The columns are `problem` and `answer`. The columns `level` and `subject` are optional.

    Args:
        path: A file in any form of `retool_env.problems.rows`. `None`: the file `math500` in the
            folder of `RETOOL_DATA`, or the Hub if the file is missing.

    Raises:
        ProblemsUnavailable: The file is missing, and the Hub can't be reached.
        ValueError: A row lacks a column.
    """
    data_set = DATA_SETS["math500"]

    def convert(index: int, row: Row) -> Problem:
        metadata = {**_kind(row), "published": data_set.published}
        gold = gold_of(row, trust_formulas=True)
        return Problem(f"math500/{index}", question_of(row), gold, metadata)

    return load(path, data_set.files, data_set.hub, convert, (Reason.NOT_GRADABLE,))


def _kind(row: Row) -> dict[str, str | int]:
    """The subject and the level of a problem of MATH, as far as the row has them."""
    kind: dict[str, str | int] = {}
    if (subject := find_column(row, ("subject", "type"))) and isinstance(subject[1], str):
        kind["subject"] = subject[1]
    level = find_column(row, ("level",))  # 3 or "Level 3"; two rows have "Level ?"
    if level and (digits := re.search(r"\d+", str(level[1]))):
        kind["level"] = int(digits[0])
    return kind


def dapo(*, path: Location = None) -> ProblemList:
    """Loads DAPO-Math-17k: some 17,000 problems with integer answers, the paper's RL data.

    The original has 1.79 M rows, about 100 copies of each problem. The first copy is kept. A
    problem whose copies have different answers is omitted. The prompts of the original tell the
    model how to write the answer; these instructions are removed.

    The columns are `prompt`, which is text or a list of chat messages, and
    `reward_model.ground_truth`, `answer` or `solution`, which holds the answer itself.

    Args:
        path: A file in any form of `retool_env.problems.rows`. `None`: the file `dapo_math_17k` or
            `dapo-math-17k` in the folder of `RETOOL_DATA`, or the Hub if the file is missing.

    Raises:
        ProblemsUnavailable: The file is missing, and the Hub can't be reached.
        ValueError: A row lacks a column.
    """
    copies: dict[str, Problem] = {}

    def convert(index: int, row: Row) -> Problem:
        # `extra_info` numbers the copies. Rows that differ in nothing else are read only once.
        cells = repr([value for name, value in row.items() if name != "extra_info"])
        if cells not in copies:
            question = bare_question(question_of(row))
            gold = gold_of(row, worked=())
            copies[cells] = Problem(f"dapo/train/{index}", question, gold)
        return copies[cells]

    data_set = DATA_SETS["dapo/train"]
    return load(path, data_set.files, data_set.hub, convert, _OF_THOUSANDS)


def bare_question(prompt: str) -> str:
    r"""Returns a problem of DAPO without the instructions before and after it.

    Example:
        >>> bare_question('2?\n\nRemember to put your answer on its own line after "Answer:".')
        '2?'
    """
    return _DAPO_SUFFIX.sub("", _DAPO_PREFIX.sub("", prompt)).strip()


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise SettingsError(f"split must be 'train' or 'test', not {split!r}")
