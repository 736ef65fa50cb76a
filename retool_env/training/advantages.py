"""Group advantages: an episode's reward, compared with those of the same problem's other rollouts.

In each function `rewards`, shape `(N,)`, holds `group` rollouts of a problem side by side. NaN is the reward of
a failed episode; it has no part in any mean, and its advantage is 0. So is, exactly, each advantage in a group of
equal rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from retool_env.transcript import Transcript

EPSILON = 1e-4
"""Added to standard deviations."""

Advantages = Callable[..., torch.Tensor]
"""A hook: the advantages of a batch's episodes, of all processes.

It is called as `hook(rewards, group)` or, where it has a parameter of that name, as `hook(rewards, group,
transcripts=transcripts)`: `rewards`, shape `(N,)`, in which NaN is the reward of an episode that is not trained on;
`group`, the number of rollouts of a problem, which stand side by side; `transcripts`, the `N` episodes.

It returns one number an episode, shape `(N,)`, or one a token, shape `(N, T)`. The second axis of these is the
position in the completion, that of `Transcript.completion_ids`: column 0 is the first token after the prompt,
whoever wrote it, and `T` is the longest completion's length. What stands at tokens that the model did not
sample, or behind an episode's end, is not looked at: there the advantage is 0."""

Normalisation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Advantages, shape `(N,)`, of advantages, shape `(N,)`, and numbers of tokens that are trained on, shape `(N,)`."""


def group_centred(rewards: torch.Tensor, group: int) -> torch.Tensor:
    """A_i = r_i - mean(r of the group): Dr. GRPO (arXiv 2503.20783, section 3.2).

    Returns:
        Advantages, shape `(N,)`.
    """
    return _centred(rewards, group).nan_to_num(nan=0.0).view(-1)


def group_normalised(
    rewards: torch.Tensor, group: int, *, bessel: bool = True, epsilon: float = EPSILON
) -> torch.Tensor:
    """A_i = (r_i - mean(r of the group)) / std(r of the group): GRPO (arXiv 2402.03300, section 4.1.2).

    Args:
        rewards: See above, shape `(N,)`.
        group: Rollouts a problem.
        bessel: Whether the deviation is the sample's, with one less than the number of rewards below, as in
            TRL's `GRPOTrainer`; else it is the population's, as in its `AsyncGRPOTrainer`.
        epsilon: Added to the deviation; 1e-4 in TRL's `GRPOTrainer`, 1e-8 in its `AsyncGRPOTrainer`.

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

    That is k / (k - 1) times the distance from the mean of all k. Who is alone in a group has nothing to compare with: 0.

    Returns:
        Advantages, shape `(N,)`.
    """
    counts = _counts(rewards.view(-1, group))
    scale = counts / (counts - 1).clamp(min=1)
    return (_centred(rewards, group) * scale).nan_to_num(nan=0.0).view(-1)


def turns_to_tokens(
    turns: Sequence[Sequence[float]], transcripts: Sequence[Transcript]
) -> torch.Tensor:
    """One number a turn, at each of the turn's tokens.

    Args:
        turns: The numbers of each episode's turns, one for each span that the model wrote.
        transcripts: The `N` episodes.

    Returns:
        Shape `(N, T)`, as `Advantages` says; 0 at what the interpreter wrote.
    """
    rows = []
    for numbers, transcript in zip(turns, transcripts, strict=True):
        left = iter(numbers)
        row = [
            number
            for span in transcript.response
            for number in [next(left) if span.author == "model" else 0.0]
            * len(span.token_ids or ())
        ]
        rows.append(torch.tensor(row))
    return pad_sequence(rows, batch_first=True)


def at_own_tokens(advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One advantage a token, at the columns of a batch's completions.

    Args:
        advantages: Shape `(B, T)`, of the completions' tokens.
        mask: Whether the model sampled the token, and it is trained on, shape `(B, C)`.

    Returns:
        Shape `(B, C)`, 0 where the mask is not set.
    """
    missing = mask.shape[1] - advantages.shape[1]
    fitted = torch.nn.functional.pad(advantages, (0, missing))  # a negative number cuts
    return fitted.masked_fill(~mask.bool(), 0.0)


def _centred(rewards: torch.Tensor, group: int) -> torch.Tensor:
    """Distances from the group's mean, shape `(N / group, group)`; exactly 0 where all are equal, NaN for NaN."""
    grouped = rewards.view(-1, group)
    low = grouped.nan_to_num(nan=torch.inf).amin(dim=1, keepdim=True)
    high = grouped.nan_to_num(nan=-torch.inf).amax(dim=1, keepdim=True)
    # The mean of equal numbers may differ from them in the last digit.
    mean = torch.where(low == high, low, grouped.nanmean(dim=1, keepdim=True))
    return grouped - mean


def _counts(grouped: torch.Tensor) -> torch.Tensor:
    return (~grouped.isnan()).sum(dim=1, keepdim=True)
