"""Intervals by hand, at the edges, and by properties; `benchmarks.coverage` measures coverage."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.metrics.causal.intervals import (
    Pair,
    detectable,
    difference,
    hardly_differ,
    hardly_vary,
    mean_difference,
    mean_share,
    ratio,
    share,
)
from retool_env.metrics.estimators import t_quantile
from retool_env.metrics.intervals import wilson

VALUES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
PAIRS = st.lists(
    st.builds(Pair, st.integers(0, 12), VALUES, VALUES, st.just(4)), min_size=2, max_size=40
)


def spread(number=40):
    """Prefixes away from the edges: accuracy 1/2 and 3/4, without a prefix in common."""
    return [Pair(i, float(i % 2), float(i % 4 > 0), 4) for i in range(number)]


def quantile(values, level=0.95):
    """The t quantile with Hall's correction for the skewness and kurtosis of values."""
    rest = [value - sum(values) / len(values) for value in values]
    second, third, fourth = (sum(r**k for r in rest) / len(rest) for k in (2, 3, 4))
    t = t_quantile(len(values) - 1, level)
    skew, excess = third**2 / second**3, fourth / second**2 - 3
    lost = skew * (t**4 + 2 * t**2 - 3) / 18 - excess * (t**2 - 3) / 12
    return t + max(0, lost) * t / len(values)


def test_a_difference_in_the_middle_is_by_t_over_problems():
    found = difference(spread())
    values = [pair.first - pair.second for pair in spread()]
    mean = sum(values) / 40
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / 39 / 40)
    assert found.mean == pytest.approx(-0.25)
    assert found.high - found.mean == pytest.approx(quantile(values) * error)
    numbers = mean_difference(spread())  # of any range, so more cautious
    assert numbers.high - numbers.mean == pytest.approx(quantile(values) * error * 41 / 40)
    narrow = difference(spread(), 0.9)
    assert narrow.high - narrow.mean == pytest.approx(quantile(values, 0.9) * error)


def test_a_ratio_in_the_middle_is_by_the_delta_method():
    found = ratio(spread())
    rest = [pair.first - 2 / 3 * pair.second for pair in spread()]
    error = math.sqrt(sum(r * r for r in rest) / 39 / 40) / 0.75
    assert found.mean == pytest.approx(2 / 3)
    assert found.high - found.mean == pytest.approx(quantile(rest) * error)


def test_skewed_differences_have_wider_intervals_and_heavy_symmetric_tails_do_not():
    skewed = [1.0] * 4 + [0.0] * 56
    symmetric = [1.0, -1.0] * 2 + [0.0] * 56
    for values, wider in ((skewed, True), (symmetric, False)):
        found = mean_difference([Pair(i, value, 0.0) for i, value in enumerate(values)])
        mean = sum(values) / 60
        error = math.sqrt(sum((v - mean) ** 2 for v in values) / 59 / 60)
        plain = t_quantile(59) * error * 61 / 60
        assert (found.high - found.mean > 1.01 * plain) == wider
        assert found.high - found.mean >= plain * (1 - 1e-9)


def test_arms_that_hardly_differ_are_treated_alike_on_both_sides_of_the_edge():
    """One arm is 4 cases below 1 and the other arm 5, where the edge begins: 4.5 in the mean."""
    pairs = [Pair(i, 1 - 0.5 * (i < 8), 1 - 0.5 * (i < 6), 4) for i in range(100)]
    pairs += [Pair("x", 0.0, 1.0, 4), Pair("y", 1.0, 0.0, 4)]
    values = [pair.first - pair.second for pair in pairs]
    mean = sum(values) / 102
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / 101 / 102)
    found = difference(pairs)
    assert found.high - found.mean == pytest.approx(quantile(values) * error * (1 + 3 / 102))


def test_an_arm_without_a_case_leaves_the_bound_to_the_other_arms_share():
    """Three of 60 problems have a case: the upper bound is a share's, well above `d + t * s`."""
    pairs = [Pair(i, 0.5 if i < 3 else 0.0, 0.0, 4) for i in range(60)]
    found, first = difference(pairs), share((p.problem, p.first, p.samples) for p in pairs)
    assert found.mean == first.mean == 1.5 / 60
    assert found.high == pytest.approx(first.high)
    assert found.low < first.low
    by_spread = mean_difference(pairs)
    assert found.high - found.mean > 1.2 * (by_spread.high - by_spread.mean)
    mirrored = difference([Pair(p.problem, 1.0, 1 - p.first, 4) for p in pairs])
    assert (mirrored.low, mirrored.high) == pytest.approx((found.low, found.high))


