"""The accuracy of two runs by their use of the interpreter.

The model itself chooses when it calls, so the figures are descriptive: they do not show that a call
helps or harms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retool_env.evaluation.compare.outcomes import Outcome
from retool_env.evaluation.compare.paired import PairedProblem
from retool_env.metrics.accuracy import CALL_GROUPS


@dataclass(frozen=True)
class Use:
    """Episodes of one run."""

    episodes: int
    """Number of episodes that count."""
    right: int
    """Number of right episodes."""
    calls: int
    """Number of calls."""
    failed: int
    """Number of calls that did not run without error."""


@dataclass(frozen=True)
class GroupUse:
    """Both runs in a group of episodes."""

    group: str
    """`all`, `called` (at least one call), or a name of `CALL_GROUPS`."""
    first: Use
    """The episodes of the first run."""
    second: Use
    """The episodes of the second run."""


def tool_use(problems: Sequence[PairedProblem]) -> list[GroupUse]:
    """Both runs by use of the tool, on their common problems.

    Args:
        problems: The common problems.
    """
    first = [one for problem in problems for one in problem.first]
    second = [one for problem in problems for one in problem.second]
    groups = {
        "all": {*CALL_GROUPS},
        "called": {*CALL_GROUPS} - {"none"},
        **{group: {group} for group in CALL_GROUPS},
    }
    return [
        GroupUse(name, _use(first, members), _use(second, members))
        for name, members in groups.items()
    ]


def _use(outcomes: Sequence[Outcome], groups: set[str]) -> Use:
    some = [one for one in outcomes if one.right is not None and one.group in groups]
    return Use(
        len(some),
        sum(one.right is True for one in some),
        sum(one.calls for one in some),
        sum(one.failed for one in some),
    )
