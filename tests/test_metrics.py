"""Figures of transcripts that were worked out by hand."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.metrics import Interval, summarise, wilson
from retool_env.problems import Problem
from retool_env.protocol import EMPTY_PROGRAM
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import Span, StopReason, Transcript

OK = Execution(Outcome.OK, "42\n")
FAILED = Execution(Outcome.RUNTIME_ERROR, "", "NameError")


def episode(problem, reason, *turns, correct=False, interpreter=True) -> Transcript:
    """A finished episode of the prompt "?", of `turns`: a text, or a text and its program's result."""
    spans = [Span("prompt", "?")]
    for turn in turns:
        if isinstance(turn, str):
            spans.append(Span("model", turn))
        else:
            spans += [Span("model", turn[0]), Span("env", turn[1].stdout, execution=turn[1])]
    scored = reason is not StopReason.INFRASTRUCTURE
    return Transcript(
        Problem(id=problem, question="?", answer="42"),
        tuple(spans),
        interpreter,
        reason,
        correct=correct if scored else None,
        reward=(1.0 if correct else -1.0) if scored else None,
    )


CODE = "<code>a</code>"  # 14 characters
RIGHT = episode("a", StopReason.ANSWERED, "<answer>42</answer>", correct=True)  # 19
WRONG = episode("b", StopReason.ANSWERED, "<answer>4</answer>")  # 18
RAN = episode("c", StopReason.ANSWERED, (CODE, OK), "<answer>42</answer>", correct=True)  # 36
MENDED = episode(
    "d", StopReason.ANSWERED, (CODE, FAILED), (CODE, OK), "<answer>42</answer>", correct=True
)  # 50
EMPTY = episode("e", StopReason.VOID_TURN, ("<code></code>", EMPTY_PROGRAM), "hm")  # 15
BROKEN = episode("f", StopReason.INFRASTRUCTURE, (CODE, OK), CODE)
CUT = episode("g", StopReason.CHARACTER_BUDGET, "and so on")  # 9
ALL = [RIGHT, WRONG, RAN, MENDED, EMPTY, BROKEN, CUT]


def test_seven_episodes_by_hand():
    summary = summarise(ALL)
    assert (summary.problems, summary.episodes, summary.failed) == (6, 6, 1)
    assert summary.accuracy == wilson(0.5, 6)
    assert summary.reward == 0.0  # three right, three wrong
    assert summary.code_ratio == 0.5  # RAN, MENDED, EMPTY
    assert summary.calls == 4 and summary.calls_per_episode == pytest.approx(4 / 6)
    assert summary.call_pass_rate == 0.5  # a failed one and an empty block among four
    assert summary.response_characters == pytest.approx((19 + 18 + 36 + 50 + 15 + 9) / 6)
    assert summary.response_tokens is None
    assert summary.stop_reasons == {
        "answered": 4,
        "void_turn": 1,
        "infrastructure_failure": 1,
        "character_budget": 1,
    }


def test_figures_do_not_hang_on_the_order():
    assert summarise(ALL[::-1]) == summarise(ALL)


def test_tokens_count_the_interpreters_too():
    spans = (
        Span("prompt", "?", (1, 2, 3)),
        Span("model", CODE, (4, 5), (-1.0, -1.0)),
        Span("env", "42\n", (6, 7, 8), execution=OK),
    )
    tokens = dataclasses.replace(RAN, spans=spans)
    shorter = dataclasses.replace(RIGHT, spans=spans[:2])
    assert summarise([tokens]).response_tokens == 5
    assert summarise([tokens, shorter]).response_tokens == 3.5
    assert summarise([tokens, RIGHT]).response_tokens is None  # one of them has none


def test_without_a_case_there_is_no_figure():
    for transcripts in ([], [BROKEN]):
        summary = summarise(transcripts)
        assert summary.failed == len(transcripts) and summary.episodes == summary.problems == 0
        for name in (
            "accuracy",
            "reward",
            "code_ratio",
            "calls_per_episode",
            "call_pass_rate",
            "response_tokens",
            "response_characters",
        ):
            assert getattr(summary, name) is None
        assert summary.calls == 0
    summary = summarise([RIGHT])
    assert summary.code_ratio == 0.0 and summary.calls_per_episode == 0.0
    assert summary.call_pass_rate is None  # no call, so no share of calls


def test_several_rollouts_a_problem_count_as_one():
    def again(transcript, problem, correct):
        problem = dataclasses.replace(transcript.problem, id=problem)
        return dataclasses.replace(transcript, problem=problem, correct=correct)

    marks = {"a": [True, True, False, False], "b": [True], "c": [False, False]}
    rollouts = [again(WRONG, name, mark) for name, row in marks.items() for mark in row]
    summary = summarise(rollouts)
    assert (summary.problems, summary.episodes) == (3, 7)
    assert summary.accuracy == wilson(0.5, 3)  # the mean of 1/2, 1 and 0, not 3 of 7
    broken = [again(BROKEN, "a", None), again(BROKEN, "z", None)]
    assert summarise(rollouts + broken).accuracy == summary.accuracy


def test_an_unfinished_episode_is_refused():
    with pytest.raises(ValueError, match="finished"):
        summarise([RIGHT, dataclasses.replace(RIGHT, stop_reason=None)])


def test_json():
    record = json.loads(json.dumps(summarise(ALL).to_json()))
    assert record["accuracy"]["mean"] == 0.5 and record["stop_reasons"]["answered"] == 4


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_against_known_values(right, count, low, high):
    interval = wilson(right / count, count)
    assert interval.mean == right / count
    assert (interval.low, interval.high) == (
        pytest.approx(low, abs=5e-5),
        pytest.approx(high, abs=5e-5),
    )


@settings(deadline=None)
@given(count=st.integers(1, 300), data=st.data())
def test_wilson_holds_its_mean_and_solves_its_equation(count, data):
    right = data.draw(st.integers(0, count))
    interval = wilson(right / count, count)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    # By definition a bound p is z standard errors, computed at p, away from the mean.
    for p in (interval.low, interval.high):
        assert (p - interval.mean) ** 2 == pytest.approx(1.96**2 * p * (1 - p) / count, abs=1e-9)
    wider = wilson(right / count, count, z=2.58)
    assert wider.low <= interval.low and interval.high <= wider.high


def test_no_interval_without_a_case():
    with pytest.raises(ValueError, match="without a case"):
        wilson(0.0, 0)


def test_an_interval_reads_as_percentages():
    assert str(Interval(float(Fraction(1, 4)), 0.05, 1.0)) == "25.0 % [5.0, 100.0]"
