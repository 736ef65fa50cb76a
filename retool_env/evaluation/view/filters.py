r"""The filter query of the viewers: one line that selects rows.

The parts of a query stand between blanks, and a row must pass all parts. The bare word `and` is
ignored. `-` in front of a part negates it. A part is `NAME:VALUE`, or a text.

| part                                             | a row passes if                              |
|--------------------------------------------------|----------------------------------------------|
| `right:yes`, `right:no`, `right:none`            | its answer is right, wrong, not graded       |
| `error:timeout`                                  | a failed call has this error                 |
| `fault:wrong_value`, `fault:yes`, `fault:no`     | a fault of this kind, any fault, no fault    |
|                                                  | was injected                                 |
| `void:yes`, `void:no`                            | it has a void turn, or has not               |
| `trained:yes`, `trained:no`                      | a trainer used it, or did not                |
| `flipped:yes`, `flipped:no`                      | the other run's same episode has another     |
|                                                  | grade, or the same grade                     |
| `arm:…`, `protocol:…`, `problem:…`, `stop:…`     | the field has this value                     |
| `calls:3`, `calls:>=2`, `failed:>0`, `tokens:…`, | the number fits; a missing number never fits |
| `turns:…`, `step:…`, `reward:<0`, `sample:…`,    |                                              |
| `version:…`                                      |                                              |
| any other word, or a text between `"`            | the episode holds the text                   |

Values are compared whole, without regard to case. Commas between values mean *or*, as in
`stop:answered,stopped`. A value between `"` may hold blanks and commas. A word with `:` and an
unknown name is an error, so that a misspelt name does not search for a text; between `"` it is a
text.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from retool_env.errors import SettingsError

Row = Mapping[str, Any]
"""A row of an index; see `retool_env.evaluation.view.rows.make_row`."""

_BLANKS = re.compile(r"\s*")
_NAME = re.compile(r"([A-Za-z_]+):")
_QUOTED = re.compile(r'"([^"]*)"')
_BARE_VALUE = re.compile(r'[^\s",]+')
_BARE_TEXT = re.compile(r'[^\s"]+')
_NUMBER = re.compile(r"(>=|<=|>|<)?(-?[0-9]+(?:\.[0-9]+)?)")
_COMPARISONS: dict[str | None, Callable[[float, float], bool]] = {
    **{None: operator.eq, ">=": operator.ge, "<=": operator.le},
    **{">": operator.gt, "<": operator.lt},
}

NUMBERS = ("calls", "failed", "turns", "tokens", "step", "reward", "sample", "version")
"""The names of parts that compare a number."""
TEXTS = ("problem", "protocol", "arm", "stop")
"""The names of parts that compare a text."""
_WORDS: dict[str, dict[str, bool | None]] = {
    "right": {"yes": True, "no": False, "none": None},
    "void": {"yes": True, "no": False},
    "trained": {"yes": True, "no": False},
    "flipped": {"yes": True, "no": False},
}
NAMES = tuple(sorted([*NUMBERS, *TEXTS, *_WORDS, "error", "fault"]))
"""The names of all parts."""


class FilterError(SettingsError):
    """A query can't be read.

    Args:
        message: The fault, in words.
        at: Number of characters before the fault.
    """

    def __init__(self, message: str, at: int) -> None:
        super().__init__(f"{message} (character {at + 1} of the filter)")
        self.at = at


@dataclass(frozen=True)
class Part:
    """One part of a query."""

    name: str
    """The name before the colon; empty for a text."""
    values: tuple[str, ...]
    """The values in lower case, of which one must fit; for a text the text as written."""
    negated: bool = False
    """Whether a `-` stands in front."""


@dataclass(frozen=True)
class Filter:
    """A query that was read."""

    parts: tuple[Part, ...] = ()
    """The parts. Without parts every row passes."""

    @classmethod
    def parse(cls, query: str) -> Filter:
        """Reads a query.

        Args:
            query: The query; see the module's table.

        Raises:
            FilterError: The query can't be read.

        Example:
            >>> Filter.parse("right:no -error:timeout")  # doctest: +NORMALIZE_WHITESPACE
            Filter(parts=(Part(name='right', values=('no',), negated=False),
                          Part(name='error', values=('timeout',), negated=True)))
        """
        parts = []
        at = _after_blanks(query, 0)
        while at < len(query):
            part, end = _read_part(query, at)
            if query[at:end] != "and":
                parts.append(part)
            if end < len(query) and not query[end].isspace():
                raise FilterError(f"expected a blank before {query[end]!r}", end)
            at = _after_blanks(query, end)
        return cls(tuple(parts))

    @property
    def texts(self) -> list[str]:
        """The texts to search for, each once."""
        return list(dict.fromkeys(part.values[0] for part in self.parts if not part.name))

    def keeps(
        self,
        row: Row,
        holders: Mapping[str, Collection[str]],
        flips: Mapping[str, bool] | None = None,
    ) -> bool:
        """Whether a row passes.

        Args:
            row: The row.
            holders: The addresses of the episodes that hold a text, for each of `texts`.
            flips: The result of `flips`; `None` without another run, where no row fits `flipped`.
        """
        return all(
            _fits(part, row, holders, flips or {}) is not part.negated for part in self.parts
        )


def flips(rows: Iterable[Row], others: Iterable[Row]) -> dict[str, bool]:
    """Whether the same episode of another run has another grade.

    The same episode has the same problem, sample, protocol, arm, parent and call.

    Args:
        rows: The rows of a run.
        others: The rows of the other run.

    Returns:
        The verdicts by address, for the episodes that both runs have and have graded.
    """
    grades = {episode_key(row): row["right"] for row in others if row["right"] is not None}
    return {
        row["address"]: row["right"] is not grades[key]
        for row in rows
        if (key := episode_key(row)) in grades and row["right"] is not None
    }


def episode_key(row: Row) -> tuple[Any, ...]:
    """The values that the same episode has in another run of the same plan."""
    names = ("problem", "sample", "protocol", "arm", "parent", "call")
    return tuple(row[name] for name in names)


def _after_blanks(query: str, at: int) -> int:
    blanks = _BLANKS.match(query, at)
    assert blanks is not None  # it may match nothing
    return blanks.end()


def _read_part(query: str, at: int) -> tuple[Part, int]:
    """The part that begins at an index, and the index of its end."""
    negated = query[at] == "-" and query[at + 1 : at + 2].strip() != ""
    start = at + negated
    named = _NAME.match(query, start)
    if named is None:
        text, end = _read_value(query, start, _BARE_TEXT)
        return Part("", (text,), negated), end
    name = named[1].lower()
    if name not in NAMES:
        raise FilterError(
            f"unknown filter {named[1]!r:.60}; known are {', '.join(NAMES)}; for a text, write it "
            'between "',
            start,
        )
    values, end = [], named.end()
    while True:
        value, after = _read_value(query, end, _BARE_VALUE)
        values.append(value.lower())
        _check_value(name, values[-1], end)
        end = after
        if query[end : end + 1] != ",":
            return Part(name, tuple(values), negated), end
        end += 1


def _read_value(query: str, at: int, bare: re.Pattern[str]) -> tuple[str, int]:
    if match := _QUOTED.match(query, at):
        return match[1], match.end()
    if query[at : at + 1] == '"':
        raise FilterError('the closing " is missing', at)
    match = bare.match(query, at)
    if match is None:
        raise FilterError("a value is missing", at)
    return match[0], match.end()


def _check_value(name: str, value: str, at: int) -> None:
    if name in NUMBERS and not _NUMBER.fullmatch(value):
        raise FilterError(
            f"{name} is compared with a number, as in {name}:3 or {name}:>=2, not {value!r:.40}", at
        )
    if name in _WORDS and value not in _WORDS[name]:
        raise FilterError(f"{name} is {' or '.join(_WORDS[name])}, not {value!r:.40}", at)


def _fits(
    part: Part, row: Row, holders: Mapping[str, Collection[str]], flips: Mapping[str, bool]
) -> bool:
    """Whether a row fits a part, its negation left out."""
    name = part.name
    if not name:
        return row["address"] in holders[part.values[0]]
    if name in NUMBERS:
        return any(_number_fits(value, row[name]) for value in part.values)
    if name in _WORDS:
        truth = {"flipped": flips.get(row["address"]), "void": row["void"] > 0}.get(
            name, row.get(name)
        )
        return any(_WORDS[name][value] is truth for value in part.values)
    have = {"error": "errors", "fault": "faults"}.get(name, name)
    values = row[have] if have != name else [row[name]]
    known = {value.lower() for value in values if value is not None}
    if name == "fault":
        known.add("yes" if known else "no")
    return not known.isdisjoint(part.values)


def _number_fits(wanted: str, number: float | None) -> bool:
    match = _NUMBER.fullmatch(wanted)
    assert match is not None  # checked when the query was read
    return (
        number is not None
        and not math.isnan(number)
        and _COMPARISONS[match[1]](number, float(match[2]))
    )
