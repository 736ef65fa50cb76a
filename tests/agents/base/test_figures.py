"""Figures of a step are means over tokens, and over the numbers of all processes."""

from __future__ import annotations

import pytest
import torch

from agents.base.figures import Sums, pooled


def test_figures_of_several_processes_are_means_over_all_their_numbers():
    per_process = [
        {"a": [1.0, 2.0, 3.0], "b": [2.0], "c": []},
        {"a": [10.0], "c": [4.0]},
        {"d": []},
    ]
    assert pooled(per_process) == {"a": 4.0, "b": 2.0, "c": 4.0}


def test_a_figures_mean_is_over_the_tokens_of_all_updates_and_processes():
    sums = Sums()
    assert sums.figures(lambda t: t, lambda t: t) == {}
    sums.add(torch.tensor([[1, 1, 0]]), loss=torch.tensor([[1.0, 2.0, 0.0]]))
    sums.add(torch.tensor([[1, 0, 0]]), loss=torch.tensor([[6.0, 0.0, 0.0]]))
    for norm in (1.0, 3.0):
        sums.norm("actor", torch.tensor(norm))
    # A second process has three tokens with a sum of 12.
    other = iter([torch.tensor([12.0]), torch.tensor([3])])
    figures = sums.figures(lambda tensor: tensor + next(other), lambda tensor: tensor)
    assert figures == {"loss": pytest.approx(21 / 6), "grad_norm/actor": 2.0}
