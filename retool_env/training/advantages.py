"""Group advantages: an episode's reward, compared with the rewards of the same problem's rollouts.

In each function `rewards`, shape `(N,)`, holds the `group` rollouts of a problem side by side. A
failed episode has the reward NaN: it is left out of every mean, and its advantage is 0. In a group
of equal rewards each advantage is exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from retool_env.transcript import Transcript

EPSILON = 1e-4
"""The number that is added to standard deviations, against a division by 0."""

Advantages = Callable[..., torch.Tensor]
"""A hook that computes the advantages of a batch's episodes, of all processes.

The trainer calls `hook(rewards, group)` or, if the hook has a parameter `transcripts`,
`hook(rewards, group, transcripts=transcripts)`:

- `rewards`, shape `(N,)`. An episode that is not trained on has the reward NaN.
- `group`, the number of rollouts of a problem. They stand side by side.
- `transcripts`, the `N` episodes.

The hook returns one advantage an episode, shape `(N,)`, or one a token, shape `(N, T)`. Column `i`
of the second form belongs to the `i`-th token of `Transcript.completion_ids`, whoever wrote that
token, and `T` is the length of the longest completion. The trainer uses 0 in place of the values
at tokens that the model did not sample and behind an episode's end."""

Normalisation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A hook that maps advantages, shape `(N,)`, to other advantages of the same shape.

Its second argument holds the number of trained tokens of each episode, shape `(N,)`."""


def group_centred(rewards: torch.Tensor, group: int) -> torch.Tensor:
    """A_i = r_i - mean(r of the group): Dr. GRPO (arXiv 2503.20783, section 3.2).

    Returns:
        Advantages, shape `(N,)`.
    """
    return _centred(rewards, group).nan_to_num(nan=0.0).view(-1)


def group_normalised(
    rewards: torch.Tensor, group: int, *, bessel: bool = True, epsilon: float = EPSILON
) -> torch.Tensor:
    """A_i = (r_i - mean(r of the group)) / std(r of the group).

    GRPO (arXiv 2402.03300, section 4.1.2).

    Args:
        rewards: The episodes' rewards, shape `(N,)`; see the module.
        group: Rollouts a problem.
        bessel: Whether the variance is divided by the number of rewards less 1 (the sample's
            deviation, as in TRL's `GRPOTrainer`) or by their number (the population's deviation,
            as in TRL's `AsyncGRPOTrainer`).
        epsilon: The number that is added to the deviation: 1e-4 in TRL's `GRPOTrainer`, 1e-8 in
            TRL's `AsyncGRPOTrainer`.

    Returns:
        Advantages, shape `(N,)`.
    """
    grouped = rewards.view(-1, group)
    mean = grouped.nanmean(dim=1, keepdim=True)
    variance = (grouped - mean).square().nanmean(dim=1, keepdim=True)
    if bessel:
        counts = _counts(grouped)
        variance = variance * (counts / (counts - 1))
    return (_centred(rewards, group) / (variance.sqrt() + epsilon)).nan_to_num(nan=0.0).view(-1)


def leave_one_out(rewards: torch.Tensor, group: int) -> torch.Tensor:
    """A_i = r_i - mean(r_j of the group, j != i): RLOO (arXiv 2402.14740, section 3.2.1).

    This equals k / (k - 1) times the distance from the mean of all k rewards. A group of one
    episode has no other reward to compare with: its advantage is 0.

    Returns:
        Advantages, shape `(N,)`.
    """
    counts = _counts(rewards.view(-1, group))
    scale = counts / (counts - 1).clamp(min=1)
    return (_centred(rewards, group) * scale).nan_to_num(nan=0.0).view(-1)


def turns_to_tokens(
    turns: Sequence[Sequence[float]], transcripts: Sequence[Transcript]
) -> torch.Tensor:
    """Repeat the number of each turn at all tokens of the turn.

    Args:
        turns: For each episode one number a turn, that is one for each span that the model wrote.
        transcripts: The `N` episodes.

    Returns:
        One number a token, shape `(N, T)`, in the form that `Advantages` describes; 0 at the
        interpreter's tokens.
    """
    rows = []
    for numbers, transcript in zip(turns, transcripts, strict=True):
        left, row = iter(numbers), list[float]()
        for span in transcript.response:
            number = next(left) if span.author == "model" else 0.0
            row += [number] * len(span.token_ids or ())
        rows.append(torch.tensor(row))
    return pad_sequence(rows, batch_first=True)


def at_own_tokens(advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Fit advantages of tokens to the columns of a batch's completions.

    Args:
        advantages: Advantages of tokens, shape `(B, T)`.
        mask: 1 on tokens that the model sampled and that are trained on, shape `(B, C)`.

    Returns:
        The advantages, shape `(B, C)`; 0 where the mask is 0.
    """
    missing = mask.shape[1] - advantages.shape[1]
    fitted = torch.nn.functional.pad(advantages, (0, missing))  # a negative number cuts
    return fitted.masked_fill(~mask.bool(), 0.0)


def _centred(rewards: torch.Tensor, group: int) -> torch.Tensor:
    """Distances from the group's mean, shape `(N / group, group)`.

    They are exactly 0 in a group of equal rewards, and NaN where the reward is NaN.
    """
    grouped = rewards.view(-1, group)
    low = grouped.nan_to_num(nan=torch.inf).amin(dim=1, keepdim=True)
    high = grouped.nan_to_num(nan=-torch.inf).amax(dim=1, keepdim=True)
    # The mean of equal numbers may differ from them in the last digit.
    mean = torch.where(low == high, low, grouped.nanmean(dim=1, keepdim=True))
    return grouped - mean


def _counts(grouped: torch.Tensor) -> torch.Tensor:
    return (~grouped.isnan()).sum(dim=1, keepdim=True)
