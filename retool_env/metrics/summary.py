"""What is measured on finished transcripts.

Each figure is a share or a mean. Where there is no case there is no figure (`None`), rather than a zero. Intervals take the
episodes of one problem as one cluster.

What the paper measures of tool use (section 3.3) is measured here as it defines it; where it does not say, the field says
what was chosen. Of its last two metrics, the purposes of code need a language model to label them (`code_purposes`), and
self-correction is `retool_env.metrics.recovery`.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from retool_env.metrics.intervals import Estimate, Interval, pooled, wilson
from retool_env.metrics.recovery import Recovery, measure_recovery
from retool_env.protocol.program import FORMS, Form
from retool_env.transcript import Call, Transcript


@dataclass(frozen=True)
class Summary:
    """The figures of one evaluation, or of one step's rollouts."""

    problems: int
    """Number of problems with at least one scored episode."""
    episodes: int
    """Number of scored episodes."""
    failed: int
    """Number of episodes that an infrastructure failure ended, or that were cut before they began. They enter no other
    figure."""
    accuracy: Interval | None
    """Mean over problems of the share of correct episodes: avg@k, the paper's pass@1 (section 3.1)."""
    reward: float | None
    """Mean reward."""
    code_ratio: float | None
    """Share of responses with at least one call (section 3.3)."""
    calls_per_episode: float | None
    """Mean number of calls."""
    calls: int
    """Number of calls."""
    call_pass_rate: float | None
    """Share of calls whose program ran without error. An empty block is a failed call."""
    response_tokens: float | None
    """Mean number of tokens after the prompt, the interpreter's included; `None` for text transcripts."""
    response_characters: float | None
    """The same in characters."""
    stop_reasons: dict[str, int]
    """Episodes by stop reason, failed ones included."""
    calls_ok: int | None
    """Number of calls whose program ran without error: the correct code count (section 3.3). Like all that follow, `None`
    also in records from before it was measured."""
    code_lines: float | None
    """Mean number of lines of code a response (section 3.3): of all its programs together, without blank lines; 0 for a
    response without a call."""
    last_call_ok_right: Estimate | None
    """Code pass rate (section 3.3): share of right responses whose last call ran without error, among those with a call."""
    last_call_ok_wrong: Estimate | None
    """The same of wrong responses."""
    first_call_at: float | None
    """Invocation timing (section 3.3): where in a response its first code block or call begins, as a share of its length,
    the interpreter's text included; the mean over responses with a call. In characters, which every transcript has: where in
    a turn a block begins is not known in tokens. The paper says neither the unit nor which block it takes."""
    recovery: Recovery | None
    """What the model does after an error."""
    call_forms: dict[Form, int] | None
    """Number of calls of each form in which a program is read (`retool_env.protocol.program`)."""

    def to_json(self) -> dict[str, object]:
        """As plain JSON values; `from_json` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Rebuild it from `to_json`'s values. Others beside them are passed over; a figure that is missing is `None`."""
        values: dict[str, Any] = {
            field.name: record.get(field.name) for field in dataclasses.fields(cls)
        }
        make: dict[str, Callable[[dict[str, Any]], object]] = {
            "accuracy": lambda value: Interval(**value),
            "last_call_ok_right": Estimate.from_json,
            "last_call_ok_wrong": Estimate.from_json,
            "recovery": Recovery.from_json,
        }
        made = {name: build(values[name]) for name, build in make.items() if values[name]}
        return cls(**{**values, **made})


