"""Losses: pure functions of tensors, with their equations and papers.

They give one value a token, and `token_weights` weighs the tokens of a batch for the mean. Where
the mask is not set (the prompt, the interpreter's text, padding) the value is 0 and no gradient
flows, whatever the inputs hold there.

The logarithm of a ratio of probabilities is clamped to `LOG_RATIO_BOUND`, so that loss and gradient
are finite for all log-probs. Beyond the bound a loss is constant.
"""

from __future__ import annotations

from typing import Literal

import torch

from retool_env.training.correction import LOG_RATIO_BOUND

Mean = Literal["dapo", "grpo", "dr_grpo", "luspo"]
"""The mean that a loss takes over the tokens of a batch, by TRL's names; see `token_weights`."""


def token_weights(
    mask: torch.Tensor, tokens: float, episodes: float, mean: Mean, budget: int
) -> torch.Tensor:
    """The weight of each of an episode's tokens in the loss, which is their weighted sum.

        dapo     1 / tokens                  the mean over the batch's tokens
        grpo     1 / (episodes * length)     the mean over an episode, then over episodes
        dr_grpo  1 / (episodes * budget)     the sum over tokens, by the token budget
        luspo    1 / episodes                the sum over an episode, then the mean over episodes

    All counts are of tokens that the model sampled, and of episodes that have such a token.

    Args:
        mask: Whether the model sampled the token, shape `(B, T)`.
        tokens: The batch's number of sampled tokens, of all processes.
        episodes: The batch's number of episodes with a sampled token, of all processes.
        mean: The name of the mean.
        budget: Token budget of an episode, which only `dr_grpo` uses.

    Returns:
        The weights, shape `(B,)`; 0 for an episode without a sampled token.
    """
    lengths = mask.sum(1).float()
    divisors = {
        "dapo": lengths.new_tensor(tokens),
        "grpo": episodes * lengths,
        "dr_grpo": lengths.new_tensor(episodes * budget),
        "luspo": lengths.new_tensor(episodes),
    }
    return torch.where(lengths > 0, 1.0 / divisors[mean].clamp(min=1), 0.0)


def log_ratio(logps: torch.Tensor, old_logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`logps - old_logps`, clamped to `LOG_RATIO_BOUND` on both sides.

    Args:
        logps: Log-probs of the tokens, shape `(B, T)`.
        old_logps: Log-probs of the same tokens under another policy, shape `(B, T)`.
        mask: Whether the model sampled the token, shape `(B, T)`.

    Returns:
        The logarithm of the ratio, shape `(B, T)`, 0 where the mask is not set.
    """
    difference = (logps - old_logps).masked_fill(~mask, 0.0)
    return difference.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def ppo_policy_loss(
    logps: torch.Tensor,
    old_logps: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped surrogate (arXiv 1707.06347, equation 7) with the dual clip (arXiv 1912.09729).

        r = exp(logps - old_logps)
        L = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
        L = min(L, -c A)   where A < 0

    For a negative advantage the first clip does not bound the loss, which grows with r. The dual
    clip bounds the loss at c times the advantage's size.

    Args:
        logps: The trained model's log-probs of the tokens, shape `(B, T)`.
        old_logps: The log-probs of the policy that sampled the tokens, shape `(B, T)`.
        advantages: The tokens' advantages, shape `(B, T)`.
        mask: Whether the model sampled the token, shape `(B, T)`.
        clip_low: The ratio is clipped below at 1 - clip_low. Separate lower and upper clips are
            DAPO's (arXiv 2503.14476, section 3.1).
        clip_high: The ratio is clipped above at 1 + clip_high.
        dual_clip: c, which is above 1; `None`: no dual clip.

    Returns:
        The loss, and whether a clip removed the token's gradient, both of shape `(B, T)`.
    """
    advantages = advantages.masked_fill(~mask, 0.0)
    ratio = log_ratio(logps, old_logps, mask).exp()
    plain = -ratio * advantages
    clipped = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    loss = torch.maximum(plain, clipped)
    bound = clipped > plain
    if dual_clip is not None:
        most = -dual_clip * advantages
        over = (advantages < 0) & (loss > most)
        loss, bound = torch.where(over, most, loss), bound | over
    return loss, bound


def value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    clip: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The critic's squared error, clipped like the policy loss (arXiv 2005.12729, section 3).

        L = 1/2 max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2)

    Args:
        values: The critic's current values, shape `(B, T)`.
        old_values: The values from which the returns were computed, shape `(B, T)`.
        returns: The critic's targets, shape `(B, T)`.
        mask: Whether the model sampled the token, shape `(B, T)`.
        clip: Largest distance between a value and its old value that counts; `None`: no clip.

    Returns:
        The loss, and whether the clip removed the token's gradient, both of shape `(B, T)`.
    """
    change = (values - old_values).masked_fill(~mask, 0.0)
    error = (old_values - returns).masked_fill(~mask, 0.0)
    plain = (error + change).square()
    if clip is None:
        return 0.5 * plain, torch.zeros_like(mask)
    clipped = (error + change.clamp(-clip, clip)).square()
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


def k3(logps: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """An estimate of the KL divergence from a reference: k3 of Schulman (2020).

        d = reference - logps
        KL(model, reference) = exp(d) - 1 - d

    The estimate is never negative, and it is unbiased if the trained model sampled the tokens. GRPO
    uses it (arXiv 2402.03300, equation 4). Only the upper end of d is clamped: if the reference's
    probability is tiny, the estimate grows as -d and stays finite.

    Args:
        logps: The trained model's log-probs, shape `(B, T)`.
        reference: The reference model's log-probs, shape `(B, T)`.
        mask: Whether the model sampled the token, shape `(B, T)`.

    Returns:
        The estimate, shape `(B, T)`.
    """
    difference = (reference - logps).masked_fill(~mask, 0.0).clamp(max=LOG_RATIO_BOUND)
    return difference.exp() - 1 - difference
