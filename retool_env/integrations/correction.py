"""Correction of what the engine's log-probs differ from the trainer's own, where they are not taken for the old ones.

Engine and trainer compute the same probabilities in other ways, and with other weights where batches are sampled ahead. By
default the ratio of policy gradients is the trained model's over the engine's, so that its clip bounds both that difference and
the updates' own. Here the ratio is over the trainer's log-probs before its updates instead, and what is left weighs the loss.
"""

from __future__ import annotations

from typing import Literal

import torch

Correction = Literal["ratio", "token", "geometric"]

LOG_RATIO_BOUND = 20.0
"""Largest logarithm, in nats, of a ratio of two probabilities in a loss. float32 holds the exponential
of 88.7 nats at most, and the gradient of an infinite ratio is not a number even where a clip takes it."""


def importance_weights(
    old: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor, kind: Correction, cap: float
) -> torch.Tensor:
    """Truncated importance weights, min(w, cap) (Ionides, 2008: truncated importance sampling).

    Args:
        old: The trainer's log-probs before its updates, shape `(B, T)`.
        sampled: The engine's, likewise.
        mask: 1 on tokens that the model sampled.
        kind: `"token"`: w = exp(old - sampled), each token's. `"geometric"`: an episode's geometric mean of these (the length
            normalised ratio of GSPO, arXiv 2507.18071, equation 7), for all of its tokens. `"ratio"`: 1.
        cap: The largest weight.

    Returns:
        Shape `(B, T)`, with 1 where the mask is 0; no gradient goes through it.
    """
    mask = mask.bool()
    if kind == "ratio":
        return torch.ones_like(old)
    difference = (old - sampled).detach().float().masked_fill(~mask, 0.0)
    if kind == "geometric":
        mean = difference.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        difference = mean.expand_as(difference)
    return difference.exp().clamp(max=cap).masked_fill(~mask, 1.0)


def weight_sums(weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sums over the tokens of a process, to be summed over processes: of weights, of their squares, and of ones."""
    own = weights[mask.bool()].double()
    return torch.stack([own.sum(), own.square().sum(), own.new_tensor(len(own))]).float()


def weight_figures(sums: torch.Tensor) -> dict[str, float]:
    """Figures to log: the mean weight, and the share of the tokens that so weighted ones are worth (Kish's sample size)."""
    total, squares, tokens = sums.tolist()
    if not tokens:
        return {}
    return {
        "correction/weight": total / tokens,
        "correction/effective_tokens": total**2 / squares / tokens,
    }
