"""Rewards: the overlong punishment, and the bonus beside the environment's reward."""

from __future__ import annotations

import dataclasses

import pytest
from helpers import references
from helpers.tokenised import episode
from hypothesis import given
from hypothesis import strategies as st

from agents.base.settings import SettingsError
from agents.rewards import overlong_bonus, reward_functions, soft_overlong
from retool_env.transcript import StopReason


@given(st.integers(0, 300), st.integers(1, 200), st.floats(0.01, 1.0))
def test_the_punishment_is_the_papers_and_within_its_range(length, budget, share):
    cache = share * budget
    found = soft_overlong(length, budget, cache)
    assert found == pytest.approx(references.overlong(length, budget, cache), abs=1e-9)
    assert -1.0 <= found <= 0.0
    assert soft_overlong(length + 1, budget, cache) <= found


def test_a_share_of_zero_gives_no_bonus():
    assert overlong_bonus(0.0) is None


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(SettingsError, match="overlong must be a share from 0 to 1"):
        overlong_bonus(share)


def test_episodes_that_are_not_trained_on_get_neither_reward_nor_bonus():
    short, long = episode(0, 1.0), episode(1, -1.0, words=30)
    cut = dataclasses.replace(long, stop_reason=StopReason.CANCELLED)
    budget = len(long.completion_ids)
    some = [short, long, cut, episode(2, None, failed=True)]
    [reward, bonus] = reward_functions(overlong_bonus(0.5), budget)
    assert reward(transcript=some) == [1.0, -1.0, None, None]
    assert bonus(transcript=some) == [0.0, -1.0, None, None]
    assert len(short.completion_ids) < 0.5 * budget
    [alone] = reward_functions(None, budget)
    assert alone(transcript=some) == [1.0, -1.0, None, None]
