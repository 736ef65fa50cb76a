"""Ranks are intervals: only a found difference puts a model above another."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.evaluation.leaderboard.ranks import pair_tests, rank_intervals


def model(mean, problems=20, spread=0.0, seed=0):
    chance = random.Random(seed)
    return {str(n): mean + spread * chance.uniform(-1, 1) for n in range(problems)}


def ranks(*models):
    return rank_intervals(len(models), pair_tests(models))


def test_models_that_differ_have_ranks_of_their_own_and_equal_models_share_them():
    assert ranks(model(0.9), model(0.5), model(0.5), model(0.1)) == [(1, 1), (2, 3), (2, 3), (4, 4)]


def test_a_small_difference_within_the_noise_is_no_difference():
    assert ranks(model(0.50, spread=0.5, seed=1), model(0.52, spread=0.5, seed=2)) == [(1, 2)] * 2


def test_a_model_between_two_others_shares_its_ranks_with_both():
    """The first differs from the last, and neither differs from the model between them."""
    between = {str(n): 0.1 if n % 2 else 0.9 for n in range(12)}
    assert ranks(model(0.62, 12), between, model(0.38, 12)) == [(1, 2), (1, 3), (2, 3)]


def test_with_more_models_a_difference_has_to_be_clearer():
    two = (model(0.62, 12, 0.25, 0), model(0.38, 12, 0.25, 2))
    alone = pair_tests(two)[0]
    among = pair_tests([*two, *(model(0.5, 12, 0.25, seed) for seed in range(3, 15))])[0]
    assert among.p == alone.p and among.adjusted > 10 * alone.adjusted


def test_too_few_common_problems_leave_the_rank_open():
    assert ranks(model(1.0, 5), model(0.0, 5)) == [(1, 2), (1, 2)]
    assert ranks(model(1.0, 6), model(0.0, 6)) == [(1, 1), (2, 2)]
    apart = {f"other {n}": 0.0 for n in range(20)}
    [test] = pair_tests([model(1.0), apart])
    assert (test.problems, test.difference, test.adjusted) == (0, None, None)


@given(st.lists(st.lists(st.sampled_from([0, 0.25, 0.5, 1]), min_size=8, max_size=8), max_size=4))
@settings(max_examples=40)
def test_each_interval_holds_a_rank_that_no_test_denies(rows):
    models = [{str(n): value for n, value in enumerate(row)} for row in rows]
    found = ranks(*models)
    order = sorted(range(len(models)), key=lambda i: -sum(rows[i]))
    assert all(1 <= best <= worst <= len(models) for best, worst in found)
    assert all(found[i][0] <= place <= found[i][1] for place, i in enumerate(order, 1))


def test_equal_models_are_rarely_ranked_apart():
    """In 200 tables of four equal models, about 5 % have any false difference."""
    false = 0
    for seed in range(200):
        found = ranks(*(model(0.5, 15, 0.5, 4 * seed + n) for n in range(4)))
        false += found != [(1, 4)] * 4
    assert false <= 22  # 10 are expected; more than 22 have a chance below 0.0005


@pytest.mark.parametrize("count", [0, 1])
def test_a_table_of_one_model_has_the_rank_1(count):
    assert ranks(*[model(0.5)] * count) == [(1, 1)] * count
