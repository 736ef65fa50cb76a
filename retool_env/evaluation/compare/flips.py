"""The episodes of one problem and number whose verdicts differ between two runs.

Episodes are paired by their number alone: episode 3 of one run and episode 3 of another run share
their problem, and nothing else. With one episode a problem, the counts are McNemar's table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from retool_env.evaluation.compare.outcomes import Key, Outcome
from retool_env.evaluation.compare.paired import PairedProblem


@dataclass(frozen=True)
class Flip:
    """An episode that is right in one run and wrong in the other."""

    problem: str
    """The problem's id."""
    sample: int
    """The number of the episode, from 0."""
    first: str
    """The address of the episode in the first run."""
    second: str
    """The address of the episode in the second run."""
    gained: bool
    """Whether the second run is right."""


@dataclass(frozen=True)
class Table:
    """Numbers of pairs of episodes, by the verdicts of both."""

    both: int
    """Pairs that are right in both runs."""
    first: int
    """Pairs that are right in the first run only."""
    second: int
    """Pairs that are right in the second run only."""
    neither: int
    """Pairs that are wrong in both runs."""


def flips_of(problems: Mapping[Key, PairedProblem]) -> list[Flip]:
    """The flipped episodes, in the order of problems and numbers.

    Args:
        problems: The common problems.
    """
    return [
        Flip(key[0], first.sample, first.address, second.address, bool(second.right))
        for key, problem in problems.items()
        for first, second in _episodes(problem)
        if first.right != second.right
    ]


def table_of(problems: Mapping[Key, PairedProblem]) -> Table:
    """The pairs of episodes by their verdicts.

    Args:
        problems: The common problems.
    """
    pairs = [
        (first.right, second.right)
        for problem in problems.values()
        for first, second in _episodes(problem)
    ]
    counts = [pairs.count(verdicts) for verdicts in _VERDICTS]
    return Table(*counts)


_VERDICTS = ((True, True), (True, False), (False, True), (False, False))


def _episodes(problem: PairedProblem) -> Iterator[tuple[Outcome, Outcome]]:
    """The pairs of episodes of one number that both count."""
    others = {one.sample: one for one in problem.second}
    for first in problem.first:
        second = others.get(first.sample)
        if second is not None and None not in (first.right, second.right):
            yield first, second
