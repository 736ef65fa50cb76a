"""Word problems in the language of the recovery study: two programs for each story.

The first program prints the value with its name, the second one uses another way. A number of the
question stands in a program as a field, `{0}` for the first number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from retool_env.problem import Problem

PROGRAMS: Mapping[str, tuple[str, str]] = {
    "shopping": (
        'print("x =", {4} - ({0} * {1} + {2} * {3}))',
        "cost = {0} * {1} + {2} * {3}\nprint({4} - cost)",
    ),
    "trains": (
        'print("x =", {0} // ({1} + {2}) * {1})',
        "hours = {0} // ({1} + {2})\nprint({1} * hours)",
    ),
    "boxes": ('print("x =", {0} * {1} % {2})', "print(divmod({0} * {1}, {2})[1])"),
    "path": (
        'print("x =", ({0} + 2 * {2}) * ({1} + 2 * {2}) - {0} * {1})',
        "print(2 * {2} * ({0} + {1} + 2 * {2}))",
    ),
    "scores": (
        'print("x =", ({0} + 1) * {2} - {0} * {1})',
        "print({2} + {0} * ({2} - {1}))",
    ),
    "mixture": (
        'print("x =", {0} * ({3} - {1}) // ({2} - {3}))',
        "n = 0\nwhile {0} * {1} + n * {2} < ({0} + n) * {3}:\n    n += 1\nprint(n)",
    ),
    "savings": (
        'b = {0}\nfor y in range({2}):\n    b += b * {1} // 100\nprint("x =", b)',
        "b, y = {0}, 0\nwhile y < {2}:\n    b, y = b + b * {1} // 100, y + 1\nprint(b)",
    ),
    "buses": (
        'from math import lcm\nprint("x =", lcm({0}, {1}, {2}))',
        "n = {2}\nwhile n % {0} or n % {1}:\n    n += {2}\nprint(n)",
    ),
    "marbles": (
        'n = {5}\nwhile n % {0} != {1} or n % {2} != {3}:\n    n += {4}\nprint("x =", n)',
        "print(next(n for n in range({0} * {2} * {4})"
        " if (n % {0}, n % {2}, n % {4}) == ({1}, {3}, {5})))",
    ),
    "theatre": (
        'print("x =", sum({0} + {1} * row for row in range({2})))',
        "print({0} * {2} + {1} * {2} * ({2} - 1) // 2)",
    ),
    "pursuit": (
        'print("x =", {0} * {1} * {2} // ({2} - {0}))',
        "hours = {0} * {1} / ({2} - {0})\nprint(round({2} * hours))",
    ),
    "fish": (
        'f = {0}\nfor y in range({3}):\n    f += f * {1} // 100 - {2}\nprint("x =", f)',
        "f, y = {0}, 0\nwhile y < {3}:\n    f, y = f + f * {1} // 100 - {2}, y + 1\nprint(f)",
    ),
}
"""The two programs of each story of the difficulties 1 and 2."""


def programs_of(problem: Problem) -> tuple[str, str] | None:
    """The two programs of a word problem; `None` for a problem of another kind.

    Args:
        problem: A problem.
    """
    programs = PROGRAMS.get(str(problem.metadata.get("story", "")))
    if programs is None:
        return None
    numbers = re.findall(r"\d+", problem.question)
    first, second = (program.format(*numbers) for program in programs)
    return first, second
