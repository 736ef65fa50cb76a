"""Estimators against all subsets, published values, values by hand, and a simulation."""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.errors import SettingsError
from retool_env.metrics import estimators
from retool_env.metrics.estimators import (
    ClusterMean,
    answer_classes,
    cluster_mean,
    cluster_ratio,
    maj_at_k,
    pass_at_k,
    pass_hat_k,
    t_quantile,
    votes_at_k,
)
from retool_env.metrics.intervals import pooled


def over_subsets(items, k, value) -> float:
    """The mean of a value over all subsets of size k."""
    values = [value(subset) for subset in combinations(items, k)]
    return math.fsum(values) / len(values)


# --- samples of a problem -----------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_and_pass_hat_k_are_means_over_all_subsets(n):
    for c in range(n + 1):
        marks = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            assert pass_at_k(n, c, k) == pytest.approx(over_subsets(marks, k, any))
            assert pass_hat_k(n, c, k) == pytest.approx(over_subsets(marks, k, all))


def test_pass_at_k_by_hand_and_for_many_samples():
    assert pass_at_k(10, 3, 5) == 1 - 21 / 252  # C(7, 5) / C(10, 5)
    assert pass_hat_k(10, 3, 2) == 3 / 45  # C(3, 2) / C(10, 2)
    assert pass_at_k(5000, 1, 2500) == pass_at_k(5000, 2500, 1) == 0.5
    assert 0 < pass_hat_k(5000, 2500, 500) < 0.5**500


@pytest.mark.parametrize(("n", "k"), [(3, 4), (3, 0), (0, 1), (3, -1)])
def test_a_k_beyond_the_samples_is_refused_with_both_numbers(n, k):
    for call in (
        lambda: pass_at_k(n, 0, k),
        lambda: pass_hat_k(n, 0, k),
        lambda: maj_at_k(["7"] * n, [True] * n, k),
        lambda: votes_at_k(n, [n], [True], k),
    ):
        with pytest.raises(SettingsError, match=f"k = {k} and n = {n}"):
            call()


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(SettingsError, match="c = 4 and n = 3"):
        pass_at_k(3, 4, 1)
    with pytest.raises(SettingsError, match="2 answers and 1 marks"):
        maj_at_k(["7", "8"], [True], 1)


# --- majority votes -----------------------------------------------------------------------------


def vote(samples, equal) -> float:
    """The result of one vote, by the definition: of pairs of an answer and whether it is right."""
    classes: list[list[tuple[str, bool]]] = []
    for answer, right in samples:
        if answer is not None:
            home = next((some for some in classes if equal(some[0][0], answer)), None)
            if home is None:
                classes.append([(answer, right)])
            else:
                home.append((answer, right))
    most = max(map(len, classes), default=0)
    winners = [some for some in classes if len(some) == most]
    return sum(some[0][1] for some in winners) / len(winners) if winners else 0.0


def same_letter(a, b) -> bool:
    return a.lower() == b.lower()


@settings(max_examples=150, deadline=None)
@given(
    answers=st.lists(st.sampled_from(["a", "A", "b", "B", "c", "d", None]), min_size=1, max_size=8),
    letters=st.sets(st.sampled_from("abcd")),
)
def test_maj_at_k_is_the_mean_of_the_votes_of_all_subsets(answers, letters):
    right = [answer is not None and answer.lower() in letters for answer in answers]
    samples = list(zip(answers, right, strict=True))
    for k in range(1, len(answers) + 1):
        expected = over_subsets(samples, k, lambda subset: vote(subset, same_letter))
        assert maj_at_k(answers, right, k, same_letter) == pytest.approx(expected)


def test_votes_by_hand():
    assert maj_at_k(["7", "8", "8"], [True, False, False], 3) == 0
    assert maj_at_k(["7", "7", "8"], [True, True, False], 3) == 1
    # Three classes tie, and one of them is right.
    assert maj_at_k(["7", "8", "9"], [True, False, False], 3) == pytest.approx(1 / 3)
    # Of the pairs, {7, 7} wins, and {7, 8}, twice, is a tie.
    assert maj_at_k(["7", "7", "8"], [True, True, False], 2) == pytest.approx((1 + 0.5 + 0.5) / 3)
    # Unanswered samples do not vote, and without an answer there is no right one.
    assert maj_at_k([None, None, "7"], [False, False, True], 3) == 1
    assert maj_at_k([None, None, "7"], [False, False, True], 2) == pytest.approx(2 / 3)
    assert maj_at_k([None, None], [False, False], 1) == 0


