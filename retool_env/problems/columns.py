"""The question and the answer of a row of a data set.

The answer becomes a *gold*: the text that an episode's answer is graded against. A gold is exact: a
number is written in decimal digits, never rounded and never with an exponent. All sources read the
same columns. `check_gold` refuses a gold that no answer can equal, because every episode of such a
problem would be wrong.
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
"""The names of the question's column. The first column with a value counts; case is ignored."""

ANSWER_KEYS = ("answer", "output", "ground_truth", "reward_model.ground_truth", "solution")
"""The names of the answer's column. The first column with a value counts; case is ignored.

`a.b` is a column of this name, or the key `b` inside the column `a`.
"""

WORKED_KEYS = ("solution",)
"""Columns that hold a worked solution: only the content of its last `\\boxed{}` is the answer."""

# Python, JSON, SQL, numpy and pandas write missing and undefined values in these forms.
_NO_VALUE = frozenset(("none", "null", "nan", "n/a", "<na>", "nat", "undefined", "inf", "infinity"))
_EXPONENT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]+")
_NUMBER = re.compile(r"[$]?[+-]?[0-9][0-9,]*(?:\.[0-9]+)?")
_COMMAND = re.compile(
    r"\\\\|\\(?:begin|end|text|mbox|textbf|textit|mathrm)\s*\{[^{}]*\}|\\[A-Za-z]+"
)
_WORD = re.compile(r"[^\W\d_]{3}")


class Reason(StrEnum):
    """The reason why a row does not give a problem."""

    NO_ANSWER = "no answer"
    NOT_GRADABLE = "an answer that can't be graded"
    NEEDS_JUDGE = "an answer that needs a judge"
    CONFLICT = "different answers to the same question"
    REPEATED = "a repeated question"


class UnusableRow(DataError):
    """A row is intact but does not give a problem. Some sources omit such rows.

    Args:
        reason: The reason, by which a source decides to omit the row or to raise the error.
        message: The error text.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def question_of(row: Row, keys: Sequence[str] = QUESTION_KEYS) -> str:
    """Returns the question of a row.

    Args:
        row: The values of the row by column.
        keys: The possible names of the column; the first column with a value counts. The value is
            text, or a list of chat messages with one message of the user.

    Raises:
        MissingColumn: The row has none of these columns.
        ValueError: The value is neither text nor such a list, or it is empty.
    """
    name, value = _column(row, keys, "question")
    text = _user_message(value) if isinstance(value, list) else value
    if not isinstance(text, str):
        raise DataError(
            f"the question ({name!r}) is neither text nor a list of chat messages with exactly "
            f"one message besides the system's, from the user: {value!r:.60}"
        )
    if not text.strip():
        raise DataError(f"the question ({name!r}) is empty")
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
    r"""Returns the checked gold of a row.

    Args:
        row: The values of the row by column.
        keys: The possible names of the column; the first column with a value counts.
        worked: The columns that hold a worked solution. Of a worked solution, only the content of
            its last `\boxed{}` is the answer.
        trust_formulas: Whether to accept LaTeX without words unparsed: see `check_gold`.

    Raises:
        UnusableRow: The row has no answer, or its answer can't be graded.
        MissingColumn: The row has none of these columns.
        ValueError: The value is not an answer: see `gold_text`.
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
                f"the solution ({name!r}) has no \\boxed{{}} with the answer; box the answer, or "
                "write it into a column 'answer'",
            )
        value = value if boxed is None else boxed
    try:
        gold = gold_text(value)
        check_gold(gold, trust_formulas)
    except UnusableRow as error:
        raise UnusableRow(error.reason, f"the answer ({name!r}) {error}") from None
    except ValueError as error:
        raise DataError(f"the answer ({name!r}) {error}") from None
    return gold


