"""Learning curves: costs until a level, validity, and the ratio of two arms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.parts.learning import Curve, calibrate, claim_holds, compare


def curve(*accuracy, every=10):
    steps = tuple(range(0, every * len(accuracy), every))
    return Curve(steps, accuracy, tuple(100 * s for s in steps), tuple(2.0 * s for s in steps))


def test_the_cost_until_a_level_is_interpolated():
    found = curve(0.2, 0.4, 0.3, 0.8)
    assert found.first(0.2) == 0.0 and found.first(0.1) == 0.0
    assert found.first(0.3) == pytest.approx(5.0)
    assert found.first(0.35, "tokens") == pytest.approx(750.0)
    assert found.first(0.5) == pytest.approx(24.0)  # after the dip: 20 + 10 * 0.2 / 0.5
    assert found.first(0.5, "seconds") == pytest.approx(48.0)
    assert found.first(0.81) is None
    assert found.best == 0.8


def test_the_area_is_the_mean_over_steps():
    assert curve(0.0, 1.0, 1.0).area == pytest.approx(0.75)
    assert Curve((0, 10, 40), (0.0, 1.0, 1.0), (0, 1, 2), (0.0, 1.0, 2.0)).area == pytest.approx(
        (5 + 30) / 40
    )


def test_what_makes_a_comparison_void():
    good = calibrate(curve(0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6))
    assert good.valid
    assert good.start == 0.3
    assert good.gain == pytest.approx((0.55 + 0.6) / 2 - 0.3)
    assert good.late_gain == pytest.approx((0.55 + 0.6) / 2 - (0.45 + 0.5) / 2)
    assert not calibrate(curve(0.3, 0.32, 0.34, 0.36, 0.38, 0.4, 0.42)).valid  # too little
    assert not calibrate(curve(0.3, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6)).valid  # at its end before half


def test_the_interpreter_against_text():
    text = curve(0.2, 0.3, 0.4, 0.5, 0.6)
    fast = curve(0.2, 0.6, 0.9, 0.9, 0.9)
    ratios = compare(fast, text)
    assert ratios == {
        "25%": pytest.approx(2.5 / 10),
        "50%": pytest.approx(5 / 20),
        "75%": pytest.approx(7.5 / 30),
        "best": pytest.approx(10 / 40),
    }
    assert claim_holds(ratios)
    assert not claim_holds(compare(curve(0.2, 0.3, 0.4, 0.6, 0.6), text))
    assert compare(curve(0.2, 0.3, 0.3, 0.3, 0.3), text)["best"] is None
    assert not claim_holds(compare(curve(0.2, 0.3, 0.3, 0.3, 0.3), text))
    # A cold start above text-only's best needs 0 steps.
    assert compare(curve(0.7, 0.8, 0.9, 0.9, 0.9), text)["best"] == 0.0


@given(st.lists(st.floats(0, 1), min_size=3, max_size=9))
def test_a_curve_is_its_own_equal(accuracy):
    found = curve(*accuracy)
    assert all(ratio in (None, 1.0) for ratio in compare(found, found).values())
    assert min(accuracy) - 1e-9 <= found.area <= max(accuracy) + 1e-9


@pytest.mark.parametrize(
    ("steps", "accuracy"),
    [
        ((0, 10), (0.1, 0.2)),
        ((5, 10, 15), (0.1,) * 3),
        ((0, 10, 10), (0.1,) * 3),
        ((0, 1, 2), (0.1,)),
    ],
)
def test_a_malformed_curve_is_refused(steps, accuracy):
    with pytest.raises(ValueError, match=r"curve|steps"):
        Curve(steps, accuracy, (0,) * len(steps), (0.0,) * len(steps))
