"""Reward presets on transcripts; `test_episode` covers them in episodes."""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np
import pytest

from retool_env.problems import Problem
from retool_env.rewards import PRESETS, earned, get_reward
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
        ("paper", 9, False, -1.0),  # code alone earns nothing
        ("paper", 0, None, -1.0),
        ("verl", 5, True, 1.0),
        ("verl", 0, False, -1.0),
        ("verl", 3, False, -0.7),
        ("verl", 4, False, -0.6),
        ("verl", 9, False, -0.6),  # the upper bound
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
    with pytest.raises(ValueError, match=f"'papr'; the presets are {', '.join(PRESETS)}, or pass"):
        get_reward("papr")


@pytest.mark.parametrize(
    "value", [1, -2.5, Fraction(1, 2), np.float32(0.5), np.float64(-1), np.int64(3)], ids=repr
)
def test_numbers_of_any_kind_are_earned_as_pythons_own(value):
    reward = earned(lambda transcript: value, transcript(0, True))
    assert type(reward) is float and reward == value


def tensors():
    torch = pytest.importorskip("torch")
    return [torch.tensor(1.0), torch.ones(2)]


def test_what_is_no_number_names_the_function_whatever_kind_it_is():
    class Reward:
        def __call__(self, transcript):
            return np.array([1.0])

        def method(self, transcript):
            return np.bool_(True)

    async def later(transcript):
        return 1.0

    def given(value, transcript):
        return value

    cases = [
        (Reward(), "Reward object"),
        (Reward().method, "Reward.method"),
        (lambda transcript: "1", "<lambda>"),
        (functools.partial(given, None), "functools.partial"),
        *((lambda transcript, value=value: value, "<lambda>") for value in tensors()),
    ]
    for reward, name in cases:
        with pytest.raises(TypeError, match=f"the reward .*{name}.* must return a finite number"):
            earned(reward, transcript(0, True))
    with (
        pytest.warns(RuntimeWarning, match="never awaited"),
        pytest.raises(TypeError, match="later must return a finite number, not <coroutine"),
    ):
        earned(later, transcript(0, True))


@pytest.mark.parametrize("reward", ["none", ["paper"], None, 3])
def test_what_is_no_reward_names_those_there_are(reward):
    with pytest.raises(ValueError, match="presets are paper, verl, or pass a function"):
        get_reward(reward)
