"""What a row of a data set says: its question, and its answer as a *gold*, the text that is graded.

The same columns are known to all sources. A gold is exact: a number is written out in decimal,
never rounded and never with an exponent. `check_gold` is the one check of golds: what no
answer could be equal to is refused here, and not left to be wrong in every episode.
"""

import ast
import functools
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from numbers import Integral, Real
from typing import Any

from retool_env.errors import DataError, MissingColumn
from retool_env.grading import MAX_CHARS, boxed_spans, extract_boxed, is_equivalent, is_value

Row = dict[str, Any]

QUESTION_KEYS = ("question", "problem", "input", "prompt")
"""Columns taken for the question, the first that has a value; case doesn't matter."""

ANSWER_KEYS = ("answer", "output", "ground_truth", "reward_model.ground_truth", "solution")
"""Columns taken for the answer, likewise; `a.b` is a column of that name, or `b` inside `a`."""

WORKED_KEYS = ("solution",)
"""Columns that hold a worked solution: only the content of its last `\\boxed{}` is the answer."""

# As Python, JSON, SQL, numpy and pandas write a value that is missing or is no number.
_NO_VALUE = frozenset(("none", "null", "nan", "n/a", "<na>", "nat", "undefined", "inf", "infinity"))
_EXPONENT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]+")
_NUMBER = re.compile(r"[$]?[+-]?[0-9][0-9,]*(?:\.[0-9]+)?")


_COMMAND = re.compile(
    r"\\\\|\\(?:begin|end|text|mbox|textbf|textit|mathrm)\s*\{[^{}]*\}|\\[A-Za-z]+"
)
_WORD = re.compile(r"[^\W\d_]{3}")


class Reason(StrEnum):
    """Why a row gives no problem."""

    NO_ANSWER = "no answer"
    NOT_GRADABLE = "an answer that can't be graded"
    CONFLICT = "different answers to the same question"
    REPEATED = "a repeated question"


