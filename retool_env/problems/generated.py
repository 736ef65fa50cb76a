"""The common part of sources that generate their problems.

A problem is a pure function of the source's settings and the problem's index. So all processes see
the same problems, and nothing is stored. A hash of the problem's text decides its split, for every
seed. So a problem of the test split is never in the training split.
"""

import hashlib
import operator
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from retool_env.errors import SettingsError
from retool_env.execution import check_whole_number
from retool_env.problem import Problem, unknown_id

MOST = 10**8
"""The largest size of a source. A shuffled order of its problems takes 0.8 GB."""

_TEST_SHARE = 0.1


@dataclass(frozen=True)
class Draft:
    """A problem without its id."""

    question: str
    """The question."""
    answer: int
    """The answer."""
    metadata: Mapping[str, str | int]
    """Further facts."""
    key: str
    """The text that decides the split."""


@dataclass(frozen=True)
class Generated(ABC):
    """A source of generated problems. A subclass draws the problem of a difficulty."""

    seed: int
    """The seed. A different seed gives different problems."""
    levels: tuple[int, ...]
    """The difficulties: problem `i` has the difficulty `levels[i % len(levels)]`."""
    size: int
    """The number of problems."""
    split: Literal["train", "test"]
    """The split. No problem is in both splits."""

    name: ClassVar[str]
    """The beginning of the problems' ids."""
    most: ClassVar[int]
    """The highest difficulty."""
    least: ClassVar[int] = 1
    """The lowest difficulty."""

    @abstractmethod
    def draw(self, rng: random.Random, level: int) -> Draft:
        """Draw a problem.

        Args:
            rng: The source of random numbers. The problem depends on nothing else.
            level: The difficulty.
        """

    @classmethod
    def of(
        cls,
        seed: int,
        difficulty: int | tuple[int, ...],
        size: int,
        split: Literal["train", "test"],
    ) -> Self:
        """Make a source, after a check of its settings.

        Args:
            seed: The seed.
            difficulty: The difficulty, or several, which the problems take in turn.
            size: The number of problems.
            split: The split.

        Raises:
            SettingsError: If the difficulty, the size or the split is not possible.
        """
        levels = tuple(difficulty) if isinstance(difficulty, list | tuple) else (difficulty,)
        known = range(cls.least, cls.most + 1)
        if not levels or any(type(level) is not int or level not in known for level in levels):
            raise SettingsError(
                f"difficulty must be {cls.least} to {cls.most}, or a tuple of these, "
                f"not {difficulty!r}"
            )
        size = check_whole_number("size", size, most=MOST)
        if split not in ("train", "test"):
            raise SettingsError(f"split must be 'train' or 'test', not {split!r}")
        return cls(seed, levels, size, split)

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
        draft = self.draw(rng, level)
        while _split_of(draft.key) != self.split:
            draft = self.draw(rng, level)
        metadata = {"difficulty": level, **draft.metadata}
        return Problem(f"{self._prefix}{position}", draft.question, str(draft.answer), metadata)

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
        return f"{self.name}/{self.split}-seed{self.seed}-level{levels}/"


def _split_of(key: str) -> str:
    digest = hashlib.sha256(key.encode()).digest()
    return "test" if int.from_bytes(digest[:4]) < _TEST_SHARE * 2**32 else "train"