def test_samples_that_agree_count_as_one_sample_of_the_problem():
    """Ten samples of a problem that agree hold hardly more than one."""
    agreeing = share((i, float(i % 4 > 0), 10) for i in range(20))
    wavering = share((i, (0.3, 0.9, 0.9, 0.9)[i % 4], 10) for i in range(20))
    alone = wilson(0.75, 20, t_quantile(19))
    assert agreeing.mean == pytest.approx(wavering.mean)
    assert agreeing.high - agreeing.low > 0.95 * (alone.high - alone.low)
    assert wavering.high - wavering.low < 0.8 * (alone.high - alone.low)


def test_prefixes_of_a_problem_are_one_cluster():
    once = spread()
    assert difference(once * 3).low == pytest.approx(difference(once).low)
    assert ratio(once * 3).high == pytest.approx(ratio(once).high)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_prefixes_that_are_all_alike_have_an_interval_with_a_width(value):
    pairs = [Pair(i, value, value, 4) for i in range(20)]
    alike = share((i, value, 4) for i in range(20))
    assert 0.02 < alike.high - alike.low < 0.2
    equal = difference(pairs)
    assert equal.mean == 0 and equal.low < -0.02 < 0.02 < equal.high
    if value:
        assert ratio(pairs).low < 0.98 < 1.02 < ratio(pairs).high
    else:
        assert ratio(pairs).mean is None


def test_opposite_edges_stay_within_bounds():
    pairs = [Pair(i, 0.0, 1.0, 4) for i in range(20)]
    assert difference(pairs).mean == -1
    assert -1 == difference(pairs).low < difference(pairs).high < -0.7
    assert ratio(pairs).low == 0 < ratio(pairs).high < 0.3


@given(PAIRS)
def test_an_interval_holds_its_mean_and_stays_in_range(pairs):
    for found, low, high in (
        (share((p.problem, p.first, p.samples) for p in pairs), 0, 1),
        (difference(pairs), -1, 1),
        (ratio(pairs), 0, math.inf),
    ):
        if found.low is not None and found.mean is not None:
            assert low <= found.low <= found.mean + 1e-12
            assert found.mean - 1e-12 <= found.high <= high
        else:
            assert found.clusters < 2 or found.mean is None


@given(PAIRS)
def test_exchanged_arms_mirror_the_difference(pairs):
    mirrored = [Pair(p.problem, p.second, p.first, p.samples) for p in pairs]
    first, second = difference(pairs), difference(mirrored)
    assert first.mean == pytest.approx(-second.mean)
    if first.low is not None:
        assert first.low == pytest.approx(-second.high)


def test_one_problem_has_no_interval_and_no_prefix_no_figure():
    one = [Pair("a", 0.5, 1.0), Pair("a", 0.0, 1.0)]
    assert (difference(one).low, ratio(one).high, mean_difference(one).low) == (None,) * 3
    assert detectable(one) is None and detectable([]) is None
    for empty in (difference([]), ratio([]), mean_difference([]), share([])):
        assert (empty.count, empty.mean) == (0, None)


def test_the_detectable_difference_is_by_the_standard_error():
    found = difference(spread())
    error = (found.high - found.mean) / quantile([p.first - p.second for p in spread()])
    # The 80 % point of t with 39 degrees of freedom is 0.851.
    assert detectable(spread()) == pytest.approx((2.0227 + 0.851) * error, rel=1e-3)
    assert detectable([Pair(i, 1.0, 1.0) for i in range(9)]) is None


def test_with_few_problems_most_of_which_are_alike_a_difference_is_not_shown():
    def pairs(size, differing):
        return [Pair(f"p{i}", 1.0, float(i >= differing)) for i in range(size)]

    assert hardly_differ(pairs(29, 4)) and not hardly_differ(pairs(29, 5))
    assert not hardly_differ(pairs(30, 0))
    assert hardly_differ(pairs(29, 4) * 3)  # more prefixes of the same problems


