"""Problems made up on the fly: integer arithmetic of five difficulties.

A problem is a pure function of the source's settings and its index, so any number of processes
see the same ones, nothing is stored, and the held-out split can't leak: which split an expression
belongs to is decided by a hash of the expression itself, whatever the seed.
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
_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}


@dataclass(frozen=True)
class _Term:
    """Part of an expression; the text is valid Python and evaluates to the value."""

    text: str
    value: int

    def __add__(self, other: "_Term") -> "_Term":
        return self._join("+", other)

    def __sub__(self, other: "_Term") -> "_Term":
        return self._join("-", other)

    def __mul__(self, other: "_Term") -> "_Term":
        return self._join("*", other)

    def _join(self, sign: str, other: "_Term") -> "_Term":
        value = _OPERATORS[sign](self.value, other.value)
        return _Term(f"{self.text} {sign} {other.text}", value)


def _number(rng: random.Random, digits: int) -> _Term:
    value = rng.randrange(10 ** (digits - 1) if digits > 1 else 1, 10**digits)
    return _Term(str(value), value)


def _sum(rng: random.Random, left: _Term, right: _Term) -> _Term:
    """`left` plus or minus `right`, neither of which may need brackets there."""
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


_LEVELS: dict[int, Callable[[random.Random], _Term]] = {
    1: _level_1,
    2: _level_2,
    3: _level_3,
    4: _level_4,
    5: _level_5,
}


def _split_of(expression: str) -> str:
    digest = hashlib.sha256(expression.encode()).digest()
    return "test" if int.from_bytes(digest[:4]) < _TEST_SHARE * 2**32 else "train"


@dataclass(frozen=True)
class Arithmetic:
    """The source behind `arithmetic`."""

    seed: int
    """Another seed, other problems."""
    levels: tuple[int, ...]
    """The problem at index `i` has difficulty `levels[i % len(levels)]`."""
    size: int
    """How many problems there are."""
    split: Literal["train", "test"]
    """No expression is in both."""

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Problem:
        position = operator.index(index)
        if position < 0:
            position += self.size
        if not 0 <= position < self.size:
            raise IndexError(f"there are {self.size} problems, none at {index}")
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
        """Return the problem called `problem_id`; `KeyError` if there is none."""
        position = problem_id.removeprefix(self._prefix)
        is_number = position.isascii() and position.isdecimal()
        if is_number and len(position) <= len(str(self.size)) and int(position) < self.size:
            problem = self[int(position)]
            if problem.id == problem_id:  # and not "007", or a bare number
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
    """Make integer arithmetic, such as "Compute (12 + 34) * 56 - 7.".

    1: a sum of four to six one-digit numbers; 2: two digits times one, or a sum or difference of
    two two-digit numbers; 3: a two-digit product, perhaps with a summand; 4: two-digit operands in
    one or two brackets; 5: three-digit operands, nested brackets, a three-digit product. Answers
    are integers, negative ones too. The metadata hold the `difficulty` and the `expression`, valid
    Python.

    Args:
        seed: Another seed, other problems.
        difficulty: From 1 to 5, or a tuple of which the problems take turns.
        size: How many problems. The lower levels repeat themselves: level 2 has some 17,000.
        split: A tenth of all expressions is "test", whatever the seed; the rest is "train".

    Raises:
        ValueError: A difficulty, a size or a split that there isn't.

    Example:
        >>> arithmetic(seed=1, difficulty=4)[0].metadata["difficulty"]
        4
    """
    levels = (difficulty,) if isinstance(difficulty, int) else tuple(difficulty)
    if not levels or any(level not in _LEVELS for level in levels):
        raise SettingsError(f"difficulty is one of 1 to 5, or a tuple of them, not {difficulty!r}")
    if size < 1:
        raise SettingsError(f"size is at least 1, not {size!r}")
    if split not in ("train", "test"):
        raise SettingsError(f"split is 'train' or 'test', not {split!r}")
    return Arithmetic(seed, levels, size, split)
