"""Word problems: each answer is found again from the numbers of the question alone."""

import functools
import itertools
import re
from fractions import Fraction

import pytest

from retool_env.problems import Problem, words
from retool_env.problems.words import STORIES


def fish(start, rate, caught, years):
    for _ in range(years):
        start = start + int(Fraction(start * rate, 100)) - caught
    return start


def savings(start, rate, years):
    for _ in range(years):
        start += int(Fraction(start * rate, 100))
    return start


def trains(distance, first, second):
    return Fraction(distance, first + second) * first


def marbles(*numbers):
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    return next(n for n in itertools.count(1) if all(n % m == rest for m, rest in pairs))


def buses(*periods):
    return next(n for n in itertools.count(1) if all(n % period == 0 for period in periods))


def path(length, width, path):
    outer = {(x, y) for x in range(length + 2 * path) for y in range(width + 2 * path)}
    inner = {(x, y) for x, y in outer if path <= x < path + length and path <= y < path + width}
    return len(outer - inner)


def mixture(litres, weak, strong, mixed):
    def salt(more):
        return litres * weak + more * strong - (litres + more) * mixed

    return next(more for more in itertools.count(1) if salt(more) == 0)


def pursuit(slow, hours, fast):
    rode, drove = slow * hours, 0
    time = Fraction(rode, fast - slow)
    return drove + fast * time


def committee(women, men, size, least):
    members = [True] * women + [False] * men
    return sum(sum(group) >= least for group in itertools.combinations(members, size))


def coins(amount, *values):
    ways = [1] + [0] * amount
    for value in values:
        for total in range(value, amount + 1):
            ways[total] += ways[total - value]
    return ways[amount]


def grid(x0, y0, right, up, _one, _unit, x, y):
    paths = {(0, 0): 1}
    for i, j in itertools.product(range(right + 1), range(up + 1)):
        if i or j:
            paths[i, j] = paths.get((i - 1, j), 0) + paths.get((i, j - 1), 0)
        if (i, j) == (x, y):
            paths[i, j] = 0
    return paths[right, up]


SOLVERS = {
    "shopping": lambda n, price, m, less, paid: paid - n * price - m * less,
    "trains": trains,
    "boxes": lambda rate, hours, size: rate * hours - rate * hours // size * size,
    "path": path,
    "scores": lambda n, mean, more: (n + 1) * more - n * mean,
    "mixture": lambda litres, weak, strong, mixed, _one: mixture(litres, weak, strong, mixed),
    "savings": savings,
    "buses": buses,
    "marbles": marbles,
    "theatre": lambda first, more, rows: sum(first + more * row for row in range(rows)),
    "pursuit": pursuit,
    "fish": fish,
    "committee": committee,
    "coins": coins,
    "grid": grid,
    "tickets": lambda one, last, total: sum(
        total == sum(int(digit) for digit in str(n)) for n in range(one, last + 1)
    ),
    "lamps": lambda one, last, a, b, c: len(
        ({*range(a, last + 1, a)} | {*range(b, last + 1, b)}) - {*range(c, last + 1, c)}
    ),
}


@functools.cache
def rows(letters):
    """The number of rows of these letters, letter by letter, without factorials."""
    first = {letters.replace(letter, "", 1) for letter in letters}
    return sum(rows(rest) for rest in first) if letters else 1


def solve(problem):
    story, question = problem.metadata["story"], problem.question
    if story == "letters":
        word, first = re.search(r"word (\w+) are .* the letter (\w)\?", question).groups()
        return rows("".join(sorted(word)).replace(first, "", 1))
    return SOLVERS[story](*map(int, re.findall(r"\d+", question)))


NAMES = [(level, story.__name__) for level, stories in STORIES.items() for story in stories]


@pytest.mark.parametrize(("level", "story"), NAMES)
def test_the_answer_is_found_from_the_question(level, story):
    # The stories of a difficulty are drawn evenly, so 80 problems have several of each.
    found = [p for p in words(5, level, size=80) if p.metadata["story"] == story]
    assert len(found) >= 3
    for problem in found[:6]:
        assert solve(problem) == int(problem.answer) > 0, problem.question
        assert problem.metadata["difficulty"] == level


def test_there_are_stories_of_each_difficulty():
    assert sorted(STORIES) == [1, 2, 3] and len(NAMES) >= 12
    assert len({name for _, name in NAMES}) == len(NAMES)
    for problem in words(1, (1, 2, 3), size=120, split="test"):
        assert "  " not in problem.question and problem.question.count("?") == 1


def test_a_problem_never_changes():
    assert words(0, 2)[0] == Problem(
        "words/train-seed0-level2/0",
        "A savings account holds 52661 cents. At the end of each year the bank adds 8 % of the "
        "balance, rounded down to a whole number of cents. How many cents does the account hold "
        "after 6 years?",
        "83561",
        {"difficulty": 2, "story": "savings"},
    )
