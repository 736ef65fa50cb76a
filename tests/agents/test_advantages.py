"""Advantages, against plain loops over the model's own tokens and against `references.py`."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from helpers import references
from hypothesis import given
from hypothesis import strategies as st

from agents.advantages import EPSILON, batch_normalised, explained_variance, gae, whiten


def plain_gae(values, reward, gamma, lam):
    """One episode's advantages: the sum of the definition, without a recursion."""
    last = len(values) - 1
    deltas = [
        (reward if k == last else 0.0) + (gamma * values[k + 1] if k < last else 0.0) - values[k]
        for k in range(len(values))
    ]
    return [
        sum((gamma * lam) ** i * delta for i, delta in enumerate(deltas[k:]))
        for k in range(len(values))
    ]


def rows(count, length, seed, share=0.6):
    """Values, rewards and a mask; what stands outside the mask is not a number."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, length, generator=generator, dtype=torch.float64)
    mask = torch.rand(count, length, generator=generator) < share
    return (
        values.masked_fill(~mask, math.nan),
        torch.randn(count, generator=generator, dtype=torch.float64),
        mask,
    )


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.95), (0.97, 0.0)])
def test_gae_is_that_of_loops_over_the_models_tokens(gamma, lam):
    values, rewards, mask = rows(6, 17, seed=0)
    mask[5] = False  # a failed episode
    advantages, returns = gae(values, rewards, mask, gamma, lam)
    for i in range(6):
        own = [v.item() for v, m in zip(values[i], mask[i], strict=True) if m]
        expected = plain_gae(own, rewards[i].item(), gamma, lam)
        assert advantages[i][mask[i]].tolist() == pytest.approx(expected, abs=1e-12)
        targets = [a + v for a, v in zip(expected, own, strict=True)]
        assert returns[i][mask[i]].tolist() == pytest.approx(targets, abs=1e-12)
    assert torch.all(advantages[~mask] == 0) and torch.all(returns[~mask] == 0)


episodes = st.lists(st.tuples(st.booleans(), st.floats(-3, 3)), min_size=1, max_size=12)


@given(
    episodes,
    st.lists(st.tuples(st.integers(0, 12), st.floats(-99, 99)), max_size=8),
    st.floats(-1, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_inserted_interpreter_tokens_and_padding_change_nothing(
    episode, inserted, reward, gamma, lam
):
    longer = list(episode)
    for at, value in inserted:
        longer.insert(min(at, len(longer)), (False, value))

    def found(tokens):
        mask = torch.tensor([[own for own, _ in tokens]])
        values = torch.tensor([[value for _, value in tokens]], dtype=torch.float64)
        both = gae(values, torch.tensor([reward], dtype=torch.float64), mask, gamma, lam)
        return [each[mask].tolist() for each in both]

    assert found(longer) == found(episode)


@given(episodes, st.floats(-1, 1))
def test_the_terminal_reward_reaches_every_turn(episode, reward):
    """With gamma = lambda = 1 each return is the reward, even if an interpreter span is last."""
    mask = torch.tensor([[own for own, _ in episode] + [False]])
    values = torch.tensor([[value for _, value in episode] + [7.0]], dtype=torch.float64)
    advantages, returns = gae(values, torch.tensor([reward]), mask, 1.0, 1.0)
    exact = torch.tensor(reward).double()  # the reward's own precision
    torch.testing.assert_close(returns[mask], exact.expand(int(mask.sum())))
    torch.testing.assert_close(advantages[mask], exact - values[mask])


def test_whitening_is_over_the_models_tokens_alone():
    values, _, mask = rows(4, 9, seed=1)
    own = values[mask].tolist()
    mean, std = statistics.fmean(own), statistics.pstdev(own)
    white = whiten(values, mask)
    expected = [(value - mean) / (std + EPSILON) for value in own]
    assert white[mask].tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.all(white[~mask] == 0)

    # A process with a part of it, which sums with another.
    sums = []

    def total(part):
        sums.append(part)
        return part + others.pop(0)

    others = []
    left, right = slice(0, 3), slice(3, 4)
    others[:] = [
        mask[right].sum(),
        values[right].nan_to_num().masked_fill(~mask[right], 0).sum(),
        (values[right] - mean).square()[mask[right]].sum(),
    ]
    torch.testing.assert_close(whiten(values[left], mask[left], total), white[left])
    assert len(sums) == 3


def test_whitening_equal_advantages_leaves_none():
    mask = torch.ones(3, 5, dtype=torch.bool)
    assert whiten(torch.full((3, 5), 0.3), mask).abs().max() < 1e-2
    assert torch.all(whiten(torch.full((3, 5), 0.3), ~mask) == 0)


def test_explained_variance():
    values, _, mask = rows(4, 9, seed=2)
    returns, _, _ = rows(4, 9, seed=3, share=1.0)
    pairs = [(v.item(), r.item()) for v, r in zip(values[mask], returns[mask], strict=True)]
    left = statistics.pvariance([r - v for v, r in pairs])
    expected = 1 - left / statistics.pvariance([r for _, r in pairs])
    assert explained_variance(values, returns, mask) == pytest.approx(expected)
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.zeros_like(returns), returns, mask) == 0.0
    assert explained_variance(values, torch.ones_like(returns), mask) is None


EPISODES = st.tuples(st.sampled_from([1.0, -1.0, -0.6, 0.25]), st.integers(1, 9))


@given(st.lists(EPISODES, min_size=1, max_size=9), st.integers(0, 2))
def test_a_batchs_mean_and_deviation_are_those_of_its_tokens(episodes, absent):
    values, counts = (list(each) for each in zip(*episodes, strict=True))
    [expected] = references.token_normalised([values], [counts])
    # What has no tokens has no advantage, nor a part in that of others.
    given = torch.tensor([*values, *[7.0] * absent]), torch.tensor([*counts, *[0] * absent])
    found = batch_normalised(*given).tolist()
    assert found == pytest.approx([*expected, *[0.0] * absent], rel=1e-4, abs=1e-5)


def test_a_long_episode_counts_more_in_a_batchs_mean_than_a_short_one():
    found = batch_normalised(torch.tensor([1.0, -1.0]), torch.tensor([1, 3]))
    # Mean -0.5, deviation sqrt(0.75).
    assert found.tolist() == pytest.approx([1.5 / 0.75**0.5, -0.5 / 0.75**0.5], rel=1e-3)
    assert (found * torch.tensor([1, 3])).sum().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("value", [-0.6, 0.1, 1.0])
def test_a_batch_of_equal_advantages_has_none_at_all(value):
    found = batch_normalised(torch.full((9,), value), torch.arange(9))
    assert found.tolist() == [0.0] * 9
