"""The figures of finished transcripts.

Each figure is a share or a mean. A figure without cases is `None`, and not zero. In the intervals,
the episodes of a problem form one cluster.

The figures of tool use follow the definitions of the paper (section 3.3). Where the paper leaves a
choice, the field's text states the choice made here. Two of the paper's metrics are elsewhere: the
purposes of code need a language model that labels them (`code_purposes`), and self-correction is in
`retool_env.metrics.recovery`.
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
    """The figures of an evaluation, or of the rollouts of a training step.

    The figures from `calls_ok` on are `None` in records of older versions, which did not have them.
    """

    problems: int
    """The number of problems with at least one scored episode."""
    episodes: int
    """The number of scored episodes."""
    failed: int
    """The number of episodes that an infrastructure failure ended, or that were cut before their
    start. They count in no other figure but `stop_reasons`."""
    accuracy: Interval | None
    """The mean over problems of the share of correct episodes: avg@k, which is the paper's pass@1
    (section 3.1)."""
    reward: float | None
    """The mean reward."""
    code_ratio: float | None
    """The share of responses with at least one call (section 3.3)."""
    calls_per_episode: float | None
    """The mean number of calls of an episode."""
    calls: int
    """The number of calls."""
    call_pass_rate: float | None
    """The share of calls whose program ran without error. An empty block is a failed call."""
    response_tokens: float | None
    """The mean number of tokens after the prompt, interpreter tokens included; `None` if a
    transcript has no token ids."""
    response_characters: float | None
    """The mean number of characters after the prompt, interpreter text included."""
    stop_reasons: dict[str, int]
    """The number of episodes by stop reason, failed episodes included."""
    calls_ok: int | None
    """The number of calls whose program ran without error: the correct code count (section 3.3)."""
    code_lines: float | None
    """The mean number of lines of code in a response (section 3.3). All programs of a response
    count together, without blank lines. A response without a call counts as 0."""
    last_call_ok_right: Estimate | None
    """The code pass rate (section 3.3): among right responses with a call, the share whose last
    call ran without error."""
    last_call_ok_wrong: Estimate | None
    """The same share among wrong responses with a call."""
    first_call_at: float | None
    """The invocation timing (section 3.3): the start of the first code block or tool call as a
    share of the response's characters, interpreter text included; the mean over responses with a
    call. The paper gives neither the unit nor the block. The unit is characters, because the start
    of a block inside a turn is not known in tokens."""
    recovery: Recovery | None
    """The recovery from errors."""
    call_forms: dict[Form, int] | None
    """The number of calls by the form of their program (`retool_env.protocol.program`)."""

    def to_json(self) -> dict[str, object]:
        """Returns the figures as JSON values, which `from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Makes a summary from `to_json`'s values.

        Args:
            record: The values. Unknown keys are ignored, and a missing figure is `None`.
        """
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
    """Returns the figures of finished transcripts, one or more of each problem.

    Raises:
        ValueError: A transcript is not finished.
    """
    if any(t.stop_reason is None for t in transcripts):
        raise ValueError("a transcript is not finished; summarise transcripts with a stop reason")
    scored = [t for t in transcripts if t.scored]
    by_problem: dict[str, list[bool]] = {}
    for transcript in scored:
        by_problem.setdefault(transcript.problem.id, []).append(bool(transcript.correct))
    accuracy = _mean([sum(marks) / len(marks) for marks in by_problem.values()])
    calls_of = [transcript.calls for transcript in scored]
    calls = [call for episode in calls_of for call in episode]
    with_code = [(t, episode) for t, episode in zip(scored, calls_of, strict=True) if episode]
    last = {
        right: pooled(
            (t.problem.id, int(episode[-1].ok), 1)
            for t, episode in with_code
            if bool(t.correct) is right
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
        code_ratio=_mean([float(bool(episode)) for episode in calls_of]),
        calls_per_episode=_mean([len(episode) for episode in calls_of]),
        calls=len(calls),
        call_pass_rate=_mean([float(call.ok) for call in calls]),
        response_tokens=tokens,
        response_characters=_mean([len(t.response_text) for t in scored]),
        stop_reasons=dict(Counter(str(t.stop_reason) for t in transcripts)),
        calls_ok=sum(call.ok for call in calls),
        code_lines=_mean([sum(_lines(call.program) for call in episode) for episode in calls_of]),
        last_call_ok_right=last[True],
        last_call_ok_wrong=last[False],
        first_call_at=_mean([a[0].position / len(t.response_text) for t, a in with_code]),
        recovery=measure_recovery(scored),
        call_forms={form: sum(call.form == form for call in calls) for form in FORMS},
    )


def summarise_along(transcripts: Iterable[Transcript], ends: Sequence[int]) -> dict[int, Summary]:
    """Returns the figures of a run's rollouts in bins of training steps, for curves.

    Args:
        transcripts: See `bins_along`.
        ends: See `bins_along`.

    Returns:
        The figures of each bin by its last step, in order. A bin without transcripts also has
        figures.

    Raises:
        ValueError: See `bins_along`.
    """
    return {end: summarise(rollouts) for end, rollouts in bins_along(transcripts, ends).items()}


def bins_along(
    transcripts: Iterable[Transcript], ends: Sequence[int]
) -> dict[int, list[Transcript]]:
    """Returns a run's rollouts in bins of training steps.

    The training step of a transcript is its `trained_version` plus one.

    Args:
        transcripts: The transcripts that a run trained on, in any order and from all processes.
        ends: The last step of each bin in ascending order, for example `range(10, steps + 1, 10)`.
            The first bin begins at step 1.

    Returns:
        The transcripts of each bin by its last step, in order. A bin may be empty.

    Raises:
        ValueError: The `ends` do not ascend from 1 or above, no run trained on a transcript, or the
            step of a transcript is after the last bin.
    """
    if not ends or ends[0] < 1 or any(a >= b for a, b in pairwise(ends)):
        raise ValueError(f"ends must be ascending steps, from 1 or above, not {list(ends)}")
    bins: dict[int, list[Transcript]] = {end: [] for end in ends}
    for transcript in transcripts:
        if transcript.trained_version is None:
            raise ValueError(
                f"a transcript of {transcript.problem.id!r} has no trained_version: give only "
                "transcripts that a run trained on"
            )
        step = transcript.trained_version + 1
        if step > ends[-1]:
            raise ValueError(f"step {step} is after the last bin, {ends[-1]}: add a bin to ends")
        bins[ends[bisect_left(ends, step)]].append(transcript)
    return bins


def code_purposes(
    transcripts: Iterable[Transcript], label: Callable[[Transcript, Call], str]
) -> dict[str, int]:
    """Counts calls by their purpose (section 3.3, figure 5).

    The paper asks a language model for the primary purpose of a program in its context
    (calculation, verification, ...), and omits purposes that occur once. `label` should also ask a
    language model. This module has no rules on the text of programs, because they would be a
    different metric.

    Args:
        transcripts: Finished transcripts. Transcripts that are not scored do not count.
        label: Returns the purpose of a call from the transcript and the call. `call.position` is
            the position of the call in the response.

    Returns:
        The number of calls of every label, the most frequent label first.
    """
    scored = (t for t in transcripts if t.scored)
    return dict(Counter(label(t, call) for t in scored for call in t.calls).most_common())


def _lines(program: str) -> int:
    return sum(bool(line.strip()) for line in program.splitlines())


def _mean(values: Sequence[float]) -> float | None:
    # The exact sum, so that the order of the values does not change the mean.
    return math.fsum(values) / len(values) if values else None
