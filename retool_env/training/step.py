"""Step: the facts about a trainer that rollouts need, whichever trainer it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator


@dataclass(frozen=True)
class Step:
    """A request for one batch of episodes on one process, with the trainer's state at that time."""

    number: int
    """Optimizer steps that the trainer has made. This number is the version of its weights."""
    batch: int
    """Number of the batch since the run began, from 0. The sampling seeds contain it."""
    prompts: Sequence[str]
    """Ids of this process's problems. Each id is repeated `group` times, side by side."""
    group: int
    """Rollouts a problem."""
    model: torch.nn.Module
    """The model that is trained."""
    accelerator: Accelerator
    """The accelerator through which the processes of the run communicate."""
    temperature: float
    """The sampling temperature that the loss assumes."""
    eos_token_ids: Sequence[int]
    """Ids of the tokens that end a sequence; the first of them ends rows that have none."""
    log: Callable[[str, float], None]
    """Logs a figure, given its name and its value."""
    training: bool = True
    """Whether the batch is trained on. In evaluation nothing is recorded or logged."""
    until: int | None = None
    """The number of optimizer steps after which the trainer is done with the batch; `None`: only
    the next step trains on it."""
    resumed: bool = False
    """Whether the trainer was resumed inside the batch: earlier steps have trained on a part of it,
    and have logged its figures."""
    coming: Callable[[int], Sequence[str] | None] = lambda number: None
    """Returns the prompts of a later batch, by its number, in the form of `prompts`; `None` if the
    trainer will not ask for that batch. It is called where batches are sampled ahead."""

    @property
    def end(self) -> int:
        """`until`, as a number."""
        return self.number + 1 if self.until is None else self.until
