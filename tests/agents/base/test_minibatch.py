"""A batch pads episodes on the right; a part of it drops columns that only hold padding."""

from __future__ import annotations

import pytest
import torch
from helpers.ppo_batches import row, table

from agents.base.minibatch import Batch

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


def test_a_part_has_its_episodes_without_the_padding_that_they_share(batch):
    part = batch.take(torch.tensor([2]))
    length = len(ROWS[2]["prompt_ids"]) + len(ROWS[2]["completion_ids"])
    assert length < batch.ids.shape[1]
    assert part.ids.shape == (1, length) and part.mask.shape == (1, length - 1)
    assert torch.equal(part.mask[0], batch.mask[2, : length - 1])
    assert part.numbers.tolist() == [2] and part.advantages is None


def test_parts_hold_every_episode_once(batch):
    parts = list(batch.parts(2))
    assert [len(part.ids) for part in parts] == [2, 1]
    assert [n for part in parts for n in part.numbers.tolist()] == [0, 1, 2]
