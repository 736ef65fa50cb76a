"""Generated problems: integer arithmetic of five difficulties.

A problem is a pure function of the source's settings and the problem's index. So all processes see
the same problems, and nothing is stored. A hash of the expression decides its split, for every
seed. So an expression of the test split is never in the training split.
"""

import hashlib
import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from retool_env.errors import SettingsError
from retool_env.problem import Problem, unknown_id

_TEST_SHARE = 0.1


@dataclass(frozen=True)
class _Term:
    """A part of an expression: its text, which is valid Python, and its value."""

    text: str
    value: int

    def __add__(self, other: "_Term") -> "_Term":
        return _Term(f"{self.text} + {other.text}", self.value + other.value)

    def __sub__(self, other: "_Term") -> "_Term":
        return _Term(f"{self.text} - {other.text}", self.value - other.value)

    def __mul__(self, other: "_Term") -> "_Term":
        return _Term(f"{self.text} * {other.text}", self.value * other.value)


def _number(rng: random.Random, digits: int) -> _Term:
    value = rng.randrange(10 ** (digits - 1) if digits > 1 else 1, 10**digits)
    return _Term(str(value), value)


def _sum(rng: random.Random, left: _Term, right: _Term) -> _Term:
    """`left` plus or minus `right`, without brackets: neither operand may need them."""
    return left + right if rng.random() < 0.5 else left - right


def _bracket(term: _Term) -> _Term:
    return _Term(f"({term.text})", term.value)


def _level_1(rng: random.Random) -> _Term:
    term = _number(rng, 1)
    for _ in range(rng.choice((3, 4, 5))):
        term = term + _number(rng, 1)
    return term


def _level_2(rng: random.Random) -> _Term:
    if rng.random() < 0.5:
        return _number(rng, 2) * _number(rng, 1)
    return _sum(rng, _number(rng, 2), _number(rng, 2))


def _level_3(rng: random.Random) -> _Term:
    product = _number(rng, 2) * _number(rng, 2)
    return product if rng.random() < 0.3 else _sum(rng, product, _number(rng, 2))


def _level_4(rng: random.Random) -> _Term:
    first = _bracket(_sum(rng, _number(rng, 2), _number(rng, 2)))
    if rng.random() < 0.5:
        return _sum(rng, first * _number(rng, 2), _number(rng, 2))
    return first * _bracket(_sum(rng, _number(rng, 2), _number(rng, 2)))


def _level_5(rng: random.Random) -> _Term:
    inner = _bracket(_sum(rng, _number(rng, 3), _number(rng, 3))) * _number(rng, 2)
    outer = _bracket(_sum(rng, inner, _number(rng, 3))) * _number(rng, 2)
    return _sum(rng, outer, _number(rng, 3) * _number(rng, 3))


_LEVELS: dict[int, Callable[[random.Random], _Term]] = dict(
    enumerate((_level_1, _level_2, _level_3, _level_4, _level_5), start=1)
)


def _split_of(expression: str) -> str:
    digest = hashlib.sha256(expression.encode()).digest()
    return "test" if int.from_bytes(digest[:4]) < _TEST_SHARE * 2**32 else "train"


@dataclass(frozen=True)
class Arithmetic:
    """A source of generated problems, which `arithmetic` returns."""

    seed: int
    """The seed. A different seed gives different problems."""
    levels: tuple[int, ...]
    """The difficulties, from 1 to 5: problem `i` has the difficulty `levels[i % len(levels)]`."""
    size: int
    """The number of problems."""
    split: Literal["train", "test"]
    """The split. No expression is in both splits."""

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Problem:
        position = operator.index(index)
        if position < 0:
            position += self.size
        if not 0 <= position < self.size:
            raise IndexError(
                f"the index {index} is out of range: the source has {self.size} problems"
            )
        level = self.levels[position % len(self.levels)]
        rng = random.Random(f"{self.seed}/{level}/{self.split}/{position}")
        term = _LEVELS[level](rng)
        while _split_of(term.text) != self.split:
            term = _LEVELS[level](rng)
        return Problem(
            f"{self._prefix}{position}",
            f"Compute {term.text}.",
            str(term.value),
            {"difficulty": level, "expression": term.text},
        )

    def get(self, problem_id: str) -> Problem:
        """Returns the problem with an id.

        Raises:
            KeyError: No problem has this id.
        """
        position = problem_id.removeprefix(self._prefix)
        is_number = position.isascii() and position.isdecimal()
        if is_number and len(position) <= len(str(self.size)) and int(position) < self.size:
            problem = self[int(position)]
            if problem.id == problem_id:  # "007" or a bare number is not an id
                return problem
        raise unknown_id(problem_id, (f"{self._prefix}0", f"{self._prefix}{self.size - 1}"))

    @property
    def _prefix(self) -> str:
        levels = "".join(map(str, self.levels))
        return f"arithmetic/{self.split}-seed{self.seed}-level{levels}/"


def arithmetic(
    seed: int = 0,
    difficulty: int | tuple[int, ...] = 1,
    *,
    size: int = 10_000,
    split: Literal["train", "test"] = "train",
) -> Arithmetic:
    """Generates problems of integer arithmetic, such as "Compute (12 + 34) * 56 - 7.".

    The answers are integers and may be negative. The metadata hold the `difficulty` and the
    `expression`, which is valid Python. The difficulties are:

    1. a sum of four to six one-digit numbers;
    2. a two-digit number times a one-digit number, or a sum or difference of two-digit numbers;
    3. a product of two-digit numbers, with or without another summand;
    4. two-digit numbers, with one or two brackets;
    5. three-digit numbers, with nested brackets and a product of three-digit numbers.

    Args:
        seed: The seed. A different seed gives different problems.
        difficulty: The difficulty, from 1 to 5; with a tuple, the problems take its values in turn.
        size: The number of problems. Low difficulties repeat problems: difficulty 2 has some 17,000
            different problems.
        split: The split. A tenth of all expressions is in `test`, for every seed; all other
            expressions are in `train`.

    Raises:
        ValueError: The difficulty, the size or the split is not one of these.

    Example:
        >>> arithmetic(seed=1, difficulty=4)[0].metadata["difficulty"]
        4
    """
    levels = (difficulty,) if isinstance(difficulty, int) else tuple(difficulty)
    if not levels or any(level not in _LEVELS for level in levels):
        raise SettingsError(f"difficulty must be 1 to 5, or a tuple of these, not {difficulty!r}")
    if size < 1:
        raise SettingsError(f"size must be at least 1, not {size!r}")
    if split not in ("train", "test"):
        raise SettingsError(f"split must be 'train' or 'test', not {split!r}")
    return Arithmetic(seed, levels, size, split)
