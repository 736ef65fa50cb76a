"""Continuations: forked transcripts, read into flat rows.

A fork goes on from its parent's spans up to and including the result of call number `parent.call`.
Each turn of the model that does not end the episode is one call number: a program, an empty
program, or a turn without a call. The arm `"drop"` leaves out this call and its result, so it goes
on from the result before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from retool_env.execution import Execution, Outcome
from retool_env.faults import KINDS
from retool_env.metrics.causal.intervals import Pair
from retool_env.protocol.result import without_notice
from retool_env.transcript import Span, StopReason, Transcript

CONTROL = "control"
"""The arm that goes on with the true result."""
DROP = "drop"
"""The arm without the call and its result."""

Status = Literal["right", "wrong answer", "gave up", "cut", "going on", "failed"]
"""The state of a continuation. `failed` is an infrastructure failure: it is not the model's."""
STATUSES: tuple[Status, ...] = get_args(Status)

Prefix = tuple[str, int, int]
"""A prefix: the problem, the number of the parent among its episodes, and the call."""


@dataclass(frozen=True)
class Continuation:
    """One sample of one arm of a prefix."""

    prefix: Prefix
    """The prefix from which it goes on."""
    arm: str
    """The arm."""
    visible: bool
    """Whether only the visible messages are the parent's."""
    status: Status
    """How it ended."""
    answer: str | None
    """The final answer; `None` without one."""
    calls: int
    """Number of calls after the fork."""
    characters: int
    """Number of characters that the model wrote after the fork."""
    tokens: int | None
    """Number of tokens that the model sampled after the fork; `None` for text actions."""
    eligible: bool
    """Whether the arm's fault took place. An arm without a fault is always eligible."""
    turn: str
    """The first turn of the model after the fork; empty if the model wrote nothing."""
    repeats: bool
    """Whether the next call is the same program as the call at the fork."""
    futile: int
    """Number of calls after the fork that a persistent explicit fault makes fail."""
    transcript: Transcript
    """The forked transcript."""

    @property
    def problem(self) -> str:
        """The problem's id."""
        return self.prefix[0]

    @property
    def right(self) -> bool:
        """Whether the final answer is right."""
        return self.status == "right"

    def status_after(self, calls: int) -> Status:
        """The state after a number of further calls: the end, or `"going on"`.

        Args:
            calls: The number of calls after the fork.
        """
        return self.status if self.calls <= calls else "going on"


def read_continuations(transcripts: Iterable[Transcript]) -> list[Continuation]:
    """Read the forks among transcripts. Transcripts without a parent are left out."""
    return [_read(transcript) for transcript in transcripts if transcript.parent is not None]


def _read(transcript: Transcript) -> Continuation:
    parent = transcript.parent
    assert parent is not None
    kept = parent.call - (parent.arm == DROP)
    response = transcript.response
    replies = [index for index, span in enumerate(response) if span.author == "env"]
    begin = replies[kept - 1] + 1 if 0 < kept <= len(replies) else len(response) * (kept > 0)
    after = response[begin:]
    turns = [span for span in after if span.author == "model"]
    at_fork = _execution(response, replies, parent.call) if kept == parent.call else None
    results = [span.execution for span in after if span.execution is not None]
    ids = [span.token_ids for span in turns]
    return Continuation(
        prefix=(transcript.problem.id, parent.sample, parent.call),
        arm=parent.arm,
        visible=parent.visible,
        status=status_of(transcript),
        answer=transcript.answer if transcript.answer and transcript.answer.strip() else None,
        calls=sum(span.author == "env" for span in after),
        characters=sum(len(span.text) for span in turns),
        tokens=None if None in ids else sum(len(some or ()) for some in ids),
        eligible=parent.arm not in KINDS or _took_place(at_fork),
        turn=turns[0].text if turns else "",
        repeats=_repeats(transcript, kept),
        futile=sum(_is_futile(result) for result in results),
        transcript=transcript,
    )


def status_of(transcript: Transcript) -> Status:
    """How an episode ended."""
    reason = transcript.stop_reason
    if not transcript.scored:
        return "failed"
    if reason is None:
        return "going on"
    if transcript.correct:
        return "right"
    if reason is StopReason.ANSWERED:
        return "wrong answer"
    return "gave up" if reason in (StopReason.STOPPED, StopReason.VOID_TURN) else "cut"


def _execution(response: tuple[Span, ...], replies: list[int], call: int) -> Execution | None:
    return response[replies[call - 1]].execution if call <= len(replies) else None


