"""Generated word problems: short stories with numbers, of three difficulties.

Each story is a function that draws the numbers and computes the answer. All answers are positive
integers. The numbers of a story are written with digits.
"""

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Literal

from retool_env.problems.generated import Draft, Generated

Story = Callable[[random.Random], tuple[str, int]]
"""A function that draws a question and computes its answer."""

_LETTERS = (
    *("BANANA", "COFFEE", "BALLOON", "LETTERS", "PEPPERS", "ADDRESS", "SUCCESS", "ASSESSED"),
    *("PARALLEL", "TENNESSEE", "COMMITTEE", "STATISTICS", "MATHEMATICS", "MISSISSIPPI"),
)


def shopping(rng: random.Random) -> tuple[str, int]:
    """Two kinds of goods are paid with a banknote."""
    notebooks, price, pens, less = (rng.randint(*r) for r in ((3, 19), (3, 9), (4, 29), (2, 6)))
    cost = notebooks * price + pens * less
    paid = 50 * (cost // 50 + 1)
    question = (
        f"Nadia buys {notebooks} notebooks for {price} euros each and {pens} pens for {less} euros "
        f"each. She pays {paid} euros. How many euros does she get back?"
    )
    return question, paid - cost


def trains(rng: random.Random) -> tuple[str, int]:
    """Two trains travel towards each other."""
    first, second, hours = rng.randint(40, 120), rng.randint(40, 120), rng.randint(2, 9)
    question = (
        f"Two stations are {(first + second) * hours} kilometres apart. At the same time, one "
        "train leaves each station, and both travel towards each other without a stop. The train "
        f"from the first station travels {first} kilometres an hour, the other train {second} "
        "kilometres an hour. How many kilometres has the train from the first station travelled "
        "when the trains meet?"
    )
    return question, first * hours


def boxes(rng: random.Random) -> tuple[str, int]:
    """A machine's products are packed in full boxes."""
    rate, hours, size = rng.randint(101, 999), rng.randint(3, 19), rng.randint(23, 97)
    if rate * hours % size == 0:
        return boxes(rng)
    question = (
        f"A machine makes {rate} bolts an hour and works for {hours} hours. The bolts are packed "
        f"in boxes of {size} bolts until too few bolts are left to fill a box. How many bolts are "
        "left?"
    )
    return question, rate * hours % size


def path(rng: random.Random) -> tuple[str, int]:
    """A path surrounds a garden."""
    length, width, border = rng.randint(20, 80), rng.randint(11, 60), rng.randint(2, 6)
    question = (
        f"A rectangular garden is {length} metres long and {width} metres wide. A path that is "
        f"{border} metres wide surrounds the garden, so that garden and path together are a larger "
        "rectangle. How many square metres does the path cover?"
    )
    return question, (length + 2 * border) * (width + 2 * border) - length * width


def scores(rng: random.Random) -> tuple[str, int]:
    """A further test changes a mean."""
    tests, mean, more = rng.randint(4, 12), rng.randint(51, 80), rng.randint(1, 3)
    question = (
        f"After {tests} tests, the mean of Omar's scores is {mean} points. After one more test, "
        f"the mean of all his scores is {mean + more} points. How many points did Omar score in "
        "the last test?"
    )
    return question, (tests + 1) * (mean + more) - tests * mean


def mixture(rng: random.Random) -> tuple[str, int]:
    """Two salt solutions are mixed."""
    weak, mixed, strong = sorted(rng.sample(range(3, 60), 3))
    parts = rng.randint(2, 30)
    question = (
        f"A tank holds {parts * (strong - mixed)} litres of salt water with {weak} % salt. How "
        f"many litres of salt water with {strong} % salt must be added to get salt water with "
        f"{mixed} % salt? (Assume that 1 litre of any salt water has the same mass.)"
    )
    return question, parts * (mixed - weak)


def savings(rng: random.Random) -> tuple[str, int]:
    """Interest in whole cents is added each year."""
    start, rate, years = rng.randint(10_000, 99_999), rng.randint(2, 9), rng.randint(3, 12)
    balance = start
    for _ in range(years):
        balance += balance * rate // 100
    question = (
        f"A savings account holds {start} cents. At the end of each year the bank adds {rate} % of "
        "the balance, rounded down to a whole number of cents. How many cents does the account "
        f"hold after {years} years?"
    )
    return question, balance


def buses(rng: random.Random) -> tuple[str, int]:
    """Three buses leave together again."""
    first, second, third = sorted(rng.sample(range(6, 56), 3))
    question = (
        f"Three bus lines start at the same stop. Their buses leave every {first}, every {second} "
        f"and every {third} minutes. Now three buses leave at the same time. After how many "
        "minutes do buses of all three lines leave at the same time again?"
    )
    return question, math.lcm(first, second, third)


def marbles(rng: random.Random) -> tuple[str, int]:
    """A number is found from its remainders."""
    moduli = rng.choice([(5, 7, 9), (7, 8, 9), (7, 9, 11), (8, 11, 13), (9, 11, 14), (11, 13, 15)])
    first, second, third = (rng.randint(1, modulus - 1) for modulus in moduli)
    found = next(
        number
        for number in range(1, math.prod(moduli) + 1)
        if tuple(number % modulus for modulus in moduli) == (first, second, third)
    )
    question = (
        f"Lena counts her marbles. In groups of {moduli[0]}, {first} marbles remain. In groups of "
        f"{moduli[1]}, {second} marbles remain. In groups of {moduli[2]}, {third} marbles remain. "
        "What is the smallest number of marbles that Lena can have?"
    )
    return question, found


def theatre(rng: random.Random) -> tuple[str, int]:
    """Rows of seats grow."""
    first, more, rows = rng.randint(11, 40), rng.randint(2, 7), rng.randint(15, 60)
    question = (
        f"The first row of a theatre has {first} seats. Each further row has {more} seats more "
        f"than the row in front of it. The theatre has {rows} rows. How many seats does it have?"
    )
    return question, first * rows + more * rows * (rows - 1) // 2


def pursuit(rng: random.Random) -> tuple[str, int]:
    """A car follows a cyclist."""
    slow, gap = rng.randint(12, 30), rng.choice((10, 12, 15, 20, 24, 30))
    hours = rng.randint(1, 9)
    if slow * (slow + gap) * hours % gap:
        return pursuit(rng)
    question = (
        f"A cyclist rides along a road at {slow} kilometres an hour. A car starts from the same "
        f"place {hours} {'hour' if hours == 1 else 'hours'} later and drives along the same road "
        f"at {slow + gap} kilometres an hour. How many kilometres from the start does the car "
        "reach the cyclist?"
    )
    return question, slow * (slow + gap) * hours // gap


def committee(rng: random.Random) -> tuple[str, int]:
    """Committees with enough women are counted."""
    women, men, size = rng.randint(5, 12), rng.randint(5, 12), rng.randint(4, 6)
    least = rng.randint(2, size - 1)
    ways = sum(
        math.comb(women, count) * math.comb(men, size - count)
        for count in range(least, min(women, size) + 1)
    )
    question = (
        f"A club has {women} women and {men} men as members. How many different committees of "
        f"{size} members have at least {least} women?"
    )
    return question, ways


def coins(rng: random.Random) -> tuple[str, int]:
    """Ways to pay an amount are counted."""
    amount = rng.randint(60, 300)
    first, second, third = rng.choice([(1, 2, 5), (1, 5, 10), (2, 5, 10), (1, 2, 10), (2, 3, 5)])
    ways = sum(
        (amount - third * large - second * middle) % first == 0
        for large in range(amount // third + 1)
        for middle in range((amount - third * large) // second + 1)
    )
    question = (
        f"In how many ways can {amount} cents be paid with coins of {first}, {second} and {third} "
        "cents? Not every kind of coin has to be used, any number of coins may be used, and their "
        "order does not matter."
    )
    return question, ways


def grid(rng: random.Random) -> tuple[str, int]:
    """Paths in a grid that avoid a point are counted."""
    right, up = rng.randint(5, 10), rng.randint(5, 10)
    x, y = rng.randint(1, right - 1), rng.randint(1, up - 1)
    through = math.comb(x + y, x) * math.comb(right - x + up - y, right - x)
    question = (
        f"A robot moves from the point (0, 0) to the point ({right}, {up}). Each step goes 1 unit "
        f"to the right or 1 unit up. The robot must not visit the point ({x}, {y}). How many "
        "different paths can it take?"
    )
    return question, math.comb(right + up, up) - through


def tickets(rng: random.Random) -> tuple[str, int]:
    """Numbers with a given sum of digits are counted."""
    last, total = rng.randint(1_000, 9_999), rng.randint(5, 20)
    wins = sum(sum(map(int, str(number))) == total for number in range(1, last + 1))
    question = (
        f"The tickets of a lottery are numbered from 1 to {last}. A ticket wins if the sum of the "
        f"digits of its number is {total}. How many tickets win?"
    )
    return question, wins


def lamps(rng: random.Random) -> tuple[str, int]:
    """Multiples of one number or another, but not of a third, are counted."""
    last = rng.randint(500, 5_000)
    first, second, third = rng.sample((3, 4, 5, 7, 9, 11), 3)
    lit = sum(
        (number % first == 0 or number % second == 0) and number % third != 0
        for number in range(1, last + 1)
    )
    question = (
        f"Lamps along a street are numbered from 1 to {last}. A lamp is on if its number is "
        f"divisible by {first} or by {second} (or by both), but not by {third}. How many lamps are "
        "on?"
    )
    return question, lit


def letters(rng: random.Random) -> tuple[str, int]:
    """Arrangements of letters that begin with a given letter are counted."""
    word = rng.choice(_LETTERS)
    first = rng.choice(sorted(set(word)))
    rest = Counter(word.replace(first, "", 1))
    ways = math.factorial(len(word) - 1)
    for count in rest.values():
        ways //= math.factorial(count)
    question = (
        f"The letters of the word {word} are written in a row, in any order. Equal letters look "
        f"the same. How many different rows begin with the letter {first}?"
    )
    return question, ways


def fish(rng: random.Random) -> tuple[str, int]:
    """A population grows and is harvested."""
    start, rate, years = rng.randint(800, 4_000), rng.randint(6, 19), rng.randint(4, 12)
    caught = start * rate // 100 - rng.randint(5, 30)
    number = start
    for _ in range(years):
        number += number * rate // 100 - caught
    question = (
        f"A lake holds {start} fish. In each year their number first rises by {rate} %, where the "
        f"rise is rounded down to a whole number of fish. Then {caught} fish are caught. How many "
        f"fish does the lake hold after {years} years?"
    )
    return question, number


STORIES: dict[int, tuple[Story, ...]] = {
    1: (shopping, trains, boxes, path, scores),
    2: (mixture, savings, buses, marbles, theatre, pursuit, fish),
    3: (committee, coins, grid, tickets, lamps, letters),
}
"""The stories of each difficulty."""


class Words(Generated):
    """A source of word problems, which `words` returns."""

    name = "words"
    most = 3

    def draw(self, rng: random.Random, level: int) -> Draft:
        """See `Generated`. The question decides the split."""
        story = rng.choice(STORIES[level])
        question, answer = story(rng)
        return Draft(question, answer, {"story": story.__name__}, question)


def words(
    seed: int = 0,
    difficulty: int | tuple[int, ...] = 1,
    *,
    size: int = 10_000,
    split: Literal["train", "test"] = "train",
) -> Words:
    """Generates word problems: short stories with numbers and one positive integer as the answer.

    The metadata hold the `difficulty` and the name of the `story`. The difficulties are:

    1. two or three operations: shopping, trains, boxes, a garden path, a mean;
    2. several steps: a mixture, interest, buses, remainders, rows of seats, a pursuit, fish;
    3. counting: committees, coins, paths in a grid, sums of digits, multiples, letters.

    Args:
        seed: The seed. A different seed gives different problems.
        difficulty: The difficulty, from 1 to 3; with a tuple, the problems take its values in turn.
        size: The number of problems. Some stories have few numbers, so that problems repeat.
        split: The split. A tenth of all problems is in `test`, for every seed; all other problems
            are in `train`.

    Raises:
        ValueError: The difficulty, the size or the split is not one of these.

    Example:
        >>> words(difficulty=3)[0].metadata["difficulty"]
        3
    """
    return Words.of(seed, difficulty, size, split)
