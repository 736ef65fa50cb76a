"""Recovery from errors: figures worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.episodes import (
    ALL,
    ANSWERED,
    CODE,
    LATE,
    MENDED,
    NAME,
    OK,
    TYPE,
    WRONG,
    episode,
)

from retool_env.metrics.intervals import Estimate, Interval, wilson
from retool_env.metrics.recovery import measure_recovery
from retool_env.metrics.summary import summarise
from retool_env.problems import Problem
from retool_env.protocol.result import EMPTY_PROGRAM
from retool_env.sandbox import Outcome


def test_recovery_by_hand():
    recovery = summarise(ALL).recovery
    assert measure_recovery(ALL) == recovery  # `measure_recovery` skips BROKEN itself
    # Failed calls: b 1 (STUBBORN), c 1 + 2 (MENDED, NEVER), d 2 (TWICE), e 1, f 1, g 1 (PAUSED).
    # Effective cases: 9^2 / (1 + 3^2 + 2^2 + 1 + 1 + 1). The next call ran in MENDED, PAUSED, and
    # after the second call of TWICE.
    assert recovery.next_call_ok == Estimate(9, wilson(3 / 9, 81 / 17))
    # Only the first call of TWICE is followed by the same error. The errors of NEVER differ. EMPTY
    # and LIMIT have no next call.
    assert recovery.same_error == Estimate(9, wilson(1 / 9, 81 / 17))
    # Errors: b 1, c 2, d 1 (two failed calls), e 1, f 1, g 1. Mended in MENDED, TWICE and PAUSED.
    assert recovery.mended == Estimate(7, wilson(3 / 7, 49 / 9))
    # In 1, 2 and 2 turns, with the void turn of PAUSED: three of five turns mend an error.
    # Effective cases: 5^2 / (1 + 2^2 + 2^2).
    share = wilson(3 / 5, 25 / 9)
    assert recovery.turns == Estimate(3, Interval(1 / (3 / 5), 1 / share.high, 1 / share.low))
    # Episodes with an error: those seven. Right: STUBBORN, MENDED, PAUSED.
    assert recovery.accuracy == Estimate(7, wilson(3 / 7, 49 / 9))


def test_an_error_is_the_same_by_its_kind_and_its_line():
    def share(*results):
        turns = [(CODE, result) for result in results]
        return measure_recovery([episode("a", ANSWERED, *turns, WRONG)]).same_error.interval.mean

    # The last failed call has no next call.
    assert share(NAME, NAME) == 1 / 2
    assert share(NAME, TYPE) == 0
    assert share(NAME, NAME, NAME, NAME) == 3 / 4
    assert share(EMPTY_PROGRAM, EMPTY_PROGRAM) == 1 / 2
    assert share(NAME, OK, NAME) == 0
    assert share(NAME, dataclasses.replace(NAME, outcome=Outcome.BLOCKED)) == 0
    # The printed output and the place of the error do not matter.
    assert share(NAME, dataclasses.replace(NAME, stdout="1\n", traceback="line 3")) == 1 / 2


def test_an_episode_may_hold_several_errors():
    results = [NAME, OK, OK, TYPE, NAME, OK, LATE]
    figures = measure_recovery([episode("a", ANSWERED, *((CODE, r) for r in results), WRONG)])
    assert figures.next_call_ok.count == 4 and figures.next_call_ok.interval.mean == 2 / 4
    assert figures.mended.count == 3 and figures.mended.interval.mean == pytest.approx(2 / 3)
    assert figures.turns.count == 2 and figures.turns.interval.mean == pytest.approx((1 + 2) / 2)
    assert figures.accuracy.count == 1 and figures.accuracy.interval.mean == 0


def test_errors_all_mended_at_once_leave_a_doubt():
    mended = [dataclasses.replace(MENDED, problem=Problem(str(i), "?", "42")) for i in range(100)]
    turns = measure_recovery(mended).turns
    assert turns.count == 100 and turns.interval.mean == turns.interval.low == 1
    assert turns.interval.high == pytest.approx(1 + 1.96**2 / 100)  # Wilson's lower bound, inverted
