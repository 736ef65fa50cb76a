"""A batch pads episodes on the right; a part of it drops columns that only hold padding."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from accelerate import Accelerator
from helpers.ppo_batches import row, table

from agents.base.minibatch import Batch
from retool_env.training.exchange import Exchange

ROWS = [row(0, 1.0), row(1, None), row(2, -1.0, ("model", "env"), size=2)]


@pytest.fixture
def batch():
    return Batch.of(table(ROWS))


def test_each_episode_has_its_tokens_mask_and_log_probs_at_their_positions(batch):
    for i, episode in enumerate(ROWS):
        tokens = [*episode["prompt_ids"], *episode["completion_ids"]]
        assert batch.ids[i, : len(tokens)].tolist() == tokens
        assert batch.attention[i].sum() == len(tokens) and batch.attention[i, 0] == 1
        response = slice(len(episode["prompt_ids"]) - 1, len(tokens) - 1)  # index t: token t + 1
        assert batch.mask[i, response].tolist() == list(map(bool, episode["env_mask"]))
        assert batch.mask[i].sum() == sum(episode["env_mask"])
        assert batch.old_logps[i, response].tolist() == pytest.approx(episode["logprobs"])
    assert batch.rewards.tolist() == [1.0, 0.0, -1.0]
    assert Batch.of(table(ROWS), rewards=[0.5, None, 2.0]).rewards.tolist() == [0.5, 0.0, 2.0]


def test_a_part_has_its_episodes_without_the_padding_that_they_share(batch):
    part = batch.take(torch.tensor([2]))
    length = len(ROWS[2]["prompt_ids"]) + len(ROWS[2]["completion_ids"])
    assert length < batch.ids.shape[1]
    assert part.ids.shape == (1, length) and part.mask.shape == (1, length - 1)
    assert torch.equal(part.mask[0], batch.mask[2, : length - 1])
    assert part.numbers.tolist() == [2] and part.advantages is None


def test_parts_hold_every_episode_once(batch):
    passes = batch.parts(2)
    assert [len(part.ids) for part in passes.parts] == [2, 1]
    assert [n for part in passes.parts for n in part.numbers.tolist()] == [0, 1, 2]
    back = passes.back([part.old_logps for part in passes.parts])
    assert torch.equal(back, batch.old_logps)


def test_balanced_passes_hold_every_episode_once_with_all_its_columns(batch):
    lengths = batch.attention.sum(1)
    batch = dataclasses.replace(batch, returns=torch.rand(batch.mask.shape), shares=torch.rand(3))
    passes = batch.balanced(Exchange(Accelerator(cpu=True), lengths, int(lengths.max())))
    assert len(passes.parts) > 1
    for part in passes.parts:
        for at, number in enumerate(part.numbers.tolist()):
            size = int(part.attention[at].sum())
            assert size == lengths[number]
            assert torch.equal(part.ids[at, :size], batch.ids[number, :size])
            assert part.shares[at] == batch.shares[number]
            for name in ("mask", "old_logps", "returns"):
                ours, theirs = getattr(part, name), getattr(batch, name)
                assert torch.equal(ours[at, : size - 1], theirs[number, : size - 1])
    real = batch.attention[:, 1:].bool()
    back = passes.back([part.returns for part in passes.parts])
    assert torch.equal(back, batch.returns.masked_fill(~real, 0.0))
