"""Intervals: published values, values worked out by hand, and properties of all intervals."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.metrics.intervals import Estimate, Interval, pooled, wilson


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_against_known_values(right, count, low, high):
    interval = wilson(right / count, count)
    assert interval.mean == right / count
    assert (interval.low, interval.high) == (
        pytest.approx(low, abs=5e-5),
        pytest.approx(high, abs=5e-5),
    )


@given(count=st.integers(1, 300), data=st.data())
def test_wilson_holds_its_mean_and_solves_its_equation(count, data):
    right = data.draw(st.integers(0, count))
    interval = wilson(right / count, count)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    # By definition, the distance of a bound p from the mean is z standard errors at p.
    for p in (interval.low, interval.high):
        assert (p - interval.mean) ** 2 == pytest.approx(1.96**2 * p * (1 - p) / count, abs=1e-9)
    wider = wilson(right / count, count, z=2.58)
    assert wider.low <= interval.low and interval.high <= wider.high


def test_no_interval_without_a_case():
    with pytest.raises(ValueError, match="at least one case"):
        wilson(0.0, 0)
    assert pooled([]) == pooled([("a", 0, 0)]) == Estimate(0, None)


def test_an_interval_reads_as_percentages():
    assert str(Interval(float(Fraction(1, 4)), 0.05, 1.0)) == "25.0 % [5.0, 100.0]"


# --- shares of cases in clusters ----------------------------------------------------------------


def test_single_cases_count_once_each():
    assert pooled([(i, int(i < 7), 1) for i in range(20)]) == Estimate(20, wilson(7 / 20, 20))


def test_clusters_of_one_size_count_once_each():
    # 3, 1, 2 and 0 successes of 3 cases each: 6 of 12. If the cases of a cluster were equal, there
    # would be 144 / 36 = 4 effective cases.
    assert pooled([("a", 3, 3), ("b", 1, 3), ("c", 2, 3), ("d", 0, 3)]) == Estimate(
        12, wilson(0.5, 4)
    )
    # All cases of a single problem count as one effective case.
    assert pooled([("a", 1, 1)] * 30) == Estimate(30, wilson(1.0, 1))


def test_a_large_cluster_that_is_unlike_the_others_weighs_more():
    # 100 clusters with one failure each, and a cluster with 10 successes: a share of 10 of 110.
    # Equal cases in a cluster would give 12100 / 200 = 60.5 effective cases. But the variance of
    # the share is ((10 - 10/11)^2 + 100 (1/11)^2) / 110^2. This gives
    # 110^2 (1/11) (10/11) / (10100/121) = 1210 / 101 effective cases.
    cases = [("big", 10, 10), *((i, 0, 1) for i in range(100))]
    share = pooled(cases)
    expected = wilson(1 / 11, 1210 / 101)
    assert share.count == 110 and share.interval.mean == pytest.approx(1 / 11)
    assert share.interval.low == pytest.approx(expected.low)
    assert share.interval.high == pytest.approx(expected.high)


CASES = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 4)).map(
        lambda c: (c[0], min(c[1:]), max(c[1:]))
    ),
    max_size=30,
)


@given(cases=CASES, data=st.data())
def test_properties_of_any_pooled_share(cases, data):
    share = pooled(cases)
    assert share == pooled(data.draw(st.permutations(cases)))
    assert share.count == sum(n for _, _, n in cases)
    wide = share.interval
    if wide is None:
        assert share.count == 0
        return
    assert 0 <= wide.low <= wide.mean <= wide.high <= 1
    # The interval is never narrower than the interval of independent cases. Twice as many problems
    # give the same share with a narrower interval.
    independent = wilson(wide.mean, share.count)
    doubled = pooled([*cases, *((c + 10, s, n) for c, s, n in cases)]).interval
    for narrow in (independent, doubled):
        assert wide.mean == narrow.mean
        assert wide.low <= narrow.low + 1e-12 and narrow.high <= wide.high + 1e-12
    assert doubled.high - doubled.low < wide.high - wide.low


def test_a_figure_on_few_cases_has_a_mark():
    interval = Interval(0.25, 0.125, 0.5)
    assert Estimate(0, None).shown() == "–"
    assert Estimate(49, interval).shown() == f"{Estimate(50, interval).shown()[:-2]}49 †"
    assert Estimate(50, interval).shown() == "25.0 % [12.5, 50.0], n = 50"
    assert Estimate(50, interval).shown(lambda i: f"{i.mean:.1f}") == "0.2, n = 50"
