"""PagedCache: a key-value cache of transformers whose rows lie in blocks of one pool.

The model sees an ordinary cache of left-padded rows. Behind it, each layer has one tensor of keys
and one of values, with one slot for each token, and a table lists the slots of each row. Rows
therefore come, go and share prefixes without moving data. Masks and attention stay the model's own.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache


class PagedCache(Cache):
    """Keys and values in slots.

    Args:
        slots: The number of slots. Slot 0 stays zero, for padding.
    """

    def __init__(self, slots: int) -> None:
        super().__init__(layers=[])
        self._slots = slots
        self._pools: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def begin(self, table: torch.Tensor, width: int, written: torch.Tensor | None) -> None:
        """Set the rows of the next forward pass.

        Args:
            table: The slot of each token of each row, including the new tokens, left-padded with
                slot 0; shape `(B, L)`.
            width: The number of columns of the query, Q: the last columns of the table.
            written: The positions of the new tokens in the query, flattened from `(B, Q)`; shape
                `(N,)`. `None`: all tokens of the query are new.
        """
        self._table = table.flatten()
        self._length, self._width = table.shape[1], width
        self._written = written
        into = table[:, -width:].flatten()
        self._into = into if written is None else into[written]

    @property
    def allocated(self) -> int:
        """The number of slots that have memory: all slots, or 0 before the first write."""
        return next((len(keys) for keys, _ in self._pools.values()), 0)

    def clear(self) -> None:
        """Free the memory. The next write allocates it again."""
        self._pools.clear()

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens of one layer, and return the keys and values of all rows.

        Args:
            key_states: The keys of the query, shape `(B, H, Q, D)`.
            value_states: The values of the query, shape `(B, H, Q, D)`.
            layer_idx: The number of the layer.

        Returns:
            The keys and the values of all rows, shape `(B, H, L, D)` each.
        """
        pools = self._pools.get(layer_idx)
        if pools is None:
            keys, values = (
                states.new_zeros(self._slots, states.shape[1], states.shape[3])
                for states in (key_states, value_states)
            )
            pools = self._pools[layer_idx] = keys, values
        return self._exchange(pools[0], key_states), self._exchange(pools[1], value_states)

    def _exchange(self, pool: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        rows = states.transpose(1, 2).flatten(0, 1)
        pool.index_copy_(0, self._into, rows if self._written is None else rows[self._written])
        read = pool.index_select(0, self._table)
        return read.view(-1, self._length, *pool.shape[1:]).transpose(1, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of columns before the query."""
        return self._length - self._width

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """The number of columns of the keys, and the number of columns left out before them, 0."""
        return self._length, 0
