"""Error recovery: the behaviour of a model after its program has failed.

The paper shows self-correction by an example (section 3.3, figure 4) and gives no figure, so these
definitions are ours. A call *fails* if its program does not run to its end without error. The cause
may be syntax, an exception, a limit, an empty block, or an injected fault: the result as shown to
the model counts. An *error* is a run of failed calls in an episode, without a successful call
between them. The next successful call *mends* the error. An error without a later successful call
is not mended, whether the model gave up or the episode was cut.

All figures rest on scored episodes. In their intervals, the calls of all episodes of a problem form
one cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any, Self

from retool_env.metrics.intervals import Estimate, Interval, pooled
from retool_env.transcript import Call, Transcript

Cases = list[tuple[str, int, int]]
"""Cases of a figure: a problem's id, the number of successes and the number of cases."""


@dataclass(frozen=True)
class Recovery:
    """The figures of a model's recovery from its errors."""

    next_call_ok: Estimate
    """The share of failed calls whose next call in the episode runs without error."""
    same_error: Estimate
    """The share of failed calls whose next call has the same outcome and the same line of error.

    An unchanged program nearly always fails in the same way. A changed program that fails in the
    same way did not correct the fault.
    """
    mended: Estimate
    """The share of errors that a later call of the episode mends."""
    turns: Estimate
    """The mean number of turns from the first failed call of an error to the call that mends it.

    Only mended errors count. Void turns count as turns. The value is 1 if the next turn mends the
    error.
    """
    accuracy: Estimate
    """The share of right answers among episodes with a failed call."""

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Makes the figures from their fields as JSON values."""
        return cls(*(Estimate.from_json(record[field.name]) for field in fields(cls)))


def measure_recovery(transcripts: Iterable[Transcript]) -> Recovery:
    """Returns the figures of finished transcripts. Transcripts that are not scored do not count."""
    next_ok: Cases = []
    same: Cases = []
    mended: Cases = []
    turns: Cases = []
    right: Cases = []
    for transcript in transcripts:
        calls, problem = transcript.calls, transcript.problem.id
        if not transcript.scored or all(call.ok for call in calls):
            continue
        right.append((problem, int(bool(transcript.correct)), 1))
        for call, after in zip_longest(calls, calls[1:]):
            if not call.ok:
                next_ok.append((problem, int(after is not None and after.ok), 1))
                same.append((problem, int(after is not None and fail_alike(call, after)), 1))
        first = None  # the turn in which the current error began
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


def fail_alike(call: Call, other: Call) -> bool:
    """Whether two calls have the same outcome and the same line of error."""
    one, two = call.execution, other.execution
    return (one.outcome, one.error) == (two.outcome, two.error)


def _turn_numbers(transcript: Transcript) -> list[int]:
    """For each call, the number of the model's turn that made it."""
    numbers, turn = [], 0
    for span in transcript.response:
        turn += span.author == "model"
        if span.execution is not None:
            numbers.append(turn)
    return numbers


def _mean_turns(turns: Cases) -> Estimate:
    """The mean number of turns to recover: the inverse of the share of turns that mend an error.

    Through the share, the interval has a width even if every error was mended in one turn.
    """
    share = pooled(turns).interval
    if share is None:
        return Estimate(0, None)
    return Estimate(len(turns), Interval(1 / share.mean, 1 / share.high, 1 / share.low))
