"""Error recovery: what a model does after a program of its own has failed.

The paper shows self-correction by an example (section 3.3, figure 4) and gives no figure, so these are ours. A call fails if
its program did not run to its end without an error, whatever the reason: syntax, an exception, a limit, an empty block. An
*error* is a run of failed calls of an episode with no other between; it is mended by the call that follows it. A call that
no other follows is not mended, whether the model gave up or the episode was cut.

All figures are of scored episodes, and have intervals that take the calls of all episodes of one problem as one cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any, Self

from retool_env.metrics.intervals import Estimate, Interval, pooled
from retool_env.transcript import Call, Transcript


@dataclass(frozen=True)
class Recovery:
    """How a model recovers from its errors."""

    next_call_ok: Estimate
    """Share of failed calls whose next call in the episode runs without error."""
    same_error: Estimate
    """Share of failed calls whose next call fails in the same way: the same outcome, and the same line of error. A program
    repeated word for word nearly always does; one that was changed and does has not met what went wrong."""
    mended: Estimate
    """Share of errors that a later call of the episode mends."""
    turns: Estimate
    """Mean number of the model's turns from the first failed call of an error to the one that mends it, void turns included:
    1 if the next turn does. Of mended errors."""
    accuracy: Estimate
    """Share of right answers among episodes with a failed call."""

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Rebuild it from its fields as plain JSON values."""
        return cls(*(Estimate.from_json(record[field.name]) for field in fields(cls)))


def measure_recovery(transcripts: Iterable[Transcript]) -> Recovery:
    """The figures of finished transcripts; those that are not scored are left out."""
    next_ok: list[tuple[str, int, int]] = []  # problem, successes, cases
    same: list[tuple[str, int, int]] = []
    mended: list[tuple[str, int, int]] = []
    turns: list[tuple[str, int, int]] = []
    right: list[tuple[str, int, int]] = []
    for transcript in transcripts:
        calls, problem = transcript.calls, transcript.problem.id
        if not transcript.scored or all(call.ok for call in calls):
            continue
        right.append((problem, int(bool(transcript.correct)), 1))
        for call, after in zip_longest(calls, calls[1:]):
            if not call.ok:
                next_ok.append((problem, int(after is not None and after.ok), 1))
                same.append((problem, int(after is not None and _alike(call, after)), 1))
        first = None  # the turn in which the error under way began
        for call, turn in zip(calls, _turn_numbers(transcript), strict=True):
            if not call.ok:
                first = turn if first is None else first
            elif first is not None:
                mended.append((problem, 1, 1))
                turns.append((problem, 1, turn - first))
                first = None
        if first is not None:
            mended.append((problem, 0, 1))
    return Recovery(
        pooled(next_ok), pooled(same), pooled(mended), _mean_turns(turns), pooled(right)
    )


def _alike(call: Call, other: Call) -> bool:
    one, two = call.execution, other.execution
    return (one.outcome, one.error) == (two.outcome, two.error)


def _turn_numbers(transcript: Transcript) -> list[int]:
    """Of each call: which of the model's turns made it."""
    numbers, turn = [], 0
    for span in transcript.response:
        turn += span.author == "model"
        if span.execution is not None:
            numbers.append(turn)
    return numbers


def _mean_turns(turns: list[tuple[str, int, int]]) -> Estimate:
    """The mean of turns to recover, from the share of these turns that mend: one is the other's inverse.

    So its interval does not shrink to a point where every error was mended at once.
    """
    share = pooled(turns).interval
    if share is None:
        return Estimate(0, None)
    return Estimate(len(turns), Interval(1 / share.mean, 1 / share.high, 1 / share.low))