def test_answers_are_compared_with_the_first_member_of_a_class_in_their_order():
    asked = []

    def near(a, b):  # no equivalence: 1 is near 2, 2 is near 3, and 1 is not near 3
        asked.append((a, b))
        return abs(int(a) - int(b)) <= 1

    assert answer_classes(["1", "2", None, "3", "1", "4"], near) == [[0, 1, 4], [3, 5]]
    # "1" again is the same text as the first member; "4" is compared with both classes.
    assert asked == [("1", "2"), ("1", "3"), ("1", "4"), ("3", "4")]
    assert answer_classes(["2", "1", "3"], near) == [[0, 1, 2]]
    # A class is right if its first member is.
    assert maj_at_k(["1", "2"], [False, True], 2, near) == 0
    assert maj_at_k(["2", "1"], [True, False], 2, near) == 1


@pytest.mark.parametrize("n", [1000, 1200])
def test_a_vote_of_many_samples(n):
    sizes, right = [n // 2, n // 4], [True, False]
    a, b = sizes
    assert votes_at_k(n, sizes, right, 1) == pytest.approx(a / n)
    both, alone, tie = math.comb(a, 2), a * (n - a - b), a * b
    assert votes_at_k(n, sizes, right, 2) == pytest.approx(
        (both + alone + tie / 2) / math.comb(n, 2)
    )
    assert 0.999 < votes_at_k(n, sizes, right, 200) <= 1


# --- means over clusters ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "bound"),
    [  # of any table of Student's t
        *((1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228)),
        *((29, 2.045), (30, 2.042), (60, 2.000), (120, 1.980), (20_000, 1.960)),
    ],
)
def test_bounds_of_t(degrees, bound):
    assert t_quantile(degrees) == pytest.approx(bound, abs=5e-4)


def test_there_is_no_t_without_a_degree_of_freedom():
    with pytest.raises(SettingsError, match="at least 1, not 0"):
        t_quantile(0)


def test_a_mean_of_single_cases_has_the_interval_of_a_textbook():
    found = cluster_mean([("a", 1), ("b", 2), ("c", 3), ("d", 6)])
    # The variance is (4 + 1 + 0 + 9) / 3.
    half = 3.18244630528 * math.sqrt(14 / 3 / 4)
    assert (found.count, found.clusters, found.mean) == (4, 4, 3)
    assert (found.low, found.high) == (pytest.approx(3 - half), pytest.approx(3 + half))


def test_a_mean_over_clusters_of_several_sizes_by_hand():
    found = cluster_mean([("a", 1), ("b", 5), ("a", 3), ("c", 7)])
    # Sums 4, 5, 7 of 2, 1, 1 cases: the mean is 4, the residuals 4 - 8, 5 - 4 and 7 - 4.
    half = 4.30265272991 * math.sqrt(3 / 2 * (16 + 1 + 9)) / 4
    assert (found.count, found.clusters, found.mean) == (4, 3, 4)
    assert (found.low, found.high) == (pytest.approx(4 - half), pytest.approx(4 + half))


def test_a_ratio_by_hand():
    # 30, 10 and 20 tokens for 2, 0 and 1 right answers: 20 each, residuals -10, 10 and 0.
    found = cluster_ratio([("a", 10, 1), ("a", 20, 1), ("b", 10, 0), ("c", 20, 1)])
    half = 4.30265272991 * math.sqrt(3 / 2 * (100 + 100)) / 3
    assert (found.count, found.clusters, found.mean) == (4, 3, 20)
    assert (found.low, found.high) == (pytest.approx(20 - half), pytest.approx(20 + half))
    assert cluster_ratio([("a", 10, 0), ("b", 10, 0)]) == ClusterMean(2, 2, None, None, None)


def test_one_cluster_has_no_interval_and_no_case_no_mean():
    for share in (False, True):
        assert cluster_mean([], share) == ClusterMean(0, 0, None, None, None)
        found = cluster_mean([("a", 1), ("a", 0)], share)
        assert found == ClusterMean(2, 1, 0.5, None, None)


def test_shares_without_spread_or_near_the_edge_have_the_interval_of_pooled():
    for right in (0, 1, 5, 35, 39, 40):
        cases = [(i, float(i < right)) for i in range(40)]
        found, interval = (
            cluster_mean(cases, share=True),
            pooled((c, int(y), 1) for c, y in cases).interval,
        )
        assert (found.mean, found.low, found.high) == (
            interval.mean,
            interval.low,
            interval.high,
        ), right
    for right in (6, 20, 34):
        cases = [(i, float(i < right)) for i in range(40)]
        assert cluster_mean(cases, share=True) == cluster_mean(cases)
    # Ten of 80 cases are right, but all of one problem: it is worth one case.
    cases = [(i, float(i == 0)) for i in range(8) for _ in range(10)]
    found = cluster_mean(cases, share=True)
    assert found.low == pooled([(i, 10 * (i == 0), 10) for i in range(8)]).interval.low > 0