def gold_text(value: Any) -> str:
    r"""Returns the text of an answer.

    The answer is the text after the last `####`, as in GSM8K, or the content of a `\boxed{}`, or
    the whole text. Several boxes with different values are the list of these values. A number is
    written in decimal digits. A list stands for its value; equal values count once.

    Args:
        value: Text, an integer, a float, a `Decimal`, a numpy scalar, or a list of one value.

    Raises:
        UnusableRow: The answer is empty.
        ValueError: The value is null, a truth value, NaN, infinite, an object, or a list of
            different answers; the error text names the case.

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
        # `str` gives the fewest digits that identify the number, also for numpy's narrow floats.
        return _decimal_text(Decimal(str(value)))
    if isinstance(value, dict):
        raise DataError(f"is an object, neither text nor a number: {value!r:.60}")
    kind = "a truth value" if str(value) in ("True", "False") else type(value).__name__
    raise DataError(f"is {kind}, neither text nor a number: {value!r:.60}")


def check_gold(gold: str, trust_formulas: bool = False) -> None:
    r"""Checks that a gold is a value, and that an answer can equal it.

    Args:
        gold: The text of the gold.
        trust_formulas: Whether LaTeX without words counts as a value if its braces are closed,
            without parsing. Parsing thousands of formulas takes many seconds at each start.

    Raises:
        UnusableRow: The gold is not a value, or no answer can equal it.
    """
    if gold.lstrip("+-").casefold() in _NO_VALUE:
        message = (
            f"is {gold!r}, the text of a missing value; write \\text{{{gold}}} if this word is the "
            "answer"
        )
    elif len(gold) > MAX_CHARS:
        message = (
            f"has {len(gold):,} characters, but the grader refuses answers of more than "
            f"{MAX_CHARS:,} characters: {gold:.40}..."
        )
    elif not _is_gradable(gold, trust_formulas):
        message = (
            "can't be graded, even if a \\boxed{} repeats it word for word; close all braces and "
            f"give one value: {gold!r:.60}"
        )
    else:
        return
    raise UnusableRow(Reason.NOT_GRADABLE, message)


def worked_result(solution: str) -> str:
    r"""Returns the result of a worked solution of GSM8K: the text after its last `####`.

    Raises:
        UnusableRow: The solution has no `####`, or the text after it is empty.

    Example:
        >>> worked_result("48 / 2 = <<48/2=24>>24 clips\n#### 24")
        '24'
    """
    _, mark, result = solution.rpartition("####")
    if not mark or not result.strip():
        raise UnusableRow(Reason.NO_ANSWER, "has no result after '####'")
    return result.strip()


def is_number(text: str) -> bool:
    """Whether a text is one decimal number, such as `1,234` or `$0.50`."""
    return _NUMBER.fullmatch(text.strip()) is not None


def is_missing(value: object) -> bool:
    """Whether a cell is empty: null, blank text, or NaN, which tables write into empty cells."""
    return value is None or (isinstance(value, str) and not value.strip()) or _is_nan(value)


def find_column(row: Row, keys: Sequence[str]) -> tuple[str, Any] | None:
    """Returns the name and the value of the first column of `keys` that has a value.

    Args:
        row: The values of the row by column.
        keys: The possible names of the column.

    Returns:
        The name and the value. If no column has a value, the first column that the row has; `None`
        if the row has none of the columns.
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
    """The columns that `keys` name, in the order of `keys`.

    Each is a column and `None`, or a column and the key inside its object.
    """
    folded = {name.casefold(): name for name in reversed(names)}
    columns: list[tuple[str, str | None]] = []
    for key in keys:
        outer, dot, inner = key.partition(".")
        if key in names:
            columns.append((key, None))
        elif key.casefold() in folded:
            columns.append((folded[key.casefold()], None))
        elif dot and outer.casefold() in folded:
            columns.append((folded[outer.casefold()], inner))
    return columns


def _column(row: Row, keys: Sequence[str], role: str) -> tuple[str, Any]:
    if (column := find_column(row, keys)) is not None:
        return column
    if len(keys) == 1:
        raise MissingColumn(f"no column {keys[0]!r} for the {role}, only {_shown_columns(row)}")
    raise MissingColumn(
        f"no column for the {role}: expected one of {', '.join(keys)}, found {_shown_columns(row)}"
    )


def _shown_columns(row: Row) -> list[str]:
    return sorted(
        f"{name}.{key}" if key is not None else name
        for name, value in row.items()
        for key in (value if isinstance(value, dict) and value else (None,))
    )


def _user_message(messages: list[Any]) -> str | None:
    """The content of the user's message; `None` if the messages do not have exactly one."""
    others = [m for m in messages if not isinstance(m, dict) or m.get("role") != "system"]
    if len(others) == 1 and isinstance(others[0], dict) and others[0].get("role", "user") == "user":
        return others[0].get("content")
    return None


def _gold_of_text(text: str) -> str:
    text = text.strip()
    if text[:1] == "[" and text[1:].lstrip()[:1] in ("'", '"') and len(text) <= MAX_CHARS:
        try:
            values = ast.literal_eval(text)  # a list that was printed into a text cell
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            values = None
        if isinstance(values, list):
            return _only_gold(values)
    if "####" in text:
        text = worked_result(text)
    if boxes := boxed_spans(text):
        # Several boxes with different values are the list of these values, as in an answer.
        return ", ".join(_different_golds([text[start:end] for _, start, end in boxes]))
    if _EXPONENT.fullmatch(text):
        try:
            return _decimal_text(Decimal(text))
        except InvalidOperation:
            raise DataError(f"is a number with an exponent out of range: {text:.40}") from None
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
        raise DataError(f"is a list of different answers; give one value: {golds!r:.100}")
    return golds[0]


def is_same_gold(gold: str, other: str) -> bool:
    """Whether two golds have the same value."""
    return gold == other or is_equivalent(gold, other)


def _decimal_text(number: Decimal) -> str:
    if number.is_nan():
        raise DataError("is not a number (NaN)")
    if number.is_infinite():
        raise DataError("is infinite")
    if number.is_zero():
        return "0"
    if max(abs(number.adjusted()), -int(number.as_tuple().exponent)) > MAX_CHARS:
        raise DataError(
            f"is a number of more than {MAX_CHARS:,} digits, but the grader refuses answers of "
            f"more than {MAX_CHARS:,} characters: {number:.6e}"
        )
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _is_nan(value: object) -> bool:
    return isinstance(value, Real | Decimal) and value != value


def _is_gradable(gold: str, trust_formulas: bool) -> bool:
    if trust_formulas and not _WORD.search(_COMMAND.sub("", gold)):
        return is_equivalent(f"\\boxed{{{gold}}}", gold)
    return is_value(gold)
