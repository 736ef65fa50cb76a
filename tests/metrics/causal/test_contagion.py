"""Contagion on the world that is worked out by hand."""

from __future__ import annotations

import pytest
from helpers.forks import fork, world

from retool_env.metrics.causal.contagion import contagion_figures
from retool_env.metrics.causal.continuation import by_prefix, read_continuations


def contagion(transcripts, **settings):
    cells = by_prefix(read_continuations(transcripts))
    return list(contagion_figures(cells, equal=str.__eq__, **settings))


def test_the_control_share_of_the_implied_answer_is_subtracted():
    (found,) = contagion(world())
    # a: 1/2 - 0, b: 1 - 1/2, c: 0 - 0
    assert found.mean == pytest.approx(1 / 3)
    assert (found.count, found.prefixes, found.left_out) == (6, 3, 0)


def test_an_implied_answer_may_be_given_and_forks_without_one_are_counted():
    (found,) = contagion(world(), implied=lambda t: None if t.problem.id == "a" else "43")
    # b: 1 - 1/2, c: 0 - 0
    assert found.mean == 0.25
    assert (found.count, found.prefixes, found.left_out) == (4, 2, 2)


def test_a_fork_whose_implied_answer_is_right_is_not_judged():
    (found,) = contagion(world(), implied=lambda t: "42" if t.problem.id == "a" else "43")
    assert (found.mean, found.count, found.left_out) == (0.25, 4, 2)


def test_failures_are_not_judged():
    failed = [fork("a", "wrong_value", "failed"), fork("a", "control", "failed")]
    (found,) = contagion([*world(), *failed])
    assert found.mean == pytest.approx(1 / 3)
    assert (found.count, found.failed) == (6, 2)
    # a: 1/3 or 2/3 of the forks, minus 1/3 or 0 of the controls
    assert found.lowest == pytest.approx((1 / 3 - 1 / 3 + 1 / 2) / 3)
    assert found.highest == pytest.approx((2 / 3 - 0 + 1 / 2) / 3)
    assert contagion(world())[0].lowest is None


def test_without_a_false_value_there_is_no_figure():
    assert contagion([fork("a", "timeout", "7"), fork("a", "control", "right")]) == []