class UnusableRow(DataError):
    """A row that is whole, but gives no problem; some sources leave it out."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def question_of(row: Row, keys: Sequence[str] = QUESTION_KEYS) -> str:
    """Return the question of a row.

    Args:
        row: Its columns.
        keys: Names of the column; the first that has a value counts. The value is text, or chat
            messages of which one is the user's.

    Raises:
        MissingColumn: There is no such column.
        ValueError: It holds something else.
    """
    name, value = _column(row, keys, "question")
    text = _user_message(value) if isinstance(value, list) else value
    if not isinstance(text, str):
        raise DataError(
            f"the question ({name!r}) is not text, nor a list of one chat message of the user "
            f"(beside the system's): {value!r:.60}"
        )
    if not text.strip():
        raise DataError(f"the question is empty ({name!r})")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the question ({name!r}) is not Unicode text: {error.reason}") from None
    return text.strip()


def gold_of(
    row: Row,
    keys: Sequence[str] = ANSWER_KEYS,
    worked: Sequence[str] = WORKED_KEYS,
    trust_formulas: bool = False,
) -> str:
    r"""Return the gold of a row, checked.

    Args:
        row: Its columns.
        keys: Names of the column; the first that has a value counts.
        worked: Which of them hold a solution, of which only a `\boxed{}` is the answer.
        trust_formulas: See `check_gold`.

    Raises:
        UnusableRow: The row has no answer, or one that can't be graded.
        MissingColumn: There is no such column.
        ValueError: Its value is no answer: see `gold_text`.
    """
    name, value = _column(row, keys, "answer")
    if is_missing(value):
        shown = "empty" if isinstance(value, str) else "not a number (NaN)"
        shown = "null, neither text nor a number: None" if value is None else shown
        raise UnusableRow(Reason.NO_ANSWER, f"the answer ({name!r}) is {shown}")
    if name.casefold() in WORKED_KEYS and isinstance(value, str):
        boxed = extract_boxed(value)
        if boxed is None and name.casefold() in worked and "####" not in value:
            raise UnusableRow(
                Reason.NO_ANSWER,
                f"the solution ({name!r}) has no \\boxed{{}} with the answer; a column 'answer' "
                "may hold it as it is",
            )
        value = value if boxed is None else boxed  # the last of several
    try:
        gold = gold_text(value)
        check_gold(gold, trust_formulas)
    except UnusableRow as error:
        raise UnusableRow(error.reason, f"the answer ({name!r}) {error}") from None
    except ValueError as error:
        raise DataError(f"the answer ({name!r}) {error}") from None
    return gold


def gold_text(value: Any) -> str:
    r"""Write an answer as text.

    Of text with `####`, as in GSM8K, what follows the last one counts; of text with a
    `\boxed{}`, its content, and of several different ones their list. Numbers are written out in decimal, however they were written. A
    list counts as its only value; several that are equal are one.

    Args:
        value: Text, an integer, a float, a `Decimal`, numpy's scalars, or a list of one of these.

    Raises:
        UnusableRow: Nothing is left as the answer.
        ValueError: The value is null, a truth value, NaN, infinite, an object, or several
            different answers; the message says which.

    Example:
        >>> gold_text(1e20), gold_text(1e-05), gold_text(34.0), gold_text(["34"])
        ('100000000000000000000', '0.00001', '34', '34')
        >>> gold_text("48 / 2 = <<48/2=24>>24 clips\n#### 24")
        '24'
    """
    if isinstance(value, str):
        return _gold_of_text(value)
    if isinstance(value, list | tuple) or getattr(value, "ndim", False):
        return _only_gold(list(value))
    if value is None:
        raise DataError("is null, neither text nor a number: None")
    if isinstance(value, Integral) and not isinstance(value, bool):
        return _decimal_text(Decimal(int(value)))
    if isinstance(value, Decimal):
        return _decimal_text(value)
    if isinstance(value, Real) and not isinstance(value, bool):
        # `str` has the fewest digits that give the number back, in numpy's narrow floats as well.
        return _decimal_text(Decimal(str(value)))
    if isinstance(value, dict):
        raise DataError(f"is an object, neither text nor a number: {value!r:.60}")
    kind = "a truth value" if str(value) in ("True", "False") else type(value).__name__
    raise DataError(f"is {kind}, neither text nor a number: {value!r:.60}")


def check_gold(gold: str, trust_formulas: bool = False) -> None:
    r"""Check that an answer can be equal to a gold, and that the gold is a value.

    Args:
        gold: The text.
        trust_formulas: Whether LaTeX without words is taken for a value if its braces are closed.
            To parse thousands of formulas takes many seconds, at each start.

    Raises:
        UnusableRow: It can't.
    """
    if gold.lstrip("+-").casefold() in _NO_VALUE:
        message = (
            f"is {gold!r}, which is how programs write a missing value; write \\text{{{gold}}} if "
            "it is the answer"
        )
    elif len(gold) > MAX_CHARS:
        message = (
            f"has {len(gold):,} characters, and one of more than {MAX_CHARS:,} is never graded as "
            f"right: {gold:.40}..."
        )
    elif not _is_gradable(gold, trust_formulas):
        message = (
            "could not be given in a \\boxed{}, even word for word: braces must be closed, and one "
            f"value be named: {gold!r:.60}"
        )
    else:
        return
    raise UnusableRow(Reason.NOT_GRADABLE, message)


def worked_result(solution: str) -> str:
    r"""Return what follows the last `####` of a worked solution in the style of GSM8K.

    Raises:
        UnusableRow: Nothing does.

    Example:
        >>> worked_result("48 / 2 = <<48/2=24>>24 clips\n#### 24")
        '24'
    """
    _, mark, result = solution.rpartition("####")
    if not mark or not result.strip():
        raise UnusableRow(Reason.NO_ANSWER, "has no result after '####'")
    return result.strip()


def is_number(text: str) -> bool:
    """Whether text is one decimal number, as `1,234` or `$0.50`."""
    return _NUMBER.fullmatch(text.strip()) is not None


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: null, blank text, or the NaN that tables put there."""
    return value is None or (isinstance(value, str) and not value.strip()) or _is_nan(value)


def find_column(row: Row, keys: Sequence[str]) -> tuple[str, Any] | None:
    """Return name and value of the first column of `keys` that has a value.

    Where none has one, the first column that is there; `None` where there is none.
    """
    first = None
    for name, inner in _columns(tuple(row), tuple(keys)):
        value = row[name]
        if inner is not None:
            if not isinstance(value, dict) or inner not in value:
                continue
            name, value = f"{name}.{inner}", value[inner]
        if not is_missing(value):
            return name, value
        first = first or (name, value)
    return first


