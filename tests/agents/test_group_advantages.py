"""Advantages number by number, against `references.py`."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import references
from hypothesis import given
from hypothesis import strategies as st

from agents import advantages, dapo, grpo, reinforce_pp
from agents.base.settings import SettingsError
from agents.dapo import soft_overlong
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


@pytest.mark.parametrize(
    ("length", "punishment"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (130, -1.0)],
)
def test_the_soft_overlong_punishment(length, punishment):
    assert soft_overlong(length, 100, 20) == pytest.approx(punishment)
    assert references.overlong(length, 100, 20) == pytest.approx(punishment)


@pytest.fixture
def handed(monkeypatch):
    """The arguments that an algorithm passes to GRPO's training."""
    given = {}
    monkeypatch.setattr(grpo, "train", lambda *_, **more: given.update(more))
    return given


EPISODES = st.tuples(st.sampled_from([1.0, -1.0, -0.6, 0.25]), st.integers(1, 9))


@given(st.lists(EPISODES, min_size=1, max_size=9), st.integers(0, 2))
def test_a_batchs_mean_and_deviation_are_those_of_its_tokens(episodes, absent):
    values, counts = (list(each) for each in zip(*episodes, strict=True))
    [expected] = references.token_normalised([values], [counts])
    # What has no tokens has no advantage, nor a part in that of others.
    given = torch.tensor([*values, *[7.0] * absent]), torch.tensor([*counts, *[0] * absent])
    found = advantages.batch_normalised(*given).tolist()
    assert found == pytest.approx([*expected, *[0.0] * absent], rel=1e-4, abs=1e-5)


def test_a_long_episode_counts_more_in_a_batchs_mean_than_a_short_one():
    found = advantages.batch_normalised(torch.tensor([1.0, -1.0]), torch.tensor([1, 3]))
    # Mean -0.5, deviation sqrt(0.75).
    assert found.tolist() == pytest.approx([1.5 / 0.75**0.5, -0.5 / 0.75**0.5], rel=1e-3)
    assert (found * torch.tensor([1, 3])).sum().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("value", [-0.6, 0.1, 1.0])
def test_a_batch_of_equal_advantages_has_none_at_all(value):
    found = advantages.batch_normalised(torch.full((9,), value), torch.arange(9))
    assert found.tolist() == [0.0] * 9


@pytest.mark.parametrize("baseline", [True, False])
def test_reinforce_pp_trains_with_the_baseline_that_is_set(handed, baseline):
    reinforce_pp.train(reinforce_pp.Settings(group_baseline=baseline), None)
    groups = [[1.0, 1.0, -1.0], [1.0, None, 0.5]]
    found = ours(handed["advantages"], groups)
    plain = [1.0, 1.0, -1.0, 1.0, 0.0, 0.5]
    assert found == pytest.approx(theirs(references.centred, groups) if baseline else plain)
    assert handed["normalise"] is advantages.batch_normalised


@pytest.mark.parametrize("overlong", [0.1, 1.0])
def test_dapo_punishes_in_the_last_share_of_the_budget(handed, overlong):
    dapo.train(dapo.Settings(overlong=overlong), None)
    for length in (0, 45, 90, 95, 100, 120):
        expected = references.overlong(length, 100, 100 * overlong)
        transcript = SimpleNamespace(completion_ids=[1] * length)
        assert handed["bonus"](transcript, 100) == pytest.approx(expected)


def test_dapo_without_the_punishment_adds_nothing(handed):
    dapo.train(dapo.Settings(overlong=0.0), None)
    assert handed["bonus"] is None


@pytest.mark.parametrize("overlong", [-0.1, 1.1])
def test_dapo_refuses_what_is_no_share(overlong):
    with pytest.raises(SettingsError, match="from 0 to 1"):
        dapo.train(dapo.Settings(overlong=overlong), None)
