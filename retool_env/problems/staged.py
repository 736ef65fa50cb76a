"""Generated problems in stages, whose sub-results are known.

A problem defines numbers one after the other, each from the number before it: "Let a = 23 * 47. Let
b be the sum of the decimal digits of a. Let c = a * b - 19. Compute c." A program naturally prints
one number for each stage. If the interpreter shows a false value of a stage, `implied_answer` tells
the final answer to which this value leads.

The metadata hold the stages as JSON text (`stages`), which `read_stages` reads. A stage names its
operation, so that nothing in the metadata is ever run as code.
"""

import dataclasses
import json
import math
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from retool_env.errors import DataError
from retool_env.problem import Problem
from retool_env.problems.generated import Draft, Generated

IMPORTS = "from math import gcd, lcm\n\nfrom sympy import divisor_count, factorint\n"
"""The imports that the expressions of stages need."""

_LARGEST = 10**8
"""The largest value of a stage."""
_LEAST_ANSWER = 10
"""The least answer of a problem: smaller answers are guessed too often."""
_MOST_FACTORED = 10**15
"""The largest number that is factored: a false value can be larger than any value of a stage."""

_PRINTED = re.compile(r"print\(\s*([a-z])\b\s*\)?\s*$", re.MULTILINE)
_NUMBER = re.compile(r"(?<![\w.])[0-9]{1,18}(?![\w.])")

Operands = tuple[str | int, ...]
"""Numbers, and names of earlier stages."""


@dataclass(frozen=True)
class Stage:
    """One stage of a problem."""

    name: str
    """The name of its number: `a`, `b`, ..."""
    operation: str
    """The name of the operation that gives its number."""
    operands: Operands
    """The operands: numbers, and names of earlier stages."""
    text: str
    """The definition, as the question states it."""
    expression: str
    """The definition as a Python expression. It needs `IMPORTS` and the earlier names."""
    value: int
    """The number. No two stages of a problem have the same number."""


def _factors(number: int) -> Mapping[int, int] | None:
    """The prime factors with their exponents; `None` if the number is not factored here."""
    from sympy import factorint  # here: its import takes half a second

    return factorint(number) if 2 <= number <= _MOST_FACTORED else None


def _digit_sum(number: int) -> int | None:
    return sum(map(int, str(number))) if 0 <= number <= _MOST_FACTORED else None


def _divisors(number: int) -> int | None:
    factors = _factors(number)
    return None if factors is None else math.prod(power + 1 for power in factors.values())


def _largest_prime(number: int) -> int | None:
    factors = _factors(number)
    return None if factors is None else max(factors)


def _prime_sum(number: int) -> int | None:
    factors = _factors(number)
    return None if factors is None else sum(p * power for p, power in factors.items())


def _squares(first: int, last: int) -> int:
    def below(n: int) -> int:
        return (n - 1) * n * (2 * n - 1) // 6

    return below(last + 1) - below(first)


def _multiples(last: int, divisor: int) -> int:
    count = last // divisor
    return divisor * count * (count + 1) // 2


@dataclass(frozen=True)
class _Operation:
    """An operation on integers. Templates have a numbered field for each operand."""

    expression: str
    """The Python expression."""
    compute: Callable[..., int | None]
    """The value of the expression; `None` where it has none, or none that is needed here."""
    words: str = ""
    """The value in words. Empty: the question states the expression."""


_OPERATIONS: Mapping[str, _Operation] = {
    "product": _Operation("{0} * {1}", lambda a, b: a * b),
    "product_less": _Operation("{0} * {1} - {2}", lambda a, b, c: a * b - c),
    "product_more": _Operation("{0} * {1} + {2}", lambda a, b, c: a * b + c),
    "sum": _Operation("{0} + {1}", lambda a, b: a + b),
    "power_remainder": _Operation(
        "pow({0}, {1}, {2})",
        lambda a, b, c: pow(a, b, c),
        "the remainder of {0} ** {1} when divided by {2}",
    ),
    "remainder": _Operation(
        "{0} % {1}", lambda a, b: a % b, "the remainder of {0} when divided by {1}"
    ),
    "squares": _Operation(
        "sum(n * n for n in range({0}, {1} + 1))",
        _squares,
        "the sum of the squares of the integers from {0} to {1}",
    ),
    "multiples": _Operation(
        "sum(n for n in range(1, {0} + 1) if n % {1} == 0)",
        _multiples,
        "the sum of the integers from 1 to {0} that are divisible by {1}",
    ),
    "gcd": _Operation("gcd({0}, {1})", math.gcd, "the greatest common divisor of {0} and {1}"),
    "lcm": _Operation("lcm({0}, {1})", math.lcm, "the least common multiple of {0} and {1}"),
    "digit_sum": _Operation(
        "sum(int(digit) for digit in str({0}))",
        _digit_sum,
        "the sum of the decimal digits of {0}",
    ),
    "divisors": _Operation(
        "int(divisor_count({0}))", _divisors, "the number of positive divisors of {0}"
    ),
    "largest_prime": _Operation(
        "max(factorint({0}))", _largest_prime, "the largest prime factor of {0}"
    ),
    "prime_sum": _Operation(
        "sum(p * power for p, power in factorint({0}).items())",
        _prime_sum,
        "the sum of the prime factors of {0}, each counted as often as it divides {0}",
    ),
}

