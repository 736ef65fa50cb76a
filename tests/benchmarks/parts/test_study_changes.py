"""Changes of the recovery study: intervals by the jackknife, and verdicts."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.parts.study_changes import Change, jackknife, over_seeds


def test_a_verdict_needs_an_interval_apart_from_0():
    change = Change(0.2, 0.1, 0.3, 60)
    assert change.verdict == "higher"
    assert dataclasses.replace(change, low=-0.01).verdict == "not shown"
    assert dataclasses.replace(change, low=None).verdict == "not shown"
    assert Change(-0.2, -0.3, -0.1, 60).verdict == "lower"


def test_the_jackknife_of_a_mean_is_its_t_interval():
    values = {f"p{at}": float(at % 5) for at in range(20)}

    def mean(without):
        some = [value for name, value in values.items() if name != without]
        return sum(some) / len(some)

    found = jackknife(list(values), mean)
    assert (found.mean, found.problems) == (2.0, 20)
    half = 2.093024 * (40 / 19 / 20) ** 0.5
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)


def test_without_any_spread_the_width_is_unknown_and_not_0():
    assert jackknife(["a"], lambda without: 0.5) == Change(0.5, None, None, 1)
    assert jackknife(list("abcdefghijkl"), lambda without: 0.5).verdict == "not shown"


def test_seeds_have_equal_weights_and_a_problem_is_one_cluster_over_them():
    def mean_of(values):
        def statistic(without):
            some = [value for name, value in values.items() if name != without]
            return sum(some) / len(some)

        return values, statistic

    many = mean_of({f"p{at}": 1.0 + at % 2 for at in range(40)})
    few = mean_of({f"p{at}": 4.0 + at % 2 for at in range(10)})
    found = over_seeds([many, few])
    assert (found.mean, found.problems) == (3.0, 40)
    alone, same = over_seeds([many]), over_seeds([many, many])
    assert (same.low, same.high) == pytest.approx((alone.low, alone.high))
    # Opposite seeds cancel in each problem: the jackknife leaves both out at once.
    opposite = mean_of({f"p{at}": -1.0 - at % 2 for at in range(40)})
    assert over_seeds([many, opposite]) == Change(0.0, None, None, 40)
