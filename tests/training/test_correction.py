"""Importance weights and rejection, number by number."""

from __future__ import annotations

import math

import pytest
import torch

from retool_env.training.correction import importance_weights, weight_figures, weight_sums

BOUNDS = 0.99, 1.01


def weights_of(ratios, mask, kind):
    """Weights of episodes, from the ratios of the trainer's probability to the engine's."""
    apart = torch.tensor(ratios).log()
    mask = torch.tensor(mask)
    return importance_weights(apart - 3.0, torch.full_like(apart, -3.0), mask, kind, 2.0, BOUNDS)


def test_episodes_are_rejected_by_the_geometric_mean_of_their_ratios():
    ratios = [[1.5, 1 / 1.5, 9.0], [1.02, 1.01, 1.0], [0.98, 0.98, 0.98], [1.001, 1.0, 9.0]]
    mask = [[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 0]]
    found = weights_of(ratios, mask, "geometric")
    # The second episode's mean is 1.00998, the third's 0.98.
    assert found.tolist() == [[1.0] * 3, [1.0] * 3, [0.0] * 3, [1.0] * 3]
    figures = weight_figures(weight_sums(found, torch.tensor(mask)))
    assert figures["correction/rejected"] == 0.25
    assert figures["correction/weight"] == pytest.approx(0.7)


def test_tokens_weights_are_truncated_and_no_episode_is_rejected():
    mask = [[1, 1, 0], [1, 1, 1]]
    found = weights_of([[3.0, 0.5, 9.0], [1.0, 1.2, 2.5]], mask, "token")
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.5, 1.0], [1.0, 1.2, 2.0]]))
    assert weight_figures(weight_sums(found, torch.tensor(mask)))["correction/rejected"] == 0.0


@pytest.mark.parametrize("kind", ["token", "geometric"])
@pytest.mark.parametrize("far", [-1e4, 1e4, math.inf])
def test_weights_are_finite_for_all_log_probs(kind, far):
    sampled = torch.tensor([[-far, -1.0], [-1.0, -1.0]])
    old, mask = torch.full((2, 2), -1.0), torch.ones(2, 2)
    found = importance_weights(old, sampled, mask, kind, 2.0, BOUNDS)
    assert torch.isfinite(found).all() and found[1].tolist() == [1.0, 1.0]
    figures = weight_figures(weight_sums(found, mask))
    assert all(map(math.isfinite, figures.values()))


def test_figures_of_a_batch_that_was_rejected_as_a_whole():
    mask = torch.ones(2, 3)
    figures = weight_figures(weight_sums(torch.zeros(2, 3), mask))
    assert figures == {
        "correction/weight": 0.0,
        "correction/effective_tokens": 0.0,
        "correction/rejected": 1.0,
    }
    assert weight_figures(weight_sums(torch.ones(2, 3), torch.zeros(2, 3))) == {}
