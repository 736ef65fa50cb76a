r"""The sets of 2025 and 2026: HMMT, BRUMO, Apex, BeyondAIME, AMO-Bench and OlymMATH.

They are newer and harder than AIME 2024, which many models have seen. Most answers are LaTeX: an
expression, a tuple, a set or several values. `retool_env.problems.catalogue` holds the place, the
date and the licence of each set. No set is bundled: the rows come from the Hub, or from your file.

Each problem has its date in `metadata["published"]`. A row whose answer the grader can't read is
left out and counted in `ProblemList.omitted`; the log names the row.
"""

import re
from collections.abc import Callable
from typing import Any, Literal

from retool_env.errors import DataError, SettingsError
from retool_env.problem import Problem, ProblemList
from retool_env.problems.catalogue import DATA_SETS
from retool_env.problems.columns import (
    Reason,
    Row,
    UnusableRow,
    find_column,
    gold_of,
    question_of,
)
from retool_env.problems.data_sets import Location
from retool_env.problems.loading import load

_AMO_INSTRUCTIONS = re.compile(r"\s*After solving the above problem, please output .*\Z", re.DOTALL)
_BY_RULE = ("number", "set", "variable")
"""The types of AMO-Bench's answers that are graded by rule."""
_BY_JUDGE = "description"


def hmmt(
    competition: Literal["2025-02", "2025-11", "2026-02"] = "2026-02", *, path: Location = None
) -> ProblemList:
    """Loads a tournament of HMMT: February 2025, November 2025 or February 2026.

    The columns are `problem` and `answer`. The column `problem_type`, a list, is optional.

    Args:
        competition: The year and the month of the tournament.
        path: A file in any form of `retool_env.problems.rows`. `None`: the file `hmmt_feb25`,
            `hmmt_nov25` or `hmmt_feb26` in the folder of `RETOOL_DATA`, or the Hub if the file is
            missing.

    Raises:
        ProblemsUnavailable: The file is missing, and the Hub can't be reached.
        ValueError: The competition is unknown, or a row does not give a problem.
    """
    _check("competition", competition, ("2025-02", "2025-11", "2026-02"))
    return _load(f"hmmt/{competition}", path)


def brumo(*, path: Location = None) -> ProblemList:
    """Loads the 30 problems of BRUMO 2025, the mathematics olympiad of Brown University.

    The columns are `problem` and `answer`. The column `problem_type`, a list, is optional.

    Args:
        path: A file in any form of `retool_env.problems.rows`. `None`: the file `brumo25` in the
            folder of `RETOOL_DATA`, or the Hub if the file is missing.

    Raises:
        ProblemsUnavailable: The file is missing, and the Hub can't be reached.
        ValueError: A row does not give a problem.
    """
    return _load("brumo/2025", path)


def apex(shortlist: bool = False, *, path: Location = None) -> ProblemList:
    """Loads MathArena Apex: problems of competitions in 2025 that the best models seldom solved.

    The columns are `problem` and `answer`. The column `problem_type`, a list, is optional.

    Args:
        shortlist: Whether to load the 48 problems of the shortlist instead of the 12 problems of
            Apex 2025.
        path: A file in any form of `retool_env.problems.rows`. `None`: the file `apex25` or
            `apex_shortlist` in the folder of `RETOOL_DATA`, or the Hub if the file is missing.

    Raises:
        ProblemsUnavailable: The file is missing, and the Hub can't be reached.
        ValueError: A row does not give a problem.
    """
    return _load("apex/shortlist" if shortlist else "apex/2025", path)


def beyond_aime(*, path: Location = None) -> ProblemList:
    """Loads BeyondAIME: 100 problems with integer answers, harder than AIME.

    The columns are `problem` and `answer`.

    Args:
        path: A file in any form of `retool_env.problems.rows`. `None`: the file `beyondaime` in the
            folder of `RETOOL_DATA`, or the Hub if the file is missing.

    Raises:
        ProblemsUnavailable: The file is missing, and the Hub can't be reached.
        ValueError: A row does not give a problem.
    """
    return _load("beyondaime", path, leave_out=())


