"""The use of the tool in the recovery study, and its change."""

from __future__ import annotations

import math

import pytest
from helpers.episodes import ANSWERED, CODE, OK, RIGHT, WRONG, episode
from helpers.studies import third

from benchmarks.parts.study_use import USES, calls_of, observed_change, read_use, use_change


def with_call(problem):
    return episode(problem, ANSWERED, (CODE, OK), RIGHT, correct=True)


def without_call(problem):
    return episode(problem, ANSWERED, WRONG)


def test_the_use_is_read_by_problem_and_by_halves():
    arms = {
        ("dose", "0"): [with_call("a"), without_call("a"), without_call("b")],
        ("frequency", "tool"): [with_call("a")] * 16 + [without_call("b")] * 16,
        ("frequency", "text"): [without_call("a")] * 16 + [without_call("b")] * 15,
    }
    found = read_use(arms)
    assert found["a"] == {"calls": 0.5, "gain": 1.0, "halves": [[True, 1.0], [True, 1.0]]}
    assert found["b"] == {"calls": 0.0, "gain": 0.0}  # too few samples for halves
    assert read_use({("dose", "0"): [with_call("a")]}) == {"a": {"calls": 1.0}}


def of(halves, problems=12, spread=0.0, **values):
    """An evaluation with the same use at each problem, but for a spread."""
    made = {}
    for at in range(problems):
        more = spread * (at % 3)
        own = {name: value + more for name, value in values.items()}
        made[f"p{at}"] = {**own, "halves": [[gains, called + more] for gains, called in halves]}
    return {"use": made}


def test_the_change_of_the_use_is_paired_by_problem():
    before, after = of([], calls=2.0, gain=0.5), of([], calls=1.0, gain=0.5, spread=0.1)
    assert (calls_of(before), calls_of(after)) == (2.0, pytest.approx(1.1))
    found = use_change([before], [after], "calls")
    assert (found.mean, found.problems, found.verdict) == (pytest.approx(-0.9), 12, "lower")
    assert use_change([before], [after], "tool gain").mean == pytest.approx(0.1)
    assert use_change([before], [of([], problems=0)], "calls").mean is None
    # A problem is one cluster over the seeds.
    both = use_change([before, before], [after, after], "calls")
    assert (both.mean, both.low, both.high, both.problems) == pytest.approx(
        (found.mean, found.low, found.high, 12)
    )


def test_over_use_and_under_use_change_where_both_models_select_the_half():
    before = of([[True, 0.25], [False, 0.5]])
    after = of([[True, 1.0], [True, 1.0]], spread=-0.1)
    under = use_change([before], [after], "under-use")
    assert under.mean == pytest.approx(-0.75 + 0.1) and under.verdict == "lower"
    assert use_change([before], [after], "over-use").problems == 0
    more = use_change([before], [of([[False, 1.0], [False, 1.0]], spread=-0.1)], "over-use")
    assert more.mean == pytest.approx(0.5 - 0.1) and more.verdict == "higher"
    assert set(USES) == {"calls", "tool gain", "over-use", "under-use"}


def test_the_change_of_thirds_has_the_interval_of_two_independent_shares():
    training = {"20": third(0.8), "40": third(0.1), "60": third(0.4)}
    found = observed_change(training, "next_call_ok")
    half = math.hypot(0.1, 0.1)
    assert found.mean == pytest.approx(-0.4)
    assert (found.low, found.high) == pytest.approx((-0.4 - half, -0.4 + half))
    assert found.verdict == "lower" and found.problems == 30
    # The longer sides of both intervals are on the same side of the change.
    training["60"]["recovery"]["accuracy"]["interval"] = {"mean": 0.4, "low": 0.1, "high": 0.4}
    skewed = observed_change(training, "accuracy")
    assert skewed.low == pytest.approx(-0.4 - math.hypot(0.3, 0.1))
    assert skewed.high == pytest.approx(-0.4 + 0.1)
    training["60"]["recovery"]["accuracy"] = {"count": 0, "interval": None}
    assert observed_change(training, "accuracy").verdict == "not shown"