def decided(size, lost, samples=1):
    """Half of the problems are always right, and the fault takes the right answer from a few."""
    return [Pair(i, float(i % 2 and i // 2 >= lost), float(i % 2), samples) for i in range(size)]


@pytest.mark.parametrize("samples", [1, 4])
def test_decided_arms_have_the_width_of_the_shares_of_gains_and_losses(samples):
    """With 30 equal problems, the true effect may well be 10 points."""
    equal, t = decided(30, 0, samples), t_quantile(29)
    bound = t * t / (30 + t * t)  # Wilson's upper bound of 0 of 30
    assert difference(equal).high == pytest.approx(bound) == pytest.approx(0.122, abs=1e-3)
    assert difference(equal).low == pytest.approx(-bound)
    assert ratio(equal).low == pytest.approx(1 - 2 * bound)
    assert difference(equal, 0.9).high < bound
    two = difference(decided(60, 2, samples))
    t = t_quantile(59)
    loss, none = wilson(2 / 60, 59, t), t * t / (60 + t * t)  # 59: by the jackknife
    low = -2 / 60 - (loss.high - 2 / 60)  # no problem gains
    high = -2 / 60 + math.sqrt((2 / 60 - loss.low) ** 2 + none**2)
    assert (two.low, two.high) == (pytest.approx(low), pytest.approx(high))
    assert two.low < -0.1 and two.high > 0.02


def test_gains_and_losses_of_decided_arms_are_opposed():
    """A problem that gains does not lose: the interval is wider than of independent shares."""
    pairs = [*decided(60, 2), Pair("a", 1.0, 0.0), Pair("b", 1.0, 0.0)]
    found, t = difference(pairs), t_quantile(61)
    share = wilson(2 / 62, 62, t)
    apart = math.hypot(share.high - 2 / 62, 2 / 62 - share.low)
    assert found.mean == 0 and apart < found.high < 1.05 * apart


def test_arms_that_differ_at_many_problems_or_waver_are_not_by_gains_and_losses():
    for pairs in (decided(60, 6), [Pair(i, 0.5, 0.5 + 0.25 * (i < 3), 4) for i in range(60)]):
        values = [pair.first - pair.second for pair in pairs]
        mean = sum(values) / 60
        error = math.sqrt(sum((v - mean) ** 2 for v in values) / 59 / 60)
        found = difference(pairs)
        assert found.high - found.mean == pytest.approx(quantile(values) * error)


def test_small_differences_at_many_problems_do_not_exclude_a_whole_one_of_decided_arms():
    """The arms differ by one of 16 samples at 12 of 200 problems: a loss of all may still exist."""
    pairs = [Pair(i, float(i % 2), abs(i % 2 - (i < 12) / 16), 16) for i in range(200)]
    found = difference(pairs)
    values = [pair.first - pair.second for pair in pairs]
    error = math.sqrt(sum(v**2 for v in values) / 199 / 200)
    assert abs(found.mean) < 1e-9 and 0.012 < found.high < 0.03
    assert found.high > 5 * quantile(values) * error


def test_many_prefixes_of_a_problem_that_differ_are_not_decided():
    """With one sample, the samples of a prefix agree by themselves; those of a problem do not."""
    draw = random.Random(0)
    sides = [(i, draw.random() < 0.95, draw.random() < 0.95) for i in range(48) for _ in range(30)]
    found = difference([Pair(i, float(a), float(b), 1) for i, a, b in sides])
    assert found.high - found.low < 0.04  # 0.16 by gains and losses


@pytest.mark.parametrize("apart", [0.0, 0.25])
def test_arms_of_one_difference_everywhere_have_a_width(apart):
    found = difference([Pair(i, 0.25 + i % 2 / 2, 0.25 + i % 2 / 2 - apart, 4) for i in range(60)])
    assert found.low < found.mean - 0.03 and found.high > found.mean + 0.03


def test_numbers_hardly_vary_if_few_problems_differ_from_the_most_frequent_number():
    def numbers(size, apart, usual):
        return [Pair(i, usual + (i < apart), 0.0) for i in range(size)]

    for usual in (0.0, 1.0):
        assert hardly_vary(numbers(200, 4, usual)) and not hardly_vary(numbers(200, 5, usual))
        assert hardly_vary(numbers(200, 196, usual))
    assert hardly_vary(numbers(200, 4, 0.0) * 3)  # more prefixes of the same problems
    assert hardly_vary([])


def test_a_mean_of_several_shares_is_by_t_and_near_an_edge_like_a_share():
    middle = [(i, 0.4 + 0.2 * (i % 2), 4) for i in range(40)]
    found = mean_share(middle)
    t = quantile([value for _, value, _ in middle])
    assert found.high - found.mean == pytest.approx(t * 0.1 / math.sqrt(39) * 41 / 40)
    edge = [(i, 1.0 - 0.02 * (i % 2), 4) for i in range(40)]
    assert mean_share(edge) == share(edge)
    assert mean_share([]).mean is None