def test_shares_of_a_problem_need_not_be_0_or_1():
    found = cluster_mean([("a", 0.25), ("b", 0.5), ("c", 0.75)], share=True)
    interval = pooled([("a", 1, 4), ("b", 2, 4), ("c", 3, 4)]).interval
    # By design effect alone both are worth three cases.
    assert found.mean == 0.5 and (found.low, found.high) == (interval.low, interval.high)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_share_beyond_its_range_is_refused(value):
    with pytest.raises(SettingsError, match="from 0 to 1"):
        cluster_mean([("a", value)], share=True)


CASES = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 8).map(lambda eighths: eighths / 8)), max_size=40
)


@given(cases=CASES, data=st.data())
def test_what_holds_of_any_mean(cases, data):
    shuffled = data.draw(st.permutations(cases))
    for share in (False, True):
        found = cluster_mean(cases, share)
        assert found == cluster_mean(shuffled, share)
        assert found.count == len(cases) and found.clusters == len({c for c, _ in cases})
        assert (found.mean is None) == (not cases)
        assert (found.low is None) == (found.high is None) == (found.clusters < 2)
        if found.low is not None:
            assert found.low <= found.mean <= found.high
            if share:
                assert 0 <= found.low < found.high <= 1
    if found.clusters >= 2:
        one, other = cluster_mean(cases), cluster_mean([(c, 3 - 2 * y) for c, y in cases])
        assert other.mean == pytest.approx(3 - 2 * one.mean)
        assert other.low == pytest.approx(3 - 2 * one.high)
        turned = cluster_mean([(c, 1 - y) for c, y in cases], share=True)
        assert turned.low == pytest.approx(1 - found.high, abs=1e-9)


def covered(draw, truth, share, times=200) -> float:
    """How often an interval of drawn cases holds the true mean."""
    hits = 0
    for _ in range(times):
        found = cluster_mean(draw(), share)
        hits += found.low <= truth <= found.high
    return hits / times


def test_intervals_hold_the_true_mean_as_often_as_they_promise():
    rng = random.Random(0)

    def means(clusters):
        """Values around a mean of their problem, which is around 3; problems of 1 to 7 cases."""
        cases = []
        for cluster in range(clusters):
            centre = rng.gauss(3, 1)
            cases += [(cluster, rng.gauss(centre, 1)) for _ in range(rng.randint(1, 7))]
        return cases

    def shares(clusters, p, size):
        """Right and wrong answers; a problem's chance is mostly near 0 or 1."""
        cases = []
        for cluster in range(clusters):
            chance = rng.betavariate(p, 1 - p)
            cases += [(cluster, float(rng.random() < chance)) for _ in range(size)]
        return cases

    # Of 200 intervals 95 %, with two or three standard errors of 1.5 % below.
    assert covered(lambda: means(5), 3, share=False) >= 0.91
    assert covered(lambda: means(15), 3, share=False) >= 0.91
    for p in (0.5, 0.1, 0.03):
        assert covered(lambda p=p: shares(30, p, 4), p, share=True) >= 0.91
    # A t interval alone holds a small share far too rarely.
    hits = 0
    for _ in range(100):
        found = cluster_mean(shares(30, 0.03, 4))
        hits += found.low <= 0.03 <= found.high
    assert hits <= 80


def test_right_classes_of_one_size_are_counted_once(monkeypatch):
    asked = []
    ways = estimators._ways
    monkeypatch.setattr(estimators, "_ways", lambda *each: asked.append(each) or ways(*each))
    assert votes_at_k(200, [1] * 200, [True] * 50 + [False] * 150, 100) == pytest.approx(0.25)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("degrees", "level", "value"), [(1, 0.9, 6.3138), (10, 0.6, 0.8791), (30, 0.99, 2.75)]
)
def test_t_quantiles_of_other_levels_are_the_published_ones(degrees, level, value):
    assert t_quantile(degrees, level) == pytest.approx(value, abs=1e-4)


def test_a_level_outside_of_0_to_1_is_refused():
    with pytest.raises(SettingsError, match="between 0 and 1, not 1"):
        t_quantile(5, 1)
