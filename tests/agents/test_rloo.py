"""RLOO: the baseline of the group's other rewards, and a loss summed over a response."""

from __future__ import annotations

import pytest
import torch

from agents import rloo


def test_a_reward_is_compared_with_the_others_of_its_group(handed):
    rloo.train(rloo.Settings(), None)
    advantages = handed["advantages"](torch.tensor([1.0, 0.0, 0.5]), 3)
    assert advantages.tolist() == pytest.approx([0.75, -0.75, 0.0])
    assert handed["settings"].loss == "luspo"