_FIRST: Mapping[str, Callable[[random.Random], Operands]] = {
    "product": lambda rng: (rng.randint(12, 99), rng.randint(12, 999)),
    "power_remainder": lambda rng: (
        rng.randint(2, 19),
        rng.randint(11, 60),
        rng.randint(1_000, 99_999),
    ),
    "squares": lambda rng: (rng.randint(3, 30), rng.randint(40, 150)),
    "multiples": lambda rng: (rng.randint(200, 2_000), rng.randint(3, 19)),
    "lcm": lambda rng: (rng.randint(60, 999), rng.randint(60, 999)),
}
"""The operations of a first stage, each with a function that draws its operands."""

_LATER: Mapping[str, Callable[[random.Random, str, str | int], Operands]] = {
    "product_less": lambda rng, last, other: (last, other, rng.randint(2, 99)),
    "product_more": lambda rng, last, other: (last, other, rng.randint(2, 99)),
    "sum": lambda rng, last, other: (last, other),
    "power_remainder": lambda rng, last, other: (last, rng.randint(2, 9), rng.randint(101, 9_999)),
    "remainder": lambda rng, last, other: (last, rng.randint(23, 997)),
    "gcd": lambda rng, last, other: (last, rng.randint(12, 720)),
    "lcm": lambda rng, last, other: (last, rng.randint(12, 60)),
    "digit_sum": lambda rng, last, other: (last,),
    "divisors": lambda rng, last, other: (last,),
    "largest_prime": lambda rng, last, other: (last,),
    "prime_sum": lambda rng, last, other: (last,),
}
"""The operations of a later stage, each with a function that draws its operands. The number of the
stage before is always the first; the other operand is a number or an earlier stage."""


def _stage(name: str, operation: str, operands: Operands, values: Mapping[str, int]) -> Stage:
    rule = _OPERATIONS[operation]
    expression = rule.expression.format(*operands)
    text = f"Let {name} = {expression}."
    if rule.words:
        text = f"Let {name} be {rule.words.format(*operands)}."
    value = _value(operation, operands, values)
    return Stage(name, operation, operands, text, expression, -1 if value is None else value)


def _value(operation: str, operands: Operands, values: Mapping[str, int]) -> int | None:
    try:
        numbers = [values[each] if isinstance(each, str) else each for each in operands]
        return _OPERATIONS[operation].compute(*numbers)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise DataError(f"a stage can't be computed: {operation} of {operands}: {error}") from error


def _draw_stages(rng: random.Random, count: int) -> list[Stage]:
    values: dict[str, int] = {}
    stages: list[Stage] = []
    for name in string.ascii_lowercase[:count]:
        if not stages:
            operation = rng.choice(list(_FIRST))
            operands = _FIRST[operation](rng)
        else:
            *earlier, last = values
            others: list[str | int] = [*earlier, rng.randint(3, 29)]
            other = rng.choice(others)
            operation = rng.choice(sorted(set(_LATER) - {stage.operation for stage in stages}))
            operands = _LATER[operation](rng, last, other)
        stages.append(_stage(name, operation, operands, values))
        values[name] = stages[-1].value
    return stages


def _is_good(stages: list[Stage]) -> bool:
    """Whether all values are of a suitable size and differ from one another."""
    values = [stage.value for stage in stages]
    in_range = all(2 <= value <= _LARGEST for value in values) and values[-1] >= _LEAST_ANSWER
    return in_range and len(set(values)) == len(values)


