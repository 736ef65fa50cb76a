"""What is measured on finished transcripts.

Each figure is a share or a mean with the number of cases it rests on. Where there is no case there is no figure
(`None`), rather than a zero.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from retool_env.transcript import Transcript


@dataclass(frozen=True)
class Interval:
    """A mean with a 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


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

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return dataclasses.asdict(self)


def wilson(mean: float, count: int, z: float = 1.96) -> Interval:
    """The Wilson score interval of a mean of `count` values in [0, 1] (Wilson, 1927).

    With several rollouts a problem, `count` is the number of problems: rollouts of one problem are not independent, so
    counting them all would promise too much. The interval is then wider than need be, never narrower.

    Raises:
        ValueError: If `count` is below 1.
    """
    if count < 1:
        raise ValueError("no interval without a case")
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    spread = mean * (1 - mean) / count + z * z / (4 * count * count)
    half = z / (1 + z * z / count) * math.sqrt(spread)
    # Rounding must not push a bound past 0, 1 or the mean itself.
    return Interval(mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)))


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
    means = [sum(marks) / len(marks) for marks in by_problem.values()]
    calls = [transcript.calls for transcript in scored]
    number = sum(map(len, calls))
    tokens = None
    if scored and all(t.spans[0].token_ids is not None for t in scored):
        tokens = _mean([len(t.completion_ids) for t in scored])
    return Summary(
        problems=len(means),
        episodes=len(scored),
        failed=len(transcripts) - len(scored),
        accuracy=wilson(sum(means) / len(means), len(means)) if means else None,
        reward=_mean([t.reward for t in scored if t.reward is not None]),
        code_ratio=_mean([float(bool(c)) for c in calls]),
        calls_per_episode=_mean([len(c) for c in calls]),
        calls=number,
        call_pass_rate=_mean([float(call.ok) for c in calls for call in c]),
        response_tokens=tokens,
        response_characters=_mean([len(t.response_text) for t in scored]),
        stop_reasons=dict(Counter(str(t.stop_reason) for t in transcripts)),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
