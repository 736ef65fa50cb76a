"""Dr. GRPO: advantages without the group's deviation, and a loss by the budget."""

from __future__ import annotations

import pytest
import torch

from agents import dr_grpo


def test_advantages_are_not_divided_by_the_groups_deviation(handed):
    dr_grpo.train(dr_grpo.Settings(), None)
    rewards = torch.tensor([1.0, -1.0, -1.0, -1.0, 0.3, 0.1, 0.1, 0.1])
    assert handed["advantages"](rewards, 4).tolist() == pytest.approx(
        [1.5, -0.5, -0.5, -0.5, 0.15, -0.05, -0.05, -0.05]
    )
    assert handed["settings"].loss == "dr_grpo"