class Staged(Generated):
    """A source of problems in stages, which `staged` returns."""

    name = "staged"
    least = 2
    most = 5

    def draw(self, rng: random.Random, level: int) -> Draft:
        """See `Generated`. The question decides the split."""
        while not _is_good(stages := _draw_stages(rng, level)):
            pass
        texts = [stage.text for stage in stages]
        question = " ".join([*texts, f"Compute {stages[-1].name}."])
        rows = json.dumps([dataclasses.asdict(stage) for stage in stages])
        return Draft(question, stages[-1].value, {"stages": rows}, question)


def staged(
    seed: int = 0,
    difficulty: int | tuple[int, ...] = 2,
    *,
    size: int = 10_000,
    split: Literal["train", "test"] = "train",
) -> Staged:
    """Generates problems in stages: "Let a = 23 * 47. Let b = a + 5. Compute b.".

    Each stage computes a number from the number of the stage before, sometimes with an earlier
    number: products, sums, remainders of powers, sums over ranges, greatest common divisors, least
    common multiples, sums of digits, numbers of divisors and prime factors. The answer is the
    number of the last stage. The metadata hold the `difficulty` and the `stages` (`read_stages`).

    Args:
        seed: The seed. A different seed gives different problems.
        difficulty: The number of stages, from 2 to 5; with a tuple, the problems take its values in
            turn.
        size: The number of problems.
        split: The split. A tenth of all problems is in `test`, for every seed; all other problems
            are in `train`.

    Raises:
        ValueError: The difficulty, the size or the split is not one of these.

    Example:
        >>> problem = staged(difficulty=3)[0]
        >>> [stage.name for stage in read_stages(problem)]
        ['a', 'b', 'c']
    """
    return Staged.of(seed, difficulty, size, split)


def read_stages(problem: Problem) -> tuple[Stage, ...]:
    """The stages of a problem, in order; empty if the problem does not come from `staged`.

    Raises:
        DataError: If the problem's metadata do not hold stages in the form of `staged`.
    """
    if not problem.id.startswith(f"{Staged.name}/"):
        return ()
    try:
        rows = json.loads(str(problem.metadata["stages"]))
        return tuple(Stage(**{**row, "operands": tuple(row["operands"])}) for row in rows)
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{problem.id}: the metadata hold no valid stages ({error!r})") from error


def asked_stage(problem: Problem, program: str, outputs: Sequence[str]) -> Stage | None:
    """The stage whose number a program was to print.

    It is the last stage whose name the program prints alone, as in `print(b)`. Without such a name,
    it is the first stage whose number stands in no earlier output, or else the last stage.

    Args:
        problem: The problem.
        program: The program.
        outputs: The outputs of the earlier programs.

    Returns:
        The stage; `None` if the problem does not come from `staged`.

    Raises:
        DataError: If the problem's metadata do not hold valid stages.
    """
    stages = read_stages(problem)
    names = {stage.name: stage for stage in stages}
    if printed := [name for name in _PRINTED.findall(program) if name in names]:
        return names[printed[-1]]
    shown = {int(number) for text in outputs for number in _NUMBER.findall(text)}
    return next((stage for stage in stages if stage.value not in shown), (stages or (None,))[-1])


def implied_answer(problem: Problem, stage: str, value: int) -> str | None:
    """The answer to which a false value of one stage leads, if all later stages are computed right.

    Args:
        problem: A problem of `staged`.
        stage: The name of the stage.
        value: The false value of the stage.

    Returns:
        The answer, as text; `None` if a later stage has no value (the number of divisors of 0, for
        example).

    Raises:
        KeyError: If the problem has no stage of this name.
        DataError: If the problem's metadata do not hold valid stages.

    Example:
        >>> problem = staged(difficulty=2)[0]
        >>> first, last = read_stages(problem)
        >>> implied_answer(problem, "a", first.value) == problem.answer
        True
        >>> implied_answer(problem, "b", 12)
        '12'
    """
    stages = read_stages(problem)
    names = [each.name for each in stages]
    if stage not in names:
        raise KeyError(f"{problem.id} has no stage {stage!r}; its stages are {', '.join(names)}")
    start = names.index(stage)
    values = {each.name: each.value for each in stages[:start]} | {stage: value}
    for later in stages[start + 1 :]:
        computed = _value(later.operation, later.operands, values)
        if computed is None:
            return None
        values[later.name] = computed
    return str(values[names[-1]])
