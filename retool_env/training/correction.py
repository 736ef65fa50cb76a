"""Importance weights that correct the mismatch between engine and trainer log-probs.

Engine and trainer compute the same probabilities in different ways. Where batches are sampled
ahead, the engine also uses older weights. By default the policy ratio divides the trained model's
probability by the engine's, so that its clip bounds both the mismatch and the change by the
updates. With a correction the ratio divides by the trainer's probability before the updates; then
importance weights of the tokens, or the rejection of whole episodes, correct the mismatch.
"""

from __future__ import annotations

from typing import Literal

import torch

Correction = Literal["ratio", "token", "geometric"]

LOG_RATIO_BOUND = 20.0
"""Largest logarithm, in nats, of a ratio of two probabilities in a loss.

The exponential of more than 88.7 nats is infinite in float32, and the gradient of an infinite
ratio is NaN even where a clip cuts it off."""


def importance_weights(
    old: torch.Tensor,
    sampled: torch.Tensor,
    mask: torch.Tensor,
    kind: Correction,
    cap: float,
    bounds: tuple[float, float],
) -> torch.Tensor:
    """The weights of tokens in the loss, from the importance ratios exp(old - sampled).

    Args:
        old: The trainer's log-probs before its updates, shape `(B, T)`.
        sampled: The engine's log-probs, shape `(B, T)`.
        mask: 1 on tokens that the model sampled, shape `(B, T)`.
        kind: `"token"` weighs each token by its ratio, truncated at `cap` (truncated importance
            sampling; Ionides, 2008). `"geometric"` rejects whole episodes: all tokens of an episode
            weigh 1 if the geometric mean of their ratios (the length-normalised ratio of GSPO,
            arXiv 2507.18071, equation 7) lies within `bounds`, else 0. `"ratio"` gives weight 1.
        cap: The largest weight of a token.
        bounds: The smallest and the largest geometric mean of an episode that is kept. The mean
            over many tokens is near 1.

    Returns:
        Weights, shape `(B, T)`, 1 where the mask is 0. No gradient flows through them.
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
    """One process's sums of weights. The sums of all processes add up.

    Args:
        weights: The weights of `importance_weights`, shape `(B, T)`.
        mask: 1 on tokens that the model sampled, shape `(B, T)`.

    Returns:
        Shape `(5,)`: the sum of the sampled tokens' weights, the sum of their squares, the number
        of these tokens, the number of rejected episodes (all their weights are 0), and the number
        of all episodes with a sampled token.
    """
    mask = mask.bool()
    of_tokens = weights[mask].double()
    episodes = mask.any(1)
    rejected = episodes & (weights.masked_fill(~mask, 0.0) == 0).all(1)
    count = of_tokens.new_tensor(len(of_tokens))
    sums = of_tokens.sum(), of_tokens.square().sum(), count, rejected.sum(), episodes.sum()
    return torch.stack([number.float() for number in sums])


def weight_figures(sums: torch.Tensor) -> dict[str, float]:
    """Figures to log, from the sums of `weight_sums`.

    Args:
        sums: The sums over all processes, shape `(5,)`.

    Returns:
        `correction/weight`, the mean weight; `correction/effective_tokens`, the effective sample
        size (Kish) as a share of the tokens; `correction/rejected`, the share of rejected episodes.
        Empty if the model sampled no token.
    """
    total, squares, tokens, rejected, episodes = sums.tolist()
    if not tokens:
        return {}
    return {
        "correction/weight": total / tokens,
        "correction/effective_tokens": total**2 / squares / tokens if squares else 0.0,
        "correction/rejected": rejected / episodes,
    }
