"""The paired difference: by hand, antisymmetric, and with intervals that cover."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.evaluation.compare.outcomes import Outcome
from retool_env.evaluation.compare.paired import PairedProblem, detectable, paired_difference
from retool_env.metrics.estimators import ClusterMean

VERDICTS = st.lists(
    st.tuples(*[st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=4)] * 2),
    min_size=1,
    max_size=30,
)


def some(verdicts):
    return tuple(Outcome(f"p/{n}", n, right, "none", 0, 0) for n, right in enumerate(verdicts))


def problems(rows):
    return [PairedProblem(some(first), some(second)) for first, second in rows]


def test_the_difference_by_hand():
    rows = [([True, False], [True, True]), ([False], [True]), ([True], [False]), ([True], [True])]
    found = paired_difference(problems(rows))
    assert (found.problems, found.first, found.second) == (4, 2.5 / 4, 3 / 4)
    assert found.difference == pytest.approx(0.5 / 4)
    # The signs of 1/2, 1 and -1: 6 of the 8 sums are as far from 0 as 1/2, and so are the others.
    assert found.p == 1
    assert (found.failed, found.lowest, found.highest) == (0, None, None)
    assert found.low < found.difference < found.high and found.caution


def test_episodes_that_do_not_count_bound_the_difference_both_ways():
    rows = [([None], [True]), ([False, None], [True, False]), ([True], [True])]
    found = paired_difference(problems(rows))
    assert (found.problems, found.failed) == (2, 2)
    assert found.difference == pytest.approx((0.5 + 0) / 2)
    # All failures right in the first run: 0, 0 and 0. All wrong: 1, 1/2 and 0.
    assert (found.lowest, found.highest) == (0, pytest.approx(0.5))
    assert paired_difference(problems([([None], [True])])) is None


def test_the_bounds_take_the_failures_of_both_runs():
    found = paired_difference(problems([([None], [None]), ([True], [True]), ([True], [False])]))
    assert (found.lowest, found.highest) == (pytest.approx(-2 / 3), 0)


@settings(deadline=None)
@given(VERDICTS)
def test_the_comparison_is_antisymmetric(rows):
    found = paired_difference(problems(rows))
    other = paired_difference(problems([(second, first) for first, second in rows]))
    if found is None:
        assert other is None
        return
    assert other.difference == pytest.approx(-found.difference)
    assert (other.p, other.problems, other.failed) == (found.p, found.problems, found.failed)
    for one, mirrored in ((found.low, other.high), (found.highest, other.lowest)):
        assert mirrored == (None if one is None else pytest.approx(-one))
    if found.low is not None:
        assert found.low - 1e-12 <= found.difference <= found.high + 1e-12
    if found.failed:
        assert -1 <= found.lowest <= found.highest <= 1


@settings(deadline=None)
@given(VERDICTS, st.randoms())
def test_the_order_of_the_problems_does_not_matter(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    found, other = (paired_difference(problems(each)) for each in (rows, shuffled))
    if found is not None:
        assert other.difference == pytest.approx(found.difference)
        assert (other.p, other.low) == (found.p, found.low and pytest.approx(found.low))


@settings(deadline=None)
@given(VERDICTS)
def test_a_run_equals_itself(rows):
    found = paired_difference(problems([(first, first) for first, _ in rows]))
    if found is not None:
        assert (found.difference, found.p) == (0, 1)


def test_runs_that_agree_everywhere_are_not_known_to_be_equal():
    found = paired_difference(problems([([True], [True])] * 60))
    # With a share of 6 % of differing problems, 60 problems without one have a chance of 2.5 %.
    assert found.high == pytest.approx(0.0596, abs=1e-4) and found.low == -found.high


def test_one_problem_has_no_interval():
    found = paired_difference(problems([([True], [False])]))
    assert (found.difference, found.p) == (-1, 1)
    assert found.low is found.high is found.detectable is None


def test_five_problems_can_not_detect_a_difference():
    five, six = (paired_difference(problems([([False], [True])] * n)) for n in (5, 6))
    assert five.p > 0.05 > six.p
    assert five.detectable is None and six.detectable > 0


def test_the_detectable_difference_grows_with_the_interval():
    # With 9 degrees of freedom: t = 2.262, and 0.883 and 1.383 for a power of 80 % and 90 %.
    found = ClusterMean(10, 10, 0.0, -0.2262, 0.2262)
    assert detectable(found) == pytest.approx(0.2262 + 0.0883, abs=1e-4)
    assert detectable(found, power=0.9) == pytest.approx(0.2262 + 0.1383, abs=1e-4)
