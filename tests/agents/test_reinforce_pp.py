"""REINFORCE++: the baseline, and the normalisation over the batch's tokens."""

from __future__ import annotations

import math

import pytest
import torch

from agents import advantages, reinforce_pp


@pytest.mark.parametrize("baseline", [True, False])
def test_reinforce_pp_trains_with_the_baseline_that_is_set(handed, baseline):
    reinforce_pp.train(reinforce_pp.Settings(group_baseline=baseline), None)
    rewards = torch.tensor([1.0, 1.0, -1.0, 1.0, math.nan, 0.5])
    plain = [1.0, 1.0, -1.0, 1.0, 0.0, 0.5]
    centred = [2 / 3, 2 / 3, -4 / 3, 0.25, 0.0, -0.25]
    values = handed["advantages"](rewards, 3).tolist()
    assert values == pytest.approx(centred if baseline else plain)
    assert handed["normalise"] is advantages.batch_normalised
