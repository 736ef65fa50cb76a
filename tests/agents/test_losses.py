"""Losses against plain arithmetic in float64, and their gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.losses import k3, log_ratio, ppo_policy_loss, token_weights, value_loss

LOW, HIGH, DUAL = 0.2, 0.28, 3.0
CLIP = 0.5
SHAPE = 5, 40


def tensors(seed, *scales):
    generator = torch.Generator().manual_seed(seed)
    return [
        scale * torch.randn(*SHAPE, generator=generator, dtype=torch.float64) for scale in scales
    ]


def some(seed):
    return torch.rand(*SHAPE, generator=torch.Generator().manual_seed(seed)) < 0.7


def plain_policy(logp, old, advantage, dual):
    ratio = math.exp(logp - old)
    objective = min(ratio * advantage, min(max(ratio, 1 - LOW), 1 + HIGH) * advantage)
    if dual is not None and advantage < 0:
        objective = max(objective, dual * advantage)
    return -objective


def plain_value(value, old, target, clip):
    near = value if clip is None else old + min(max(value - old, -clip), clip)
    return 0.5 * max((value - target) ** 2, (near - target) ** 2)


def plain_k3(logp, reference):
    ratio = math.exp(reference) / math.exp(logp)
    return ratio - 1 - math.log(ratio)


POLICY = [
    (lambda x, old, a, m: ppo_policy_loss(x, old, a, m, LOW, HIGH, DUAL)[0], DUAL),
    (lambda x, old, a, m: ppo_policy_loss(x, old, a, m, LOW, HIGH)[0], None),
]
VALUE = [
    (lambda x, old, t, m: value_loss(x, old, t, m, CLIP)[0], CLIP),
    (lambda x, old, t, m: value_loss(x, old, t, m)[0], None),
]
CASES = (
    [(loss, (0.8, 0.8, 1.0), lambda x, o, a, c=c: plain_policy(x, o, a, c)) for loss, c in POLICY]
    + [(loss, (0.8, 0.8, 1.0), lambda x, o, a, c=c: plain_value(x, o, a, c)) for loss, c in VALUE]
    + [(lambda x, r, _, m: k3(x, r, m), (0.8, 0.8, 1.0), lambda x, r, _: plain_k3(x, r))]
)
IDS = ["policy, dual clip", "policy", "value, clipped", "value", "k3"]


@pytest.mark.parametrize(("loss", "scales", "plain"), CASES, ids=IDS)
def test_numbers_are_those_of_plain_arithmetic(loss, scales, plain):
    arguments, mask = tensors(0, *scales), some(1)
    found = loss(*arguments, mask)
    for index in range(found.numel()):
        numbers = [each.flatten()[index].item() for each in arguments]
        expected = plain(*numbers) if mask.flatten()[index] else 0.0
        assert found.flatten()[index].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("loss", "scales", "plain"), CASES, ids=IDS)
def test_gradients_are_those_of_finite_differences(loss, scales, plain):
    (x, *others), mask = tensors(2, *scales), some(3)
    x.requires_grad_()
    loss(x, *others, mask).sum().backward()
    step = 1e-6
    for index in range(x.numel()):
        at, *rest = (each.flatten()[index].item() for each in (x, *others))
        expected = (plain(at + step, *rest) - plain(at - step, *rest)) / (2 * step)
        expected = expected if mask.flatten()[index] else 0.0
        assert x.grad.flatten()[index].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e30])
@pytest.mark.parametrize(("loss", "scales", "plain"), CASES, ids=IDS)
def test_nothing_outside_the_mask_reaches_loss_or_gradient(loss, scales, plain, junk):
    (x, *others), mask = tensors(4, *scales), some(5)

    def run(*arguments):
        first = arguments[0].clone().requires_grad_()
        total = loss(first, *arguments[1:], mask).sum()
        total.backward()
        return total, first.grad

    clean = run(x, *others)
    dirty = run(*(each.masked_fill(~mask, junk) for each in (x, *others)))
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])
    assert torch.all(clean[1][~mask] == 0)


LOG_PROBS = [case for case, name in zip(CASES, IDS, strict=True) if "value" not in name]


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("logp", [0.0, -19.0, -21.0, -88.8, -94.0, -1e4])
@pytest.mark.parametrize("other", [0.0, -94.0, -1e4])
@pytest.mark.parametrize("case", LOG_PROBS, ids=[name for name in IDS if "value" not in name])
def test_extreme_log_probs_give_a_finite_loss_and_gradient(case, other, logp, advantage):
    loss, _, plain = case
    x = torch.tensor([[logp]], requires_grad=True)
    found = loss(x, torch.tensor([[other]]), torch.tensor([[advantage]]), torch.tensor([[True]]))
    found.sum().backward()
    apart, is_kl = logp - other, loss is LOG_PROBS[-1][0]
    # What is beyond the bound counts as what is at it.
    apart = max(apart, -20.0) if is_kl else min(max(apart, -20.0), 20.0)
    expected = math.exp(-apart) - 1 + apart if is_kl else plain(apart, 0.0, advantage)
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert torch.isfinite(x.grad).all()
    if abs(logp - other) > 20 and not (is_kl and logp > other):
        assert x.grad.item() == 0.0


def test_a_log_ratio_is_clamped_to_twenty_nats_and_0_outside_the_mask():
    logps, old = torch.tensor([[0.0, -1.0, -50.0, 0.0]]), torch.tensor([[-50.0, -2.5, 0.0, -9.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert log_ratio(logps, old, mask).tolist() == [[20.0, 1.5, -20.0, 0.0]]


def test_flags_say_where_a_clip_took_the_gradient():
    (x, old, advantages), mask = tensors(6, 1.2, 0.8, 1.0), some(7)
    x.requires_grad_()
    loss, clipped = ppo_policy_loss(x, old, advantages, mask, LOW, HIGH, DUAL)
    loss.sum().backward()
    assert torch.equal(clipped, (x.grad == 0) & mask)
    # Each of the three clips is met.
    ratio = (x - old).exp().detach()
    assert (clipped & (ratio > 1 + HIGH) & (advantages > 0)).any()
    assert (clipped & (ratio < 1 - LOW) & (advantages < 0)).any()
    assert (clipped & (ratio > DUAL) & (advantages < 0)).any()
    assert not (clipped & (advantages > 0) & (ratio < 1)).any()

    values = x.detach().requires_grad_()
    loss, clipped = value_loss(values, old, advantages, mask, CLIP)
    loss.sum().backward()
    assert torch.equal(clipped, (values.grad == 0) & mask) and clipped.any()


@pytest.mark.parametrize("mean", ["dapo", "grpo", "dr_grpo", "luspo"])
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_the_weighted_sum_is_the_mean_of_its_name(mean, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randn(len(lengths), 12, generator=generator, dtype=torch.float64)
    mask = torch.arange(12)[None] < torch.tensor(lengths)[:, None]
    mask = mask[:, torch.randperm(12, generator=generator)]  # interpreter tokens lie between
    sums = [losses[i][mask[i]].sum().item() for i, length in enumerate(lengths) if length]
    counts = [length for length in lengths if length]
    tokens, episodes = sum(counts), len(counts)
    expected = {
        "dapo": sum(sums) / max(tokens, 1),
        "grpo": sum(s / n for s, n in zip(sums, counts, strict=True)) / max(episodes, 1),
        "dr_grpo": sum(sums) / (max(episodes, 1) * 20),
        "luspo": sum(sums) / max(episodes, 1),
    }
    weights = token_weights(mask, tokens, episodes, mean, 20)
    assert weights.shape == (len(lengths),) and torch.isfinite(weights).all()
    assert all((weights[i] == 0) == (length == 0) for i, length in enumerate(lengths))
    found = (losses.masked_fill(~mask, 0.0).sum(1) * weights).sum().item()
    assert found == pytest.approx(expected[mean], rel=1e-5, abs=1e-7)
