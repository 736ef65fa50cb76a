"""Generated problems: integer arithmetic of five difficulties."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from retool_env.problems.generated import Draft, Generated


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


class Arithmetic(Generated):
    """A source of generated problems, which `arithmetic` returns."""

    name = "arithmetic"
    most = 5

    def draw(self, rng: random.Random, level: int) -> Draft:
        """See `Generated`. The expression decides the split."""
        term = _LEVELS[level](rng)
        question = f"Compute {term.text}."
        return Draft(question, term.value, {"expression": term.text}, term.text)


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
    return Arithmetic.of(seed, difficulty, size, split)
