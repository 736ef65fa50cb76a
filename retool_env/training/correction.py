"""Importance weights that correct the mismatch between engine and trainer log-probs.

Engine and trainer compute the same probabilities in other ways, and with other weights where batches are sampled ahead. By
default the ratio of policy gradients is the trained model's over the engine's, so that its clip bounds both that difference and
the updates' own. Here the ratio is over the trainer's log-probs before its updates instead; importance weights of the tokens, or
rejection of the episodes that the two disagree on, correct the mismatch.
"""

from __future__ import annotations

from typing import Literal

import torch

Correction = Literal["ratio", "token", "geometric"]

LOG_RATIO_BOUND = 20.0
"""Largest logarithm, in nats, of a ratio of two probabilities in a loss. float32 holds the exponential
of 88.7 nats at most, and the gradient of an infinite ratio is not a number even where a clip takes it."""


def importance_weights(
    old: torch.Tensor,
    sampled: torch.Tensor,
    mask: torch.Tensor,
    kind: Correction,
    cap: float,
    bounds: tuple[float, float],
) -> torch.Tensor:
    """Weights of the tokens in the loss, from their importance ratios exp(old - sampled).

    Args:
        old: The trainer's log-probs before its updates, shape `(B, T)`.
        sampled: The engine's log-probs, shape `(B, T)`.
        mask: 1 on tokens that the model sampled, shape `(B, T)`.
        kind: `"token"`: each token's ratio, truncated at `cap` (Ionides, 2008: truncated importance sampling).
            `"geometric"`: rejection of whole episodes: 1 for all of an episode's tokens if the geometric mean of their ratios (the
            length-normalised ratio of GSPO, arXiv 2507.18071, equation 7) lies within `bounds`, else 0. `"ratio"`: 1.
        cap: The largest weight of a token.
        bounds: The smallest and the largest geometric mean that is kept. The mean over many tokens is near 1.

    Returns:
        Shape `(B, T)`, with 1 where the mask is 0; no gradient goes through it.
    """
    mask = mask.bool()
    if kind == "ratio":
        return torch.ones_like(old)
    difference = (old - sampled).detach().float().masked_fill(~mask, 0.0)
    if kind == "geometric":
        low, high = bounds
        mean = (difference.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).exp()
        weights = ((mean >= low) & (mean <= high)).float().expand_as(difference)
    else:
        weights = difference.exp().clamp(max=cap)
    return weights.masked_fill(~mask, 1.0)


def weight_sums(weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sums over a process, to be summed over processes.

    Args:
        weights: See `importance_weights`, shape `(B, T)`.
        mask: 1 on tokens that the model sampled, shape `(B, T)`.

    Returns:
        The sums of the tokens' weights, of their squares and of ones, and the numbers of episodes of weight 0 and of all
        episodes with such a token: shape `(5,)`.
    """
    mask = mask.bool()
    own = weights[mask].double()
    episodes = mask.any(1)
    rejected = episodes & (weights.masked_fill(~mask, 0.0) == 0).all(1)
    sums = own.sum(), own.square().sum(), own.new_tensor(len(own)), rejected.sum(), episodes.sum()
    return torch.stack([each.float() for each in sums])


def weight_figures(sums: torch.Tensor) -> dict[str, float]:
    """Figures to log, from the sums of `weight_sums`.

    They are the mean weight, the share of the tokens that so weighted ones are worth (Kish's sample size), and the share of the
    episodes that are rejected.
    """
    total, squares, tokens, rejected, episodes = sums.tolist()
    if not tokens:
        return {}
    return {
        "correction/weight": total / tokens,
        "correction/effective_tokens": total**2 / squares / tokens if squares else 0.0,
        "correction/rejected": rejected / episodes,
    }
