"""The figures of transcripts, against figures worked out by hand."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.episodes import (
    ALL,
    ANSWERED,
    BROKEN,
    CODE,
    DIRECT,
    GUESS,
    LATE,
    MENDED,
    NAME,
    NEVER,
    NOTICE,
    OK,
    RAN,
    RIGHT,
    TYPE,
    WRONG,
    episode,
    with_ids,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.metrics.intervals import Estimate, wilson
from retool_env.metrics.summary import Summary, code_purposes, summarise, summarise_along
from retool_env.protocol.program import FORMS
from retool_env.protocol.result import EMPTY_PROGRAM
from retool_env.transcript import Span, StopReason


@pytest.mark.parametrize("tokens", [False, True])
def test_twelve_episodes_by_hand(tokens):
    summary = summarise([with_ids(t) for t in ALL] if tokens else ALL)
    assert (summary.problems, summary.episodes, summary.failed) == (8, 11, 1)
    # a 1/2, b 1, c 1/2, d 0, e 0, f 0, g 1, h 0
    assert summary.accuracy == wilson(3 / 8, 8)
    assert summary.reward == pytest.approx((5 - 6) / 11)
    assert summary.code_ratio == pytest.approx(8 / 11)  # not DIRECT, GUESS and CUT
    assert summary.calls == 13 and summary.calls_ok == 4
    assert summary.calls_per_episode == pytest.approx(13 / 11)
    assert summary.call_pass_rate == pytest.approx(4 / 13)
    assert summary.code_lines == pytest.approx((1 + 1 + 3 + 2 + 3 + 0 + 2 + 2) / 11)
    # RAN, STUBBORN, MENDED, NEVER, TWICE, EMPTY, LIMIT, PAUSED
    assert summary.first_call_at == pytest.approx((4 / 40 + 0 + 0 + 2 / 48 + 0 + 0 + 0 + 0) / 8)
    # DIRECT to CUT in their order
    characters = 19 + 18 + 40 + 33 + 53 + 48 + 63 + 15 + 30 + 55 + 9
    assert characters == 383
    assert summary.response_characters == pytest.approx(characters / 11)
    # Two tokens for each character of the model. The environment wrote 3 characters in each of RAN,
    # MENDED and TWICE, and 6 characters in PAUSED.
    assert summary.response_tokens == (
        pytest.approx((2 * 383 - 3 - 3 - 3 - 6) / 11) if tokens else None
    )
    assert summary.stop_reasons == {
        "answered": 8,
        "void_turn": 1,
        "call_limit": 1,
        "character_budget": 1,
        "infrastructure_failure": 1,
    }


def test_the_forms_of_programs_are_counted():
    def read(form, turn=CODE, result=OK):
        spans = (Span("prompt", "?"), Span("model", turn), Span("env", "", None, execution=result))
        spans = (*spans[:2], dataclasses.replace(spans[2], form=form))
        return dataclasses.replace(RAN, spans=spans)

    forms = ["plain", "fenced", "mended:dedent", "mended:dedent", "unread", None]
    read_then = read(None, "<code>\n```\n1\n```\n</code>")  # an old record has no form
    failed = dataclasses.replace(BROKEN, spans=read("mended:marks").spans)
    summary = summarise([*map(read, forms), read_then, failed])
    assert summary.call_forms == {
        "plain": 2,
        "fenced": 2,
        "mended:marks": 0,
        "mended:prompts": 0,
        "mended:dedent": 2,
        "unread": 1,
    }
    assert list(summary.call_forms) == list(FORMS)
    assert sum(summarise(ALL).call_forms.values()) == summarise(ALL).call_forms["plain"] == 13
    assert Summary.from_json(json.loads(json.dumps(summary.to_json()))) == summary


def test_the_last_calls_of_right_and_of_wrong_responses_by_hand():
    summary = summarise(ALL)
    # Right: b 1 of 2 (RAN, not STUBBORN), c 1 of 1, g 1 of 1.
    # Effective cases: 4^2 / (2^2 + 1 + 1).
    assert summary.last_call_ok_right == Estimate(4, wilson(3 / 4, 16 / 6))
    # Wrong: c 0 (NEVER), d 1 (TWICE), e 0 (EMPTY), f 0 (LIMIT, whose last block did not run).
    assert summary.last_call_ok_wrong == Estimate(4, wilson(1 / 4, 4))


def test_figures_do_not_depend_on_the_order():
    assert summarise(ALL[::-1]) == summarise(ALL)


def test_interpreter_tokens_count():
    spans = (
        Span("prompt", "?", (1, 2, 3)),
        Span("model", CODE, (4, 5), (-1.0, -1.0)),
        Span("env", "42\n", (6, 7, 8), execution=OK),
    )
    tokens = dataclasses.replace(RAN, spans=spans)
    shorter = dataclasses.replace(DIRECT, spans=spans[:2])
    assert summarise([tokens]).response_tokens == 5
    assert summarise([tokens, shorter]).response_tokens == 3.5
    assert summarise([tokens, DIRECT]).response_tokens is None  # DIRECT has no token ids


NONE = Estimate(0, None)


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
            "code_lines",
            "first_call_at",
        ):
            assert getattr(summary, name) is None, name
        assert summary.calls == summary.calls_ok == 0
        assert summary.last_call_ok_right == summary.last_call_ok_wrong == NONE
        assert set(vars(summary.recovery).values()) == {NONE}
    summary = summarise([DIRECT])
    assert summary.code_ratio == 0.0 and summary.calls_per_episode == 0.0
    assert summary.code_lines == 0.0
    # Without a call, shares of calls are `None`.
    assert summary.call_pass_rate is None and summary.first_call_at is None
    assert summary.last_call_ok_right == summary.last_call_ok_wrong == NONE
    assert set(vars(summary.recovery).values()) == {NONE}
    summary = summarise([RAN])  # without an error
    assert summary.last_call_ok_right.count == 1 and summary.last_call_ok_wrong == NONE
    assert set(vars(summary.recovery).values()) == {NONE}
    recovery = summarise([NEVER]).recovery  # without a mended error
    assert recovery.turns == NONE and recovery.mended == Estimate(1, wilson(0.0, 1))


def test_several_rollouts_a_problem_count_as_one():
    def again(transcript, problem, correct):
        problem = dataclasses.replace(transcript.problem, id=problem)
        return dataclasses.replace(transcript, problem=problem, correct=correct)

    marks = {"a": [True, True, False, False], "b": [True], "c": [False, False]}
    rollouts = [again(GUESS, name, mark) for name, row in marks.items() for mark in row]
    summary = summarise(rollouts)
    assert (summary.problems, summary.episodes) == (3, 7)
    assert summary.accuracy == wilson(0.5, 3)  # the mean of 1/2, 1 and 0, not 3 of 7
    broken = [again(BROKEN, "a", None), again(BROKEN, "z", None)]
    assert summarise(rollouts + broken).accuracy == summary.accuracy


def test_an_unfinished_episode_is_refused():
    with pytest.raises(ValueError, match="finished"):
        summarise([DIRECT, dataclasses.replace(DIRECT, stop_reason=None)])


# --- what holds of any episodes -----------------------------------------------------------------

TURNS = st.one_of(
    st.sampled_from([OK, NAME, TYPE, LATE, NOTICE]).map(lambda result: (f"so {CODE}", result)),
    st.just(("<code>\n</code>", EMPTY_PROGRAM)),
)
EPISODES = st.lists(
    st.builds(
        lambda problem, reason, turns, correct: episode(
            problem, reason, *turns, RIGHT if correct else WRONG, correct=correct
        ),
        st.sampled_from("abcd"),
        st.sampled_from([ANSWERED, ANSWERED, StopReason.INFRASTRUCTURE]),
        st.lists(TURNS, max_size=5),
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(episodes=EPISODES, data=st.data())
def test_what_holds_of_any_summary(episodes, data):
    summary = summarise(episodes)
    assert summary == summarise(data.draw(st.permutations(episodes)))
    assert Summary.from_json(json.loads(json.dumps(summary.to_json()))) == summary
    for name in ("code_ratio", "call_pass_rate", "first_call_at"):
        value = getattr(summary, name)
        assert value is None or 0 <= value <= 1
    recovery = summary.recovery
    shares = [summary.last_call_ok_right, summary.last_call_ok_wrong, recovery.next_call_ok]
    for share in (*shares, recovery.same_error, recovery.mended, recovery.accuracy):
        assert (share.interval is None) == (share.count == 0)
        if share.interval is not None:
            assert 0 <= share.interval.low <= share.interval.mean <= share.interval.high <= 1
    failed = summary.calls - summary.calls_ok
    assert recovery.next_call_ok.count == recovery.same_error.count == failed
    assert recovery.accuracy.count <= recovery.mended.count <= failed
    if failed:
        fates = recovery.next_call_ok.interval.mean + recovery.same_error.interval.mean
        assert fates <= 1 + 1e-12
        assert recovery.turns.count == round(recovery.mended.interval.mean * recovery.mended.count)
        # Each error is mended by the next call of its last failed call.
        assert recovery.turns.count == round(recovery.next_call_ok.interval.mean * failed)
    if recovery.turns.interval is not None:
        turns = recovery.turns.interval
        assert 1 <= turns.low <= turns.mean <= turns.high


@settings(max_examples=30)
@given(episodes=EPISODES)
def test_twice_as_many_problems_of_the_same_kind_have_the_same_means(episodes):
    def means(value, times=1):
        if isinstance(value, dict):
            return {k: means(v, times) for k, v in value.items() if k not in ("low", "high")}
        return value / times if isinstance(value, int) else value  # a whole number is a count

    copies = [
        dataclasses.replace(t, problem=dataclasses.replace(t.problem, id=t.problem.id * 2))
        for t in episodes
    ]
    twice = summarise(episodes + copies).to_json()
    assert means(twice, 2) == means(summarise(episodes).to_json())


# --- records ------------------------------------------------------------------------------------


def test_json():
    record = json.loads(json.dumps(summarise(ALL).to_json()))
    assert record["accuracy"]["mean"] == 3 / 8 and record["stop_reasons"]["answered"] == 8
    assert record["recovery"]["turns"]["count"] == 3
    assert record["recovery"]["turns"]["interval"]["mean"] == pytest.approx(5 / 3)
    # An estimate on few cases is also recorded.
    assert record["last_call_ok_wrong"] == {
        "count": 4,
        "interval": dataclasses.asdict(wilson(1 / 4, 4)),
    }


def test_records_with_unknown_keys_or_missing_figures_are_read():
    summary = summarise(ALL)
    record = json.loads(json.dumps({"command": {"k": "4"}, "seconds": 3, **summary.to_json()}))
    assert Summary.from_json(record) == summary
    later = ("calls_ok", "code_lines", "last_call_ok_right", "last_call_ok_wrong")
    later += ("first_call_at", "recovery")
    old = {name: value for name, value in record.items() if name not in later}
    assert Summary.from_json(old) == dataclasses.replace(summary, **dict.fromkeys(later))


# --- along training -----------------------------------------------------------------------------


def trained(version, *transcripts):
    return [dataclasses.replace(t, trained_version=version) for t in transcripts]


def test_figures_along_training():
    rollouts = [
        *trained(3, MENDED, RAN),  # step 4
        *trained(0, GUESS),  # step 1
        *trained(1, NEVER, BROKEN),  # step 2, the last of the first bin
        *trained(2, DIRECT),  # step 3
    ]
    bins = summarise_along(iter(rollouts), [2, 4, 6])
    assert list(bins) == [2, 4, 6]
    assert bins[2] == summarise([GUESS, NEVER, BROKEN])
    assert bins[4] == summarise([MENDED, RAN, DIRECT])
    assert bins[6] == summarise([]) and bins[6].accuracy is None
    assert summarise_along(rollouts, range(4, 5)) == {4: summarise(rollouts)}


def test_what_cannot_be_put_in_order_is_refused():
    for ends in ([], [0, 2], [2, 2], [3, 1]):
        with pytest.raises(ValueError, match="ascending"):
            summarise_along([], ends)
    with pytest.raises(ValueError, match="step 3 is after the last bin, 2"):
        summarise_along(trained(2, RAN), [1, 2])
    with pytest.raises(ValueError, match="'b' has no trained_version"):
        summarise_along([RAN], [10])


# --- purposes of code ---------------------------------------------------------------------------


def test_purposes_are_counted_as_they_are_labelled():
    seen = []

    def label(transcript, call):
        seen.append((transcript.problem.id, call.position, call.ok))
        return "verification" if transcript.response_text[: call.position] else "calculation"

    purposes = code_purposes([MENDED, DIRECT, RAN, BROKEN], label)
    # The two calls of MENDED are in order. BROKEN is not scored.
    assert seen == [("c", 0, False), ("c", 17, True), ("b", 4, True)]
    assert list(purposes.items()) == [("verification", 2), ("calculation", 1)]
    assert code_purposes([], label) == {}