def _took_place(execution: Execution | None) -> bool:
    # Without a result at the fork the sandbox failed; whether the call is eligible is unknown.
    return execution is None or (execution.fault is not None and execution.fault.injected)


def _is_futile(execution: Execution) -> bool:
    fault = execution.fault
    if fault is None or not fault.injected or execution.outcome is Outcome.OK:
        return False
    kind = KINDS[fault.kind]
    return kind.persistent and kind.sort == "explicit"


def _repeats(transcript: Transcript, kept: int) -> bool:
    turns = transcript.turns
    if not 0 < kept < len(turns):
        return False
    before, after = turns[kept - 1 : kept + 1]
    program = after.content.strip()
    return before.kind is after.kind and bool(program) and before.content.strip() == program


# --- prefixes and their arms --------------------------------------------------------------------

Cells = dict[Prefix, dict[str, list[Continuation]]]
"""The continuations of each prefix, by arm."""


def by_prefix(continuations: Iterable[Continuation]) -> Cells:
    """Sort continuations by prefix and arm."""
    cells: Cells = {}
    for one in continuations:
        cells.setdefault(one.prefix, {}).setdefault(one.arm, []).append(one)
    return cells


def eligible(cells: Cells, arm: str) -> Cells:
    """The prefixes at which the fault of an arm took place, or could not be known.

    Args:
        cells: The continuations.
        arm: The arm.
    """
    return {
        prefix: arms
        for prefix, arms in cells.items()
        if arm in arms and all(one.eligible for one in arms[arm])
    }


Value = Callable[[Continuation], float]
"""The value of a continuation, such as 1 for a right answer."""


def mean_value(
    continuations: Iterable[Continuation], value: Value, failed: float | None = None
) -> tuple[float, int] | None:
    """The mean of a value, and the number of continuations; `None` without any.

    Args:
        continuations: The continuations of one cell.
        value: The value of a continuation.
        failed: The value of an infrastructure failure; `None`: failures are left out.
    """
    values = [value(one) if one.status != "failed" else failed for one in continuations]
    numbers = [number for number in values if number is not None]
    return (sum(numbers) / len(numbers), len(numbers)) if numbers else None


def pairs(
    cells: Cells,
    first: str,
    second: str,
    value: Value,
    failed: tuple[float, float] | None = None,
) -> list[Pair]:
    """The prefixes that have samples in two arms.

    Args:
        cells: The continuations.
        first: The first arm.
        second: The second arm.
        value: The value of a continuation.
        failed: The values of an infrastructure failure in the first and in the second arm; `None`:
            failures are left out.
    """
    made = []
    for prefix, arms in cells.items():
        a = mean_value(arms.get(first, ()), value, failed[0] if failed else None)
        b = mean_value(arms.get(second, ()), value, failed[1] if failed else None)
        if a and b:
            made.append(Pair(prefix[0], a[0], b[0], (a[1] + b[1]) / 2))
    return made


def count(cells: Cells, *arms: str) -> int:
    """The number of continuations of some arms that did not fail."""
    return sum(
        one.status != "failed" for c in cells.values() for arm in arms for one in c.get(arm, ())
    )


def failures(cells: Cells, *arms: str) -> int:
    """The number of infrastructure failures in some arms."""
    return sum(
        one.status == "failed" for c in cells.values() for arm in arms for one in c.get(arm, ())
    )


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


def shown_value(transcript: Transcript) -> str | None:
    """The false value that the result at the fork shows.

    The numbers of the shown and of the real output are compared in order.

    Returns:
        The number that differs. `None` if no number differs, or several numbers do.
    """
    parent = transcript.parent
    if parent is None:
        return None
    replies = [span for span in transcript.response if span.author == "env"]
    result = replies[parent.call - 1].execution if parent.call <= len(replies) else None
    if result is None or result.fault is None or result.fault.real is None:
        return None
    texts = (result.stdout, result.fault.real.stdout)
    shown, real = (_NUMBER.findall(without_notice(text)) for text in texts)
    if len(shown) != len(real):
        return None
    different = [a for a, b in zip(shown, real, strict=True) if a != b]
    return different[0] if len(different) == 1 else None


def arms_of(cells: Cells, known: Mapping[str, object] = KINDS) -> list[str]:
    """The arms of faults that have a prefix, in the order of the kinds.

    Args:
        cells: The continuations.
        known: The names of all kinds.
    """
    present = {arm for arms in cells.values() for arm in arms}
    return [name for name in known if name in present]