def summarise(transcripts: Sequence[Transcript]) -> Summary:
    """The figures of finished transcripts, several a problem or one.

    Raises:
        ValueError: If one of them goes on still.
    """
    if any(t.stop_reason is None for t in transcripts):
        raise ValueError("only finished transcripts can be summarised")
    scored = [t for t in transcripts if t.scored]
    by_problem: dict[str, list[bool]] = {}
    for transcript in scored:
        by_problem.setdefault(transcript.problem.id, []).append(bool(transcript.correct))
    accuracy = _mean([sum(marks) / len(marks) for marks in by_problem.values()])
    calls = [transcript.calls for transcript in scored]
    every = [call for some in calls for call in some]
    with_code = [(t, some) for t, some in zip(scored, calls, strict=True) if some]
    last = {
        right: pooled(
            (t.problem.id, int(some[-1].ok), 1) for t, some in with_code if bool(t.correct) is right
        )
        for right in (True, False)
    }
    tokens = None
    if scored and all(t.spans[0].token_ids is not None for t in scored):
        tokens = _mean([len(t.completion_ids) for t in scored])
    return Summary(
        problems=len(by_problem),
        episodes=len(scored),
        failed=len(transcripts) - len(scored),
        accuracy=None if accuracy is None else wilson(accuracy, len(by_problem)),
        reward=_mean([t.reward for t in scored if t.reward is not None]),
        code_ratio=_mean([float(bool(some)) for some in calls]),
        calls_per_episode=_mean([len(some) for some in calls]),
        calls=len(every),
        call_pass_rate=_mean([float(call.ok) for call in every]),
        response_tokens=tokens,
        response_characters=_mean([len(t.response_text) for t in scored]),
        stop_reasons=dict(Counter(str(t.stop_reason) for t in transcripts)),
        calls_ok=sum(call.ok for call in every),
        code_lines=_mean([sum(_lines(call.program) for call in some) for some in calls]),
        last_call_ok_right=last[True],
        last_call_ok_wrong=last[False],
        first_call_at=_mean([some[0].position / len(t.response_text) for t, some in with_code]),
        recovery=measure_recovery(scored),
        call_forms={form: sum(call.form == form for call in every) for form in FORMS},
    )


def summarise_along(transcripts: Iterable[Transcript], ends: Sequence[int]) -> dict[int, Summary]:
    """The figures of a run's rollouts along its training, for curves.

    The optimizer step that a transcript was trained in is its `trained_version` plus one.

    Args:
        transcripts: The episodes that a run was trained on, in any order; those of several processes are taken together.
        ends: The last step of each bin, ascending: `range(10, steps + 1, 10)`, say. The first bin begins at step 1.

    Returns:
        The figures of each bin by its last step, in order; of a bin without transcripts, too.

    Raises:
        ValueError: If `ends` do not ascend from 1 or above, or a transcript was not trained on, or after the last of them.
    """
    if not ends or ends[0] < 1 or any(a >= b for a, b in pairwise(ends)):
        raise ValueError(
            f"ends must be steps in ascending order, from 1 or above, not {list(ends)}"
        )
    bins: list[list[Transcript]] = [[] for _ in ends]
    for transcript in transcripts:
        if transcript.trained_version is None:
            raise ValueError(
                f"a transcript of {transcript.problem.id!r} has no trained_version: give those that a run was trained on"
            )
        step = transcript.trained_version + 1
        if step > ends[-1]:
            raise ValueError(
                f"a transcript is of step {step}, after the last bin's end, {ends[-1]}"
            )
        bins[bisect_left(ends, step)].append(transcript)
    return {end: summarise(some) for end, some in zip(ends, bins, strict=True)}


def code_purposes(
    transcripts: Iterable[Transcript], label: Callable[[Transcript, Call], str]
) -> dict[str, int]:
    """How often code is called for each purpose (section 3.3, figure 5), the most frequent first.

    The paper asks a language model for the primary purpose of a snippet in its context (calculation, verification, ...), and
    leaves out what occurs once. `label` is to do so; rules on the text of a program would be another metric, so there are none
    here.

    Args:
        transcripts: Finished ones; those that are not scored are left out.
        label: Names the purpose of a call. It sees the whole episode; `call.position` says where in it.

    Returns:
        The number of calls of each label, all of them.
    """
    scored = (t for t in transcripts if t.scored)
    return dict(Counter(label(t, call) for t in scored for call in t.calls).most_common())


def _lines(program: str) -> int:
    return sum(bool(line.strip()) for line in program.splitlines())


def _mean(values: Sequence[float]) -> float | None:
    # The exact sum, so that the order does not matter.
    return math.fsum(values) / len(values) if values else None
