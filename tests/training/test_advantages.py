"""Advantages number by number, against `references.py`."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import references
from hypothesis import given
from hypothesis import strategies as st

from agents import advantages
from retool_env.training.advantages import at_own_tokens

PAIRS = {
    "dr_grpo": (advantages.group_centred, references.centred),
    "grpo": (advantages.group_normalised, references.normalised),
    "rloo": (advantages.leave_one_out, references.leave_one_out),
}
REWARDS = st.sampled_from([1.0, -1.0, -0.6, 0.25, None])


def ours(function, groups):
    flat = [math.nan if r is None else r for group in groups for r in group]
    return function(torch.tensor(flat, dtype=torch.float32), len(groups[0])).tolist()


def theirs(function, groups):
    """The reference's, 0 in the places of failed episodes."""
    found = iter(
        a for each in function([[r for r in g if r is not None] for g in groups]) for a in each
    )
    return [0.0 if r is None else next(found) for group in groups for r in group]


@pytest.mark.parametrize("name", PAIRS)
@given(
    groups=st.integers(2, 5).flatmap(
        lambda n: st.lists(st.lists(REWARDS, min_size=n, max_size=n), min_size=1, max_size=4)
    )
)
def test_they_are_the_references(name, groups):
    function, reference = PAIRS[name]
    # The deviation of equal numbers is not quite 0 in float64, which a reference divides by.
    assert ours(function, groups) == pytest.approx(theirs(reference, groups), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("reward", [-0.6, 0.1, 1.0])
def test_a_group_of_equal_rewards_has_none_at_all(name, reward):
    """Though the mean of nine times -0.6 is not -0.6 in float32."""
    mixed = [1.0, -1.0, -1.0, 0.5, 1.0, -1.0, 1.0, 1.0, 1.0]
    groups = [[reward] * 9, mixed, [*[reward] * 7, None, None]]
    found = ours(PAIRS[name][0], groups)
    assert found[:9] == found[18:] == [0.0] * 9
    assert all(found[9:18])


@pytest.mark.parametrize("name", PAIRS)
def test_a_failed_episode_is_as_if_absent(name):
    function = PAIRS[name][0]
    whole = [[1.0, -1.0, -1.0], [-1.0, 1.0, 1.0]]
    found = ours(function, [[1.0, None, -1.0, -1.0], [None, -1.0, 1.0, 1.0]])
    assert found[1] == found[4] == 0.0
    assert [a for i, a in enumerate(found) if i not in (1, 4)] == pytest.approx(
        ours(function, whole)
    )


@pytest.mark.parametrize("name", PAIRS)
def test_where_there_is_nothing_to_compare_with_there_is_none(name):
    assert ours(PAIRS[name][0], [[None, 1.0, None], [None] * 3]) == [0.0] * 6


@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=5),
    st.integers(-3, 4),
    st.sampled_from([math.nan, math.inf, -math.inf, 7.0]),
)
def test_an_advantage_of_a_token_reaches_the_models_own_alone(episodes, wider, foreign):
    """However many columns the batch has, and whatever stands at the interpreter's tokens."""
    width = max(map(len, episodes))
    own = [[*each, *[False] * (width - len(each))] for each in episodes]
    numbers = [[10.0 * row + t for t in range(width)] for row in range(len(own))]
    pairs = zip(numbers, own, strict=True)
    values = [[n if o else foreign for n, o in zip(*each, strict=True)] for each in pairs]
    columns = max(1, width + wider)
    mask = torch.zeros(len(own), columns, dtype=torch.long)
    for row, each in enumerate(own):
        for t, sampled in enumerate(each[:columns]):
            mask[row, t] = sampled
    found = at_own_tokens(torch.tensor(values), mask)
    assert found.shape == mask.shape
    for row in range(len(own)):
        for t in range(columns):
            assert found[row, t] == (numbers[row][t] if mask[row, t] else 0.0)


def test_both_of_trls_deviations_are_of_one_function():
    rewards = torch.tensor([1.0, 1.0, -1.0, math.nan], dtype=torch.float64)
    centred = [r - 1 / 3 for r in (1.0, 1.0, -1.0)]
    squares = sum(each**2 for each in centred)
    for more, deviation in (
        ({}, (squares / 2) ** 0.5 + 1e-4),
        ({"bessel": False, "epsilon": 1e-8}, (squares / 3) ** 0.5 + 1e-8),
    ):
        found = advantages.group_normalised(rewards, 4, **more).tolist()
        assert found == pytest.approx([*(each / deviation for each in centred), 0.0], rel=1e-12)
