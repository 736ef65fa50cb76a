"""Minibatch: episodes as tensors, and parts of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Batch:
    """Episodes, padded on the right, so that a token's position is its index.

    B is their number, and T one less than the number of tokens of the longest one.
    """

    ids: torch.Tensor
    """Tokens, shape `(B, T + 1)`."""
    attention: torch.Tensor
    """1 on tokens, 0 on padding, shape `(B, T + 1)`."""
    mask: torch.Tensor
    """Whether the model sampled token t + 1, shape `(B, T)`, as what follows."""
    old_logps: torch.Tensor
    """Log-probs that token t + 1 was sampled with."""
    rewards: torch.Tensor
    """Rewards of the episodes, shape `(B,)`.

    That of an episode which is not trained on, and has no tokens of the model, counts nowhere.
    """
    numbers: torch.Tensor | None = None
    """Which episodes of the step these are, shape `(B,)`."""
    old_values: torch.Tensor | None = None
    """The critic's values, before the updates, of the states in which token t + 1 was sampled."""
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None
    own_logps: torch.Tensor | None = None
    """The actor's log-probs before the updates, where the correction is no ratio."""
    weights: torch.Tensor | None = None
    """Of the correction, likewise."""

    @classmethod
    def of(cls, rows: Mapping[str, Sequence[Any]], device: torch.device | str = "cpu") -> Batch:
        """From the rows that `training_rows` makes of transcripts."""
        prompts, completions = rows["prompt_ids"], rows["completion_ids"]
        lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
        shape = len(lengths), max(lengths)
        ids, attention = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        mask, logps = np.zeros(shape, bool), np.zeros(shape, np.float32)
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            own = slice(len(prompt), lengths[i])
            ids[i, : lengths[i]], attention[i, : lengths[i]] = [*prompt, *completion], 1
            mask[i, own], logps[i, own] = rows["env_mask"][i], rows["logprobs"][i]
        rewards = np.array([t.reward or 0.0 for t in rows["transcript"]], np.float32)
        arrays = ids, attention, mask[:, 1:], logps[:, 1:], rewards, np.arange(len(ids))
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))

    def take(self, index: torch.Tensor) -> Batch:
        """Some of the episodes, without what is padding in all of them."""
        length = int(self.attention[index].sum(1).max())
        taken = {}
        for name, tensor in vars(self).items():
            if tensor is not None:
                wide = name in ("ids", "attention")
                tensor = tensor[index] if tensor.ndim == 1 else tensor[index, : length - 1 + wide]
            taken[name] = tensor
        return Batch(**taken)

    def parts(self, size: int) -> Iterator[Batch]:
        """All of it, so many episodes at a time."""
        for index in torch.arange(len(self.ids), device=self.ids.device).split(size):
            yield self.take(index)