def amo(*, path: Location = None) -> ProblemList:
    """Loads the 39 problems of AMO-Bench whose answers are graded by rule.

    The column `answer_type` tells them apart: `number`, `set` and `variable` are graded by rule.
    The other 11 answers (`description`) need a judge, and are left out. The prompts tell the model
    how to write the answer; these instructions are removed.

    The columns are `prompt`, `answer` and `answer_type`.

    Args:
        path: A file in any form of `retool_env.problems.rows`. `None`: the file `amo_bench` in the
            folder of `RETOOL_DATA`, or the Hub if the file is missing.

    Raises:
        ProblemsUnavailable: The file is missing, and the Hub can't be reached.
        ValueError: A row does not give a problem, or has no known type of answer.
    """
    return _load("amo", path, _amo_question, (Reason.NEEDS_JUDGE, Reason.NOT_GRADABLE))


def olymmath(
    language: Literal["en", "zh"] = "en",
    level: Literal["easy", "hard"] = "hard",
    *,
    path: Location = None,
) -> ProblemList:
    """Loads 100 problems of OlymMATH, in English or in Chinese.

    The columns are `problem` and `answer`. The column `subject` is optional.

    Args:
        language: `en` or `zh`. The problems of both languages are the same.
        level: `easy`, about as hard as AIME, or `hard`.
        path: A file in any form of `retool_env.problems.rows`. `None`: the file
            `olymmath_<language>_<level>` in the folder of `RETOOL_DATA`, or the Hub if the file is
            missing.

    Raises:
        ProblemsUnavailable: The file is missing, and the Hub can't be reached.
        ValueError: The language or the level is unknown, or a row does not give a problem.
    """
    _check("language", language, ("en", "zh"))
    _check("level", level, ("easy", "hard"))
    return _load(f"olymmath/{language}-{level}", path)


def _load(
    key: str,
    path: Location,
    question: Callable[[Row], str] = question_of,
    leave_out: tuple[Reason, ...] = (Reason.NOT_GRADABLE,),
) -> ProblemList:
    """Loads a set of the catalogue.

    Args:
        key: The key in the catalogue. It is also the beginning of the problems' ids.
        path: The file that the caller gives; `None`: the folder of `RETOOL_DATA`, or the Hub.
        question: Reads the question of a row.
        leave_out: The reasons for which a row is omitted.
    """
    data_set = DATA_SETS[key]

    def convert(index: int, row: Row) -> Problem:
        text = question(row)
        metadata: dict[str, str | int] = {"published": data_set.published}
        if subject := _subject(row):
            metadata["subject"] = subject
        return Problem(f"{key}/{index}", text, gold_of(row), metadata)

    return load(path, data_set.files, data_set.hub, convert, leave_out)


def _subject(row: Row) -> str | None:
    """The subjects of a problem, joined: `Algebra, Number Theory`."""
    column = find_column(row, ("subject", "problem_type"))
    if column is None or not column[1]:
        return None
    value: Any = column[1]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _amo_question(row: Row) -> str:
    column = find_column(row, ("answer_type",))
    kind = None if column is None else column[1]
    if kind == _BY_JUDGE:
        raise UnusableRow(
            Reason.NEEDS_JUDGE, f"the type of the answer is {kind!r}, which no rule can grade"
        )
    if kind not in _BY_RULE:
        known = ", ".join((*_BY_RULE, _BY_JUDGE))
        raise DataError(f"the column 'answer_type' must be one of {known}, not {kind!r:.40}")
    return _AMO_INSTRUCTIONS.sub("", question_of(row))


def _check(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SettingsError(f"{name} must be one of {', '.join(map(repr, known))}, not {value!r}")
