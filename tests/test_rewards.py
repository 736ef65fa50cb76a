"""Reward presets, beside what `test_episode` shows of them in episodes."""

from __future__ import annotations

import pytest

from retool_env.problems import Problem
from retool_env.rewards import PRESETS, get_reward
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import Span, StopReason, Transcript


def transcript(calls: int, correct: bool | None) -> Transcript:
    spans = [Span("prompt", "q")]
    for _ in range(calls):
        spans.append(Span("model", "<code>a</code>"))
        spans.append(Span("env", "1", execution=Execution(Outcome.RUNTIME_ERROR, "", "no")))
    problem = Problem(id="p", question="q", answer="1")
    return Transcript(problem, tuple(spans), stop_reason=StopReason.ANSWERED, correct=correct)


@pytest.mark.parametrize(
    ("preset", "calls", "correct", "expected"),
    [
        ("paper", 0, True, 1.0),
        ("paper", 9, True, 1.0),
        ("paper", 0, False, -1.0),
        ("paper", 9, False, -1.0),  # nothing for code, on purpose
        ("paper", 0, None, -1.0),
        ("verl", 5, True, 1.0),
        ("verl", 0, False, -1.0),
        ("verl", 3, False, -0.7),
        ("verl", 4, False, -0.6),
        ("verl", 9, False, -0.6),  # never better than that
        ("verl", 2, None, -0.8),
    ],
)
def test_presets(preset, calls, correct, expected):
    assert get_reward(preset)(transcript(calls, correct)) == pytest.approx(expected)


def test_a_function_is_taken_as_it_is():
    def reward(transcript):
        return 3.0

    assert get_reward(reward) is reward


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=f"'papr'; there are {', '.join(PRESETS)}, or pass"):
        get_reward("papr")
