"""Figures of failed calls, worked out by hand."""

import dataclasses

import pytest
from helpers.episodes import (
    ALL,
    ANSWERED,
    CODE,
    LATE,
    NAME,
    NOTICE,
    OK,
    RIGHT,
    TYPE,
    WRONG,
    episode,
    figures_of,
    means,
)

from retool_env.execution import Execution, Outcome
from retool_env.metrics.failed_calls import FATES, error_kind
from retool_env.metrics.summary import summarise
from retool_env.transcript import Call, StopReason


def test_errors_of_twelve_episodes():
    found = figures_of(ALL)
    assert found["error/calls"].mean == pytest.approx(9 / 13)
    flow = {  # same_error, other_error, ok, answered_right, answered_wrong, gave_up, cut
        # TWICE's first; NEVER's first; MENDED, TWICE's second and PAUSED; STUBBORN; NEVER's second;
        # EMPTY; LIMIT
        "all": (1, 1, 3, 1, 1, 1, 1),
        "runtime_error/nameerror": (1, 1, 3, 1, 0, 0, 0),
        "runtime_error/typeerror": (0, 0, 0, 0, 1, 0, 0),
        "syntax_error/syntaxerror": (0, 0, 0, 0, 0, 1, 0),
        "timeout": (0, 0, 0, 0, 0, 0, 1),
    }
    for kind, numbers in flow.items():
        row = [found[f"error/{kind}/next/{fate}"] for fate in FATES]
        assert [round(figure.mean * figure.count, 9) for figure in row] == list(numbers), kind
        assert {figure.count for figure in row} == {sum(numbers)}
        if kind != "all":
            assert found[f"error/{kind}"].mean == pytest.approx(sum(numbers) / 9)
    assert sum(key.endswith("/next/ok") for key in found) == len(flow)


def test_recovery_of_twelve_episodes():
    found = figures_of(ALL)
    # All nine failed calls are followed by a turn; five of them by a call, of which TWICE's first
    # needs two calls.
    assert means(found, *(f"recovery/ran@{k}/had_turn" for k in (1, 2, 3))) == pytest.approx(
        [3 / 9, 4 / 9, 4 / 9]
    )
    assert means(found, *(f"recovery/ran@{k}/called" for k in (1, 2, 3))) == pytest.approx(
        [3 / 5, 4 / 5, 4 / 5]
    )
    mended, expected = found["recovery/mended"], summarise(ALL).recovery.mended
    assert (mended.mean, mended.low, mended.high) == dataclasses.astuple(expected.interval)
    assert (mended.count, mended.problems) == (7, 6)


@pytest.mark.parametrize(
    ("outcome", "error", "kind"),
    [
        (Outcome.RUNTIME_ERROR, "ValueError: bad", "runtime_error/valueerror"),
        (Outcome.RUNTIME_ERROR, "AssertionError", "runtime_error/assertionerror"),
        (
            *(Outcome.RUNTIME_ERROR, "json.decoder.JSONDecodeError: no"),
            "runtime_error/json.decoder.jsondecodeerror",
        ),
        (Outcome.RUNTIME_ERROR, "exit status 3", "runtime_error"),
        (Outcome.TIMEOUT, "time limit: more than 5 s", "timeout"),
        (Outcome.MEMORY_LIMIT, "", "memory_limit"),
    ],
)
def test_the_kind_of_an_error(outcome, error, kind):
    assert error_kind(Call("x", Execution(outcome, "", error), 0, "plain")) == kind


@pytest.mark.parametrize("reason", [r for r in StopReason if r is not StopReason.INFRASTRUCTURE])
def test_an_end_after_a_failed_call_is_the_models_choice_or_a_cut(reason):
    found = figures_of([episode("p", reason, (CODE, NAME), "and so on")])
    answered, given_up = reason is StopReason.ANSWERED, reason in ("stopped", "void_turn")
    assert found["error/all/next/answered_wrong"].mean == answered
    assert found["error/all/next/gave_up"].mean == given_up
    assert found["error/all/next/cut"].mean == (not answered and not given_up)


def test_recovery_has_two_denominators():
    rollouts = [
        episode("p", ANSWERED, (CODE, NAME), (CODE, TYPE), (CODE, LATE), (CODE, OK), RIGHT),
        episode("q", ANSWERED, (CODE, NAME), WRONG),  # another turn, and no call
        episode("r", StopReason.CHARACTER_BUDGET, (CODE, NAME)),  # no other turn
        episode("s", ANSWERED, (CODE, NAME), ("hm", NOTICE), WRONG),
    ]
    found = figures_of(rollouts)
    assert found["error/calls"].count == 7
    for k, ran in ((1, 1), (2, 2), (3, 3)):
        had_turn, called = found[f"recovery/ran@{k}/had_turn"], found[f"recovery/ran@{k}/called"]
        assert (had_turn.count, had_turn.mean) == (5, pytest.approx(ran / 5))
        assert (called.count, called.mean) == (3, pytest.approx(ran / 3))
