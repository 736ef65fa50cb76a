"""Step: what rollouts need to know of a trainer, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator


def _none_is_coming(number: int) -> Sequence[str] | None:
    return None


@dataclass(frozen=True)
class Step:
    """One batch of episodes that a trainer asks for, on one process, and the trainer as it is then."""

    number: int
    """Optimizer steps that the trainer has made: the version of its weights."""
    batch: int
    """Number of the batch, counted from the run's beginning; its seeds are made of it."""
    prompts: Sequence[str]
    """Ids of this process's problems, each as often as it has rollouts, side by side."""
    group: int
    """Rollouts a problem."""
    model: torch.nn.Module
    """The model that is trained."""
    accelerator: Accelerator
    """What the processes of the run talk through."""
    temperature: float
    """The temperature that the loss assumes the episodes to be sampled at."""
    eos_token_ids: Sequence[int]
    """Every token that ends a sequence; the first is the one that rows are ended with."""
    log: Callable[[str, float], None]
    """Takes a figure's name and its value."""
    training: bool = True
    """Whether the batch is trained on. In evaluation nothing is recorded or logged."""
    coming: Callable[[int], Sequence[str] | None] = _none_is_coming
    """The prompts of a later batch, by its number, in the form of `prompts`; `None`: the trainer will not ask
    for it. Called where batches are sampled ahead."""
