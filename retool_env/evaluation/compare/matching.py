"""The problems that two runs have in common: the same id, question and reference answer."""

from __future__ import annotations

from dataclasses import dataclass

from retool_env.errors import DataError
from retool_env.evaluation.compare.outcomes import Key, Outcomes


@dataclass(frozen=True)
class Matching:
    """The problems of two runs."""

    common: tuple[Key, ...]
    """The problems of both runs."""
    only_first: tuple[str, ...]
    """The ids of the problems that only the first run has."""
    only_second: tuple[str, ...]
    """The ids of the problems that only the second run has."""
    changed: tuple[str, ...]
    """The ids whose question or reference answer differs between the runs. They are not paired."""


def match(first: Outcomes, second: Outcomes) -> Matching:
    """Matches the problems of two runs.

    Args:
        first: The first run.
        second: The second run.

    Raises:
        DataError: The runs share no problem.
    """
    common = tuple(key for key in first.problems if key in second.problems)
    left, right = (
        {key[0] for key in mine.problems if key not in theirs.problems}
        for mine, theirs in ((first, second), (second, first))
    )
    changed = left & right
    if not common:
        why = f"; the text of {len(changed)} problems differs under one id" if changed else ""
        raise DataError(
            f"{first.run.path} and {second.run.path} share no problem{why}: compare runs on the "
            "same problems"
        )
    return Matching(
        common,
        tuple(sorted(left - changed)),
        tuple(sorted(right - changed)),
        tuple(sorted(changed)),
    )
