"""Forked transcripts that are built by hand."""

from __future__ import annotations

import dataclasses

from helpers.episodes import episode
from retool_env.execution import Execution, Fault, Outcome
from retool_env.faults import KINDS
from retool_env.transcript import Parent, StopReason, Transcript

CALL = "<code>print(6 * 7)</code>"
TRUE = Execution(Outcome.OK, "42\n")
ENDS = {
    "right": (StopReason.ANSWERED, "42"),
    "stopped": (StopReason.STOPPED, None),
    "cut": (StopReason.TOKEN_BUDGET, None),
    "failed": (StopReason.INFRASTRUCTURE, None),
}
"""The ends of an episode; any other text is a wrong answer."""


def faulty(kind: str, shown: str = "43\n", injected: bool = True) -> Execution:
    """The result of a call for which a fault was ordered; without the fault it shows 42."""
    explicit = kind in KINDS and KINDS[kind].sort == "explicit"
    result = Execution(Outcome.RUNTIME_ERROR if explicit else Outcome.OK, shown)
    result = result if injected else TRUE
    return dataclasses.replace(result, fault=Fault(kind, injected, TRUE))


def fork(problem: str, arm: str, end: str, *turns, result=None, sample=0, parent_call=1):
    """A fork at the first call of a parent. A turn is a text and the result of its program."""
    reason, answer = ENDS.get(end, (StopReason.ANSWERED, end))
    last = "hm" if answer is None else f"so <answer>{answer}</answer>"
    if result is None:
        result = TRUE if arm in ("control", "keep", "bare", "mended") else faulty(arm)
    before = [] if arm == "drop" else [(CALL, result)]
    closing = [] if end == "failed" else ["" if end == "stopped" else last]
    made = episode(problem, reason, *before, *turns, *closing, correct=end == "right")
    parent = Parent(sample, parent_call, arm)
    return dataclasses.replace(made, answer=answer, parent=parent)


def world() -> list[Transcript]:
    """Four prefixes with the arms control, wrong_value and blank_line, two samples each.

    | problem | control      | wrong_value                             | blank_line   |
    |---------|--------------|-----------------------------------------|--------------|
    | a       | right, right | right, 43                               | right, right |
    | b       | right, 43    | 43, 43                                  | right, 43    |
    | c       | right, right | right after a doubt and one call, twice | right, right |
    | d       | right, right | not eligible                            | right, right |
    """
    spared = faulty("wrong_value", injected=False)
    again = "That looks wrong. " + CALL, TRUE
    other = "That can't be right. <code>print(sum([42]))</code>", TRUE
    rows = [
        *((p, arm, end, ()) for arm in ("control", "blank_line") for p, end in _CLEAN),
        *(("a", "wrong_value", end, ()) for end in ("right", "43")),
        *(("b", "wrong_value", "43", ()) for _ in range(2)),
        *(("c", "wrong_value", "right", (turn,)) for turn in (again, other)),
    ]
    forks = [fork(p, arm, end, *turns) for p, arm, end, turns in rows]
    return [*forks, *(fork("d", "wrong_value", "right", result=spared) for _ in range(2))]


_CLEAN = [(p, end) for p in "abcd" for end in ("right", "43" if p == "b" else "right")]
