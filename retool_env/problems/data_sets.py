"""The public data sets: AIME, DAPO-Math-17k, GSM8K, MATH.

Each function returns a source held in memory. Where its rows come from, a file of any form or the
Hub, is in `retool_env.problems.loading`; which columns are read, in
`retool_env.problems.columns`. Ids hold the row's position in the original, so that they are
the same from everywhere.
"""

import os
import re
from collections import Counter
from typing import Literal

from retool_env.errors import SettingsError
from retool_env.problem import Problem, ProblemList
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
from retool_env.problems.loading import HubSplit, load

Location = str | os.PathLike[str] | None

_AIME = {
    2024: HubSplit("HuggingFaceH4/aime_2024", "train"),
    2025: HubSplit("math-ai/aime25", "test"),
}
_DAPO = HubSplit("BytedTsinghua-SIA/DAPO-Math-17k", "train")
_DAPO_FILES = ("dapo_math_17k", "dapo-math-17k")
_DAPO_PREFIX = re.compile(
    r"\A\s*Solve the following math problem step by step\. The last line of your response should "
    r"be of the form Answer: \$?Answer.{0,80}is the answer to the problem\.\s*"
)
_DAPO_SUFFIX = re.compile(
    r"\s*Remember to put your answer on its own line after \"Answer:\"\.?\s*\Z"
)
_SPLITS = ("train", "test")
_OF_THOUSANDS = (Reason.NOT_GRADABLE, Reason.CONFLICT)
"""What sets that are too large to be mended by hand leave out; a set of 30 must be whole."""


def aime(year: Literal[2024, 2025] | None = None, *, path: Location = None) -> ProblemList:
    """The 30 problems of AIME I and II of a year, or all 60: ReTool's evaluation set.

    Args:
        year: `None` for both years.
        path: A file of that one year, in any form of `retool_env.problems.rows`; else
            `aime24` and `aime25` (`.jsonl`, `.parquet`, ...) in the folder of
            `RETOOL_DATA`, else the Hub. Columns: see `retool_env.problems.columns`; those of
            ReTool's own files, HuggingFaceH4's, Maxwell-Jia's, math-ai's, MathArena's and
            OpenCompass' are among them.

    Raises:
        ProblemsUnavailable: There is no such file, and the Hub can't be reached.
        ValueError: Another year, a `path` without a year, or a row that gives no problem.
    """
    if year is None:
        if path is not None:
            raise SettingsError("a path is one year's file: pass year=2024 or year=2025 with it")
        years = (aime(2024), aime(2025))
        omitted = sum((Counter(source.omitted) for source in years), Counter())
        return ProblemList((source[i] for source in years for i in range(len(source))), omitted)
    if year not in _AIME:
        raise SettingsError(f"year is 2024, 2025 or None (both), not {year!r}")

    def convert(index: int, row: Row) -> Problem:
        question = bare_question(question_of(row))
        return Problem(f"aime/{year}/{index}", question, gold_of(row), {"year": year})

    return load(path, (f"aime{year % 100}",), _AIME[year], convert)


def gsm8k(split: Literal["train", "test"] = "train", *, path: Location = None) -> ProblemList:
    """Grade-school word problems, 7,473 and 1,319; the answer is an integer.

    Args:
        split: Which part.
        path: A file in any form of `retool_env.problems.rows`; else `gsm8k_<split>` in the
            folder of `RETOOL_DATA`, else the Hub. Columns: `question`, and `answer`, a
            number, or a worked solution whose result follows `####`.

    Raises:
        ProblemsUnavailable: There is no such file, and the Hub can't be reached.
        ValueError: Another split, or a row without a result.
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

    hub = HubSplit("openai/gsm8k", split, "main")
    return load(path, (f"gsm8k_{split}",), hub, convert, _OF_THOUSANDS)


def math(split: Literal["train", "test"] = "train", *, path: Location = None) -> ProblemList:
    r"""Competition problems of MATH; the answer is any LaTeX expression.

    From the Hub these are all 7,500 and 5,000 problems of the original; a file may hold fewer. A
    row without a final answer, of which there are a few, can't be graded and is left out.

    Args:
        split: Which part.
        path: A file in any form of `retool_env.problems.rows`; else
            `math_levels_3_to_5_<split>` in the folder of `RETOOL_DATA`, else the Hub. Columns:
            `problem`; `answer`, or `solution`, whose last `\boxed{}` is the answer; and if
            they are there `level`, `subject` or `type`.

    Raises:
        ProblemsUnavailable: There is no such file, and the Hub can't be reached.
        ValueError: Another split, or a row of another shape.
    """
    _check_split(split)

    def convert(index: int, row: Row) -> Problem:
        metadata: dict[str, str | int] = {}
        if (subject := find_column(row, ("subject", "type"))) and isinstance(subject[1], str):
            metadata["subject"] = subject[1]
        level = find_column(row, ("level",))  # 3, or "Level 3"; two are "Level ?"
        if level and (digits := re.search(r"\d+", str(level[1]))):
            metadata["level"] = int(digits[0])
        gold = gold_of(row, trust_formulas=True)
        return Problem(f"math/{split}/{index}", question_of(row), gold, metadata)

    hub = HubSplit("DigitalLearningGmbH/MATH-lighteval", split)
    leave_out = (Reason.NO_ANSWER, *_OF_THOUSANDS)
    return load(path, (f"math_levels_3_to_5_{split}",), hub, convert, leave_out)


def dapo(*, path: Location = None) -> ProblemList:
    """DAPO-Math-17k, the paper's RL data: some 17,000 problems with integer answers.

    The original repeats each problem about 100 times, 1.79 M rows; the first copy is kept, and a
    problem whose copies have different answers is left out. Its prompts tell the model how to write
    the answer; that wrapping is removed.

    Args:
        path: A file in any form of `retool_env.problems.rows`; else `dapo_math_17k` or
            `dapo-math-17k` in the folder of `RETOOL_DATA`, else the Hub. Columns: `prompt`
            (chat messages or text), and `reward_model.ground_truth`, `answer` or `solution`,
            which holds the answer itself.

    Raises:
        ProblemsUnavailable: There is no such file, and the Hub can't be reached.
        ValueError: A row of another shape.
    """
    copies: dict[str, Problem] = {}

    def convert(index: int, row: Row) -> Problem:
        # All but the column that numbers the copies: the same again isn't read anew.
        cells = repr([value for name, value in row.items() if name != "extra_info"])
        if cells not in copies:
            question = bare_question(question_of(row))
            gold = gold_of(row, worked=())
            copies[cells] = Problem(f"dapo/train/{index}", question, gold)
        return copies[cells]

    return load(path, _DAPO_FILES, _DAPO, convert, _OF_THOUSANDS)


def bare_question(prompt: str) -> str:
    r"""Remove DAPO's instructions from around a problem.

    Example:
        >>> bare_question('2?\n\nRemember to put your answer on its own line after "Answer:".')
        '2?'
    """
    return _DAPO_SUFFIX.sub("", _DAPO_PREFIX.sub("", prompt)).strip()


def _check_split(split: str) -> None:
    if split not in _SPLITS:
        raise SettingsError(f"split is 'train' or 'test', not {split!r}")