@functools.lru_cache(maxsize=256)  # the rows of a data set have the same columns
def _columns(names: tuple[str, ...], keys: tuple[str, ...]) -> list[tuple[str, str | None]]:
    """The columns that `keys` name, in their order, each with the key inside it, if any."""
    folded = {name.casefold(): name for name in reversed(names)}
    found: list[tuple[str, str | None]] = []
    for key in keys:
        outer, dot, inner = key.partition(".")
        if key in names:
            found.append((key, None))
        elif key.casefold() in folded:
            found.append((folded[key.casefold()], None))
        elif dot and outer.casefold() in folded:
            found.append((folded[outer.casefold()], inner))
    return found


def _column(row: Row, keys: Sequence[str], what: str) -> tuple[str, Any]:
    if (found := find_column(row, keys)) is not None:
        return found
    if len(keys) == 1:
        raise MissingColumn(f"no column {keys[0]!r} for the {what}, only {_shown_columns(row)}")
    raise MissingColumn(
        f"no column for the {what}: expected one of {', '.join(keys)}, found {_shown_columns(row)}"
    )


def _shown_columns(row: Row) -> list[str]:
    return sorted(
        f"{name}.{key}" if key is not None else name
        for name, value in row.items()
        for key in (value if isinstance(value, dict) and value else (None,))
    )


def _user_message(messages: list[Any]) -> str | None:
    """The content of the only message, but for the system's; `None` if there is no such."""
    said = [m for m in messages if not isinstance(m, dict) or m.get("role") != "system"]
    if len(said) == 1 and isinstance(said[0], dict) and said[0].get("role", "user") == "user":
        return said[0].get("content")
    return None


def _gold_of_text(text: str) -> str:
    text = text.strip()
    if text[:1] == "[" and text[1:].lstrip()[:1] in ("'", '"') and len(text) <= MAX_CHARS:
        try:
            values = ast.literal_eval(text)  # a list that was written into a text
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            values = None
        if isinstance(values, list):
            return _only_gold(values)
    if "####" in text:
        text = worked_result(text)
    if boxes := boxed_spans(text):
        # Several different ones are the list of their values, as in an answer.
        return ", ".join(_different_golds([text[start:end] for _, start, end in boxes]))
    if _EXPONENT.fullmatch(text):
        try:
            return _decimal_text(Decimal(text))
        except InvalidOperation:
            raise DataError(f"is a number beyond all bounds: {text:.40}") from None
    if not text:
        raise UnusableRow(Reason.NO_ANSWER, "is empty")
    return text


def _different_golds(values: list[Any]) -> list[str]:
    golds: list[str] = []
    for value in values:
        gold = gold_text(value)
        if not any(is_same_gold(gold, other) for other in golds):
            golds.append(gold)
    return golds


def _only_gold(values: list[Any]) -> str:
    golds = _different_golds(values)
    if not golds:
        raise UnusableRow(Reason.NO_ANSWER, "is an empty list")
    if len(golds) > 1:
        raise DataError(f"names different answers, where one value is needed: {golds!r:.100}")
    return golds[0]


def is_same_gold(one: str, other: str) -> bool:
    """Whether two golds are the same value."""
    return one == other or is_equivalent(one, other)


def _decimal_text(number: Decimal) -> str:
    if number.is_nan():
        raise DataError("is not a number (NaN)")
    if number.is_infinite():
        raise DataError("is infinite")
    if number.is_zero():
        return "0"
    if max(abs(number.adjusted()), -int(number.as_tuple().exponent)) > MAX_CHARS:
        raise DataError(
            f"is a number of more than {MAX_CHARS:,} digits, and an answer of that length is never "
            f"graded as right: {number:.6e}"
        )
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _is_nan(value: object) -> bool:
    return isinstance(value, Real | Decimal) and value != value


def _is_gradable(gold: str, trust_formulas: bool) -> bool:
    if trust_formulas and not _WORD.search(_COMMAND.sub("", gold)):
        return is_equivalent(f"\\boxed{{{gold}}}", gold)
    return is_value(gold)
