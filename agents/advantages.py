"""Advantages: pure functions of tensors, each with its equation and its paper.

Those that compare the rollouts of a problem lie in `retool_env.training.advantages`, and may be used from here.
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

    k counts the tokens that the model sampled: what the interpreter wrote in between is no step, so that neither discount nor
    lambda counts it. The episode's reward comes with the last of them, whatever follows it, and nothing after it has a value:
    every end is final.

    Args:
        values: V of the state before each token was sampled, shape `(B, T)`.
        rewards: The episodes' rewards, shape `(B,)`.
        mask: Whether the model sampled the token, shape `(B, T)`.
        gamma: Discount of a token.
        lam: Weight of the longer returns: 1 gives what came of it less V, 0 one token's difference.

    Returns:
        Advantages and returns, each of shape `(B, T)`, 0 where the mask is not set.
    """
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    reward = rewards.to(values.dtype)
    value, advantage = torch.zeros_like(reward), torch.zeros_like(reward)
    for t in reversed(range(values.shape[1])):
        own, here = mask[:, t], values[:, t]
        now = reward + gamma * value - here + gamma * lam * advantage
        advantage = torch.where(own, now, advantage)
        value = torch.where(own, here, value)
        reward = reward.masked_fill(own, 0.0)
        advantages[:, t] = now.masked_fill(~own, 0.0)
        returns[:, t] = (now + here).masked_fill(~own, 0.0)
    return advantages, returns


Total = Callable[[torch.Tensor], torch.Tensor]
"""The sum of a tensor over all processes."""


def whiten(
    values: torch.Tensor, mask: torch.Tensor, total: Total = lambda own: own
) -> torch.Tensor:
    """(A - mean(A)) / std(A), the mean and the deviation being those of the model's tokens on all processes.

    As PPO's implementations do with a batch's advantages (arXiv 2006.05990).

    Args:
        values: Shape `(B, T)`.
        mask: Whether the model sampled the token, shape `(B, T)`.
        total: Sums over all processes.

    Returns:
        Shape `(B, T)`, 0 where the mask is not set.
    """
    mean, variance = _moments(values, mask, total)
    return ((values - mean) / (variance.sqrt() + EPSILON)).masked_fill(~mask, 0.0)


def explained_variance(
    values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, total: Total = lambda own: own
) -> float | None:
    """1 - Var(R - V) / Var(R): 1 for a critic that is right, 0 for one that says the same of all.

    Args:
        values: The critic's, shape `(B, T)`.
        returns: What came of it, shape `(B, T)`.
        mask: Whether the model sampled the token, shape `(B, T)`.
        total: Sums over all processes.

    Returns:
        `None` where all returns are the same.
    """
    _, variance = _moments(returns, mask, total)
    _, left = _moments(returns - values, mask, total)
    return (1 - left / variance).item() if variance > EPSILON**2 else None


def _moments(
    values: torch.Tensor, mask: torch.Tensor, total: Total
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of what the mask leaves."""
    count = total(mask.sum()).clamp(min=1)
    mean = total(values.masked_fill(~mask, 0.0).sum()) / count
    return mean, total((values - mean).masked_fill(~mask, 0.0).square().sum()) / count


def batch_normalised(advantages: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(A - mean(A)) / std(A), over the tokens of the batch: REINFORCE++ (arXiv 2501.03262, section 3).

    An advantage is that of each of its episode's tokens, so that a long episode counts more in mean and deviation than a short one.

    Args:
        advantages: One an episode, shape `(N,)`.
        tokens: Number of tokens that the model sampled and that are trained on, shape `(N,)`.

    Returns:
        Shape `(N,)`; 0 for an episode without tokens, and exactly 0 for all where those with tokens are equal.
    """
    trained = tokens > 0
    own = advantages[trained]
    if not len(own) or own.min() == own.max():
        return torch.zeros_like(advantages)
    share = tokens / tokens.sum()
    mean = (share * advantages).sum()
    std = (share * (advantages - mean).square()).sum().sqrt()
    return ((advantages - mean) / (std + EPSILON)).masked_fill(~trained, 0.0)
