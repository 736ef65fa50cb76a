"""Plans: every episode once, under the budget, in equally many passes, evenly over the ranks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.packing import draw_lengths, quality
from retool_env.training import packing
from retool_env.training.balance import plan, slowest

LENGTHS = st.lists(st.integers(0, 120), max_size=60)


@given(LENGTHS, st.integers(1, 8), st.integers(1, 100))
def test_every_episode_is_in_one_pack_and_no_pack_of_several_exceeds_the_budget(
    lengths, ranks, budget
):
    made = plan(lengths, ranks, budget)
    packs = [pack for of_rank in made for pack in of_rank]
    assert len(made) == ranks
    assert len({len(of_rank) for of_rank in made}) == 1  # equally many passes
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in pack) <= budget for pack in packs if len(pack) > 1)


@given(LENGTHS.filter(any), st.integers(1, 8), st.integers(1, 100))
def test_no_pass_could_be_left_out_by_joining_it_with_another(lengths, ranks, budget):
    """First fit leaves at most one pack less than half full, unless an episode is longer."""
    packs = -(-2 * sum(min(n, budget) for n in lengths) // budget) + 1
    longer = sum(n > budget for n in lengths)
    assert len(plan(lengths, ranks, budget)[0]) <= math.ceil((packs + longer) / ranks) + 1


@given(LENGTHS, st.integers(1, 8))
def test_one_pass_is_enough_where_everything_fits(lengths, ranks):
    made = plan(lengths, ranks, max(1, sum(lengths)), lambda tokens: 1.0 + tokens)
    assert len(made[0]) == 1
    # The differencing method leaves a difference of at most the largest cost.
    costs = [sum(1 + lengths[i] for i in of_rank[0]) for of_rank in made]
    assert max(costs) - min(costs) <= 1 + max(lengths, default=0)


def test_the_cost_decides_what_is_even():
    """Attention costs the square of a length: one long episode against several short ones."""
    lengths = [40, 10, 10, 10, 10]
    by_tokens = plan(lengths, 2, 100, lambda tokens: tokens)
    assert sorted(map(sorted, (packs[0] for packs in by_tokens))) == [[0], [1, 2, 3, 4]]
    lengths = [40, 20, 20, 20]
    squares = plan(lengths, 2, 100, lambda tokens: tokens * tokens)
    assert sorted(map(sorted, (packs[0] for packs in squares))) == [[0], [1, 2, 3]]


def test_the_most_expensive_pass_comes_first_so_that_missing_memory_shows_at_once():
    passes = list(zip(*plan([9, 9, 8, 8, 3, 3, 2, 2], 2, 10), strict=True))
    costs = [slowest([packs], [9, 9, 8, 8, 3, 3, 2, 2]) for packs in passes]
    assert costs == sorted(costs, reverse=True)


def test_an_episode_above_the_budget_has_a_pack_of_its_own():
    made = plan([5, 30, 5], 1, 10)
    assert sorted(map(sorted, made[0])) == [[0, 2], [1]]


@pytest.mark.parametrize(("ranks", "budget"), [(0, 10), (2, 0)])
def test_a_plan_without_ranks_or_budget_is_refused(ranks, budget):
    with pytest.raises(ValueError, match=f"ranks={ranks} and budget={budget}"):
        plan([1], ranks, budget)


@pytest.mark.parametrize(("episodes", "seeds", "most"), [(256, 10, 1.05), (1024, 2, 1.02)])
def test_sixteen_ranks_wait_little_on_a_long_tailed_mix(episodes, seeds, most):
    """The benchmark shows 100 seeds."""
    for seed in range(seeds):
        reached = quality(draw_lengths(episodes, seed))
        assert reached.ratio <= most and reached.extra <= 1


def test_packing_has_the_planner_under_its_name():
    assert packing.plan is plan
