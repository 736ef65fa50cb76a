"""Minibatch: a batch of episodes as tensors, and its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retool_env.training.exchange import Exchange


@dataclass(frozen=True)
class Batch:
    """A batch of episodes, padded on the right, so that a token's position is its index.

    B is the number of episodes. T is one less than the number of tokens of the longest episode.
    Index t of a tensor of shape `(B, T)` belongs to token t + 1.
    """

    ids: torch.Tensor
    """Token ids, shape `(B, T + 1)`."""
    attention: torch.Tensor
    """1 on tokens, 0 on padding, shape `(B, T + 1)`."""
    mask: torch.Tensor
    """Whether the model sampled token t + 1, shape `(B, T)`."""
    old_logps: torch.Tensor
    """The engine's sampling log-probs, shape `(B, T)`."""
    rewards: torch.Tensor
    """The episodes' rewards, shape `(B,)`.

    An episode without tokens of the model is not trained on, and its reward has no effect.
    """
    numbers: torch.Tensor | None = None
    """The episodes' indices in this process's part of the step, shape `(B,)`."""
    old_values: torch.Tensor | None = None
    """The critic's values before the updates, shape `(B, T)`: of the state before token t + 1."""
    advantages: torch.Tensor | None = None
    """The advantages, shape `(B, T)`."""
    returns: torch.Tensor | None = None
    """The critic's targets, shape `(B, T)`."""
    own_logps: torch.Tensor | None = None
    """The actor's log-probs before the updates, shape `(B, T)`; `None` with `correction=ratio`."""
    weights: torch.Tensor | None = None
    """The correction's importance weights, shape `(B, T)`; `None` with `correction=ratio`."""
    shares: torch.Tensor | None = None
    """The weight of each of an episode's tokens in the losses, shape `(B,)`."""

    @classmethod
    def of(
        cls,
        rows: Mapping[str, Sequence[Any]],
        device: torch.device | str = "cpu",
        rewards: Sequence[float | None] | None = None,
    ) -> Batch:
        """A batch from the output of `training_rows`.

        Args:
            rows: The columns of the table, each with one entry for each episode.
            device: The device of the tensors.
            rewards: The episodes' rewards; `None`: the rewards of the transcripts.
        """
        prompts, completions = rows["prompt_ids"], rows["completion_ids"]
        lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
        shape = len(lengths), max(lengths)
        ids, attention = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        mask, logps = np.zeros(shape, bool), np.zeros(shape, np.float32)
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            response = slice(len(prompt), lengths[i])
            ids[i, : lengths[i]], attention[i, : lengths[i]] = [*prompt, *completion], 1
            mask[i, response], logps[i, response] = rows["env_mask"][i], rows["logprobs"][i]
        if rewards is None:
            rewards = [transcript.reward for transcript in rows["transcript"]]
        known = np.array([reward or 0.0 for reward in rewards], np.float32)
        arrays = ids, attention, mask[:, 1:], logps[:, 1:], known, np.arange(len(ids))
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))

    def take(self, index: torch.Tensor) -> Batch:
        """A batch of some of the episodes, without the columns that only hold padding.

        Args:
            index: The indices of the episodes, shape `(N,)`.
        """
        length = int(self.attention[index].sum(1).max())
        taken = {}
        for name, tensor in vars(self).items():
            if tensor is not None:
                wide = name in ("ids", "attention")
                tensor = tensor[index] if tensor.ndim == 1 else tensor[index, : length - 1 + wide]
            taken[name] = tensor
        return Batch(**taken)

    def parts(self, size: int) -> Passes:
        """Split the batch into passes of at most `size` episodes."""
        indices = torch.arange(len(self.ids), device=self.ids.device).split(size)

        def back(passes: Sequence[torch.Tensor]) -> torch.Tensor:
            values = passes[0].new_zeros(self.mask.shape)
            for index, rows in zip(indices, passes, strict=True):
                values[index, : rows.shape[1]] = rows
            return values

        return Passes([self.take(index) for index in indices], back)

    def balanced(self, exchange: Exchange) -> Passes:
        """Divide the batch of all processes into passes; see `Exchange`.

        All processes must call it. In the passes, `numbers` belong to the sending processes.

        Args:
            exchange: The plan, made from the numbers of tokens of this batch.
        """
        tokens, episodes = exchange.tokens(self.attention), exchange.episodes()
        columns: dict[str, list[torch.Tensor]] = {}
        for name, tensor in vars(self).items():
            if tensor is None or name == "attention":
                continue
            if tensor.ndim == 1:
                columns[name] = [rows[:, 0] for rows in episodes.out(tensor[:, None])]
            elif name == "ids":
                columns[name] = tokens.out(tensor)
            else:  # a column more, so that each of its values stands at its token
                wide = torch.nn.functional.pad(tensor, (1, 0))
                columns[name] = [rows[:, 1:] for rows in tokens.out(wide)]

        def back(passes: Sequence[torch.Tensor]) -> torch.Tensor:
            return tokens.back([torch.nn.functional.pad(rows, (1, 0)) for rows in passes])[:, 1:]

        parts = [
            Batch(**{name: column[i] for name, column in columns.items()}, attention=real.long())
            for i, real in enumerate(tokens.real)
        ]
        return Passes(parts, back)


@dataclass(frozen=True)
class Passes:
    """A batch, divided into forward and backward passes."""

    parts: list[Batch]
    """The episodes of each pass of this process."""
    back: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    """Puts the values of all passes, of shapes `(R, T)`, at their tokens: shape `(B, T)`."""
