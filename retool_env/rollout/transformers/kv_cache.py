"""PagedCache: a key-value cache of transformers whose rows lie in blocks of one pool.

The model sees an ordinary cache of left-padded rows. Behind it, each layer has one tensor of keys and one of values, a slot
a token, and a table says which slots make up each row; so rows come, go and share their beginnings without anything being
moved, and masks and attention stay the model's own.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache


class PagedCache(Cache):
    """Keys and values in slots.

    Args:
        slots: Their number. Slot 0 stays zero, for padding.
    """

    def __init__(self, slots: int) -> None:
        super().__init__(layers=[])
        self._slots = slots
        self._pools: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def begin(self, table: torch.Tensor, width: int, written: torch.Tensor | None) -> None:
        """Set the rows of the next forward pass.

        Args:
            table: The slot of each token of each row, the new ones included, left-padded with slot 0; shape `(B, L)`.
            width: Columns of the query, Q: the table's last ones.
            written: Where in the query, flattened from `(B, Q)`, the new tokens are; `None` if all of it is new.
        """
        self._table = table.flatten()
        self._length, self._width = table.shape[1], width
        self._written = written
        into = table[:, -width:].flatten()
        self._into = into if written is None else into[written]

    @property
    def allocated(self) -> int:
        """The number of slots that memory is taken for: all, or 0 before anything is written."""
        return next((len(keys) for keys, _ in self._pools.values()), 0)

    def clear(self) -> None:
        """Give the memory back; it is taken anew when next written to."""
        self._pools.clear()

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's new tokens, shape `(B, H, Q, D)`, and return all rows, shape `(B, H, L, D)`."""
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
        """Columns before the query."""
        return self._length - self._width

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of columns of the keys, and of those left out before them."""
        return self._length, 0
