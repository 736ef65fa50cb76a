"""Dose curves on episodes that are counted by hand."""

from __future__ import annotations

import pytest
from helpers.episodes import CODE, OK, RIGHT, WRONG, episode
from helpers.forks import fork
from hypothesis import given
from hypothesis import strategies as st

from retool_env.errors import SettingsError
from retool_env.metrics.causal.dose import dose_figures, trapezoid
from retool_env.transcript import StopReason


def some(problem, right, number, calls=0):
    turns = [(CODE, OK)] * calls
    return [
        episode(
            *(problem, StopReason.ANSWERED, *turns, RIGHT if i < right else WRONG),
            correct=i < right,
        )
        for i in range(number)
    ]


def figures(by_rate):
    return {figure.key: figure for figure in dose_figures(by_rate)}


def test_accuracy_use_and_area_by_hand():
    failed = episode("a", StopReason.INFRASTRUCTURE)
    found = figures(
        {
            1.0: some("a", 0, 2, calls=3) + some("b", 1, 2, calls=1),
            0.0: [*some("a", 2, 2, calls=1), failed, *some("b", 2, 2)],
            0.5: some("a", 1, 2) + some("b", 2, 2) + some("c", 1, 1),
        }
    )
    assert found["dose/0/accuracy"].mean == 1
    assert (found["dose/0/accuracy"].count, found["dose/0/accuracy"].failed) == (4, 1)
    assert found["dose/1/accuracy"].mean == 0.25
    assert found["dose/1/calls"].mean == 2
    # a: 1/4 + 1/2 * 1/2 + 0; b: 1/4 + 1/2 + 1/4 * 1/2
    assert found["dose/area"].mean == pytest.approx((0.5 + 0.875) / 2)
    assert found["dose/area_ratio"].mean == pytest.approx(0.6875)
    assert (found["dose/area"].left_out, found["dose/area"].problems) == (1, 2)


def test_faults_that_cost_nothing_leave_an_area_ratio_of_1():
    problems = [one for i in range(30) for one in some(f"p{i}", 1 + i % 3, 3)]
    found = figures({0: problems, 0.1: problems, 1: problems})["dose/area_ratio"]
    assert found.mean == pytest.approx(1)
    assert found.shown


def test_a_low_accuracy_without_faults_hides_the_ratio():
    found = figures({0: some("a", 0, 2) + some("b", 1, 2), 1: some("a", 0, 2) + some("b", 1, 2)})
    assert not found["dose/area_ratio"].shown
    assert found["dose/area"].shown


def test_one_rate_and_forks_are_refused():
    with pytest.raises(SettingsError, match="at least two rates of faults, not 1"):
        figures({0: some("a", 1, 1)})
    with pytest.raises(SettingsError, match="leave out the forks"):
        figures({0: [fork("a", "control", "right")], 1: []})


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6, unique=True).map(sorted))
def test_the_weights_of_the_trapezoidal_rule_integrate_lines(points):
    if points[-1] - points[0] < 1e-6:
        return
    weights = trapezoid(points)
    middle = (points[0] + points[-1]) / 2
    assert sum(weights) == pytest.approx(1)
    assert sum(w * x for w, x in zip(weights, points, strict=True)) == pytest.approx(middle)


def test_failures_bound_the_area_and_its_ratio_both_ways():
    lost = episode("a", StopReason.INFRASTRUCTURE)
    by_rate = {0.0: [*some("a", 2, 3), lost], 1.0: [*some("a", 1, 3), lost]}
    found = figures(by_rate)
    area, ratio = found["dose/area"], found["dose/area_ratio"]
    # 2/4 to 3/4 at the rate 0, 1/4 to 2/4 at the rate 1; each rate weighs a half
    assert (area.lowest, area.highest) == (0.375, 0.625)
    assert area.lowest <= area.mean <= area.highest
    assert ratio.lowest == pytest.approx((0.75 + 0.25) / 2 / 0.75)
    assert ratio.highest == pytest.approx((0.5 + 0.5) / 2 / 0.5)
    without = figures({0.0: some("a", 2, 3), 1.0: some("a", 1, 3)})
    assert without["dose/area"].lowest is without["dose/area_ratio"].highest is None


def test_equal_numbers_of_calls_have_no_interval():
    """All problems have one call: an interval without a width would claim to be exact."""
    same = [one for i in range(40) for one in some(f"p{i}", 1, 2, calls=1)]
    other = [one for i in range(40) for one in some(f"p{i}", 1, 2, calls=1 + (i < 5))]
    found = figures({0: same, 1: other})
    flat, spread = found["dose/0/calls"], found["dose/1/calls"]
    assert (flat.mean, flat.low, flat.high, flat.shown) == (1, None, None, True)
    assert spread.low < spread.mean == 45 / 40 < spread.high
