"""Advantages: pure functions of tensors, with their equations and papers.

Advantages that compare the rollouts of a problem lie in `retool_env.training.advantages` and may
also be imported from here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from retool_env.training.advantages import EPSILON as EPSILON
from retool_env.training.advantages import group_centred as group_centred
from retool_env.training.advantages import group_normalised as group_normalised
from retool_env.training.advantages import leave_one_out as leave_one_out
from retool_env.training.advantages import turns_to_tokens as turns_to_tokens


def gae(
    values: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16) over the model's own tokens.

        delta_k = r_k + gamma V_(k+1) - V_k
        A_k     = delta_k + gamma lam A_(k+1)
        R_k     = A_k + V_k

    k counts only tokens that the model sampled: interpreter tokens are not steps, so discount and
    lambda skip them. The reward belongs to the last sampled token, even if interpreter tokens
    follow, and the value after this token is 0, since every end is final.

    Args:
        values: V of the state before each token was sampled, shape `(B, T)`.
        rewards: The episodes' rewards, shape `(B,)`.
        mask: Whether the model sampled the token, shape `(B, T)`.
        gamma: Discount of a token.
        lam: Weight of longer returns. With 1 an advantage is the return less V, with 0 it is
            delta_k.

    Returns:
        Advantages and returns, each of shape `(B, T)`, 0 where the mask is not set.
    """
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    reward = rewards.to(values.dtype)
    value, advantage = torch.zeros_like(reward), torch.zeros_like(reward)
    for t in reversed(range(values.shape[1])):
        sampled, here = mask[:, t], values[:, t]
        now = reward + gamma * value - here + gamma * lam * advantage
        advantage = torch.where(sampled, now, advantage)
        value = torch.where(sampled, here, value)
        reward = reward.masked_fill(sampled, 0.0)
        advantages[:, t] = now.masked_fill(~sampled, 0.0)
        returns[:, t] = (now + here).masked_fill(~sampled, 0.0)
    return advantages, returns


Total = Callable[[torch.Tensor], torch.Tensor]
"""A function that sums a tensor over all processes."""


def whiten(values: torch.Tensor, mask: torch.Tensor, total: Total = lambda x: x) -> torch.Tensor:
    """(A - mean(A)) / std(A), with mean and deviation over the sampled tokens of all processes.

    PPO implementations do this with a batch's advantages (arXiv 2006.05990).

    Args:
        values: Advantages, shape `(B, T)`.
        mask: Whether the model sampled the token, shape `(B, T)`.
        total: Sums a tensor over all processes. By default there is one process.

    Returns:
        The whitened advantages, shape `(B, T)`, 0 where the mask is not set.
    """
    mean, variance = _moments(values, mask, total)
    return ((values - mean) / (variance.sqrt() + EPSILON)).masked_fill(~mask, 0.0)


def explained_variance(
    values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, total: Total = lambda x: x
) -> float | None:
    """1 - Var(R - V) / Var(R): 1 if the critic is right, 0 if it gives all tokens the same value.

    Args:
        values: The critic's values, shape `(B, T)`.
        returns: The returns, shape `(B, T)`.
        mask: Whether the model sampled the token, shape `(B, T)`.
        total: Sums a tensor over all processes. By default there is one process.

    Returns:
        The explained variance; `None` if all returns are the same.
    """
    _, variance = _moments(returns, mask, total)
    _, left = _moments(returns - values, mask, total)
    return (1 - left / variance).item() if variance > EPSILON**2 else None


def _moments(
    values: torch.Tensor, mask: torch.Tensor, total: Total
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the values where the mask is set."""
    count = total(mask.sum()).clamp(min=1)
    mean = total(values.masked_fill(~mask, 0.0).sum()) / count
    return mean, total((values - mean).masked_fill(~mask, 0.0).square().sum()) / count


def batch_normalised(advantages: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(A - mean(A)) / std(A) over the batch's tokens: REINFORCE++ (arXiv 2501.03262, section 3).

    All tokens of an episode have its advantage, so that a long episode counts more in mean and
    deviation than a short episode.

    Args:
        advantages: The episodes' advantages, shape `(N,)`.
        tokens: The episodes' numbers of tokens that are trained on, shape `(N,)`.

    Returns:
        The normalised advantages, shape `(N,)`. They are 0 for an episode without tokens, and
        exactly 0 for all episodes if the advantages of the episodes with tokens are equal.
    """
    trained = tokens > 0
    compared = advantages[trained]
    if not len(compared) or compared.min() == compared.max():
        return torch.zeros_like(advantages)
    share = tokens / tokens.sum()
    mean = (share * advantages).sum()
    std = (share * (advantages - mean).square()).sum().sqrt()
    return ((advantages - mean) / (std + EPSILON)).masked_fill(~trained, 0.0)
