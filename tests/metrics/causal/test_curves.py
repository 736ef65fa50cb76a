"""Outcome curves sum to 100 % at each number of calls."""

from __future__ import annotations

import pytest
from helpers.forks import CALL, TRUE, fork

from retool_env.metrics.causal.continuation import by_prefix, read_continuations
from retool_env.metrics.causal.curves import outcome_curve

MORE = (CALL, TRUE)


def curve(*forks, **settings):
    cells = by_prefix(read_continuations(forks))
    return {f.key: f.mean for f in outcome_curve(cells, "timeout", **settings)}


def test_the_states_by_call():
    found = curve(
        fork("a", "timeout", "right"),
        fork("a", "timeout", "7", MORE),
        fork("b", "timeout", "stopped", MORE, MORE),
        fork("b", "timeout", "cut"),
        fork("b", "timeout", "failed", MORE, MORE, MORE),
    )
    names = ("right", "wrong answer", "gave up", "cut", "going on")
    shares = [[found[f"outcome/timeout/{c}/{name}"] for name in names] for c in range(3)]
    assert shares == [
        [0.25, 0, 0, 0.25, 0.5],
        [0.25, 0.25, 0, 0.25, 0.25],
        [0.25, 0.25, 0.25, 0.25, 0],
    ]
    assert len(found) == 15
    assert [sum(row) for row in shares] == pytest.approx([1, 1, 1])


def test_a_curve_is_cut_at_the_largest_number_of_calls():
    assert len(curve(fork("a", "timeout", "right", MORE, MORE), most=1)) == 2 * 5
    assert curve(fork("a", "timeout", "failed")) == {}
