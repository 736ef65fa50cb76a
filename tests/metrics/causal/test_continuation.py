"""Forks are read into continuations: the part after the fork, its end, and the arm's fault."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.episodes import NOTICE, with_ids
from helpers.forks import CALL, TRUE, faulty, fork

from retool_env.metrics.causal.continuation import (
    by_prefix,
    eligible,
    pairs,
    read_continuations,
    shown_value,
)
from retool_env.transcript import Parent


def read(*transcripts):
    return read_continuations(transcripts)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("right", "right"),
        ("7", "wrong answer"),
        ("stopped", "gave up"),
        ("cut", "cut"),
        ("failed", "failed"),
    ],
)
def test_the_end_of_an_episode_is_its_status(end, status):
    (one,) = read(fork("a", "control", end))
    assert (one.status, one.prefix, one.arm) == (status, ("a", 0, 1), "control")


def test_only_the_part_after_the_fork_counts():
    more = ("x<code>a</code>", TRUE)
    (one,) = read(with_ids(fork("a", "control", "right", more, more)))
    last = "so <answer>42</answer>"
    assert one.calls == 2
    assert one.characters == 2 * len(more[0]) + len(last)
    assert one.tokens == 2 * one.characters  # `with_ids` gives a character of the model two tokens
    assert one.turn == more[0]
    (text,) = read(fork("a", "control", "right"))
    assert (text.calls, text.tokens) == (0, None)


def test_a_turn_without_a_call_has_a_call_number_of_its_own():
    forked = fork("a", "control", "right", ("hm", NOTICE), (CALL, TRUE))
    later = dataclasses.replace(forked, parent=Parent(0, 2, "control"))
    assert [one.calls for one in read(forked, later)] == [2, 1]


def test_the_arm_without_the_call_begins_at_the_result_before():
    (first,) = read(fork("a", "drop", "right", (CALL, TRUE)))
    assert (first.calls, first.turn) == (1, CALL)
    second = dataclasses.replace(
        fork("a", "keep", "right", (CALL, TRUE)), parent=Parent(0, 2, "drop")
    )
    assert read(second)[0].calls == 1


def test_a_fault_that_did_not_take_place_is_not_eligible():
    spared = fork("a", "timeout", "right", result=faulty("timeout", injected=False))
    met = fork("b", "timeout", "right")
    cells = by_prefix(read(spared, met, fork("b", "control", "7")))
    assert list(eligible(cells, "timeout")) == [("b", 0, 1)]
    assert [one.eligible for one in read(spared, met)] == [False, True]


def test_an_identical_next_call_repeats_and_another_does_not():
    other = ("<code>print(42)</code>", TRUE)
    repeated, changed, none = read(
        fork("a", "timeout", "right", (f"again {CALL}", TRUE), other),
        fork("a", "timeout", "right", other, (CALL, TRUE)),
        fork("a", "timeout", "right"),
    )
    assert (repeated.repeats, changed.repeats, none.repeats) == (True, False, False)


def test_calls_after_a_persistent_explicit_fault_are_futile():
    calls = [(CALL, faulty("gone")), (CALL, faulty("gone"))]
    silent = [(CALL, faulty("always_cut"))]
    spared = [(CALL, faulty("missing_package", injected=False)), (CALL, faulty("missing_package"))]
    found = read(
        fork("a", "gone", "stopped", *calls),
        fork("a", "always_cut", "stopped", *silent),
        fork("a", "missing_package", "stopped", *spared),
    )
    assert [one.futile for one in found] == [2, 0, 1]


def test_a_continuation_goes_on_until_its_last_call():
    (one,) = read(fork("a", "control", "cut", (CALL, TRUE), (CALL, TRUE)))
    assert [one.status_after(c) for c in range(4)] == ["going on", "going on", "cut", "cut"]


def test_pairs_are_of_prefixes_with_both_arms_and_leave_failures_out():
    forks = [
        *(fork("a", "timeout", end) for end in ("right", "failed", "7")),
        fork("a", "control", "right"),
        fork("b", "control", "right"),
    ]
    cells = by_prefix(read(*forks))
    (pair,) = pairs(cells, "timeout", "control", lambda one: one.right)
    assert (pair.problem, pair.first, pair.second, pair.samples) == ("a", 0.5, 1.0, 1.5)
    (low,) = pairs(cells, "timeout", "control", lambda one: one.right, (0.0, 1.0))
    assert low.first == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("shown", "real", "value"),
    [
        ("x = 43\n", "x = 42\n", "43"),
        ("1 -5 3", "1 5 3", "-5"),
        ("2\n1\n", "1\n2\n", None),  # swapped lines: two numbers differ
        ("1", "1 2", None),
        ("ok", "ok", None),
        ("[... 20 characters cut ...]\n10", "[... 19 characters cut ...]\n9", "10"),
    ],
)
def test_the_shown_value_is_the_number_that_differs(shown, real, value):
    result = faulty("wrong_value", shown)
    real = dataclasses.replace(TRUE, stdout=real)
    result = dataclasses.replace(result, fault=dataclasses.replace(result.fault, real=real))
    assert shown_value(fork("a", "wrong_value", "7", result=result)) == value
