"""BlockPool: the blocks of a key-value cache, shared by sequences with a common prefix.

A block holds the keys and values of `size` consecutive tokens. A complete block can be found by its
tokens and by the tokens before it. A block without users is kept until its room is needed; the
least recently used block goes first. The pool handles numbers only, no tensors.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ROOT = 0
"""The content name of the empty prefix."""

Key = tuple[int, tuple[int, ...]]
"""The content name of all tokens before a block, and the block's own tokens."""


@dataclass(eq=False, slots=True)
class Block:
    """Room for `size` tokens."""

    index: int
    """The block's position in the cache, from 1. Position 0 holds the padding."""
    users: int = 0
    """The number of sequences that hold the block."""
    key: Key | None = None
    """The key by which the block is found; `None` while the block is incomplete."""
    content: int = ROOT
    """The name of all tokens up to the block's end. Blocks of one name hold the same. Valid only
    with a key.
    """


class BlockPool:
    """The blocks of a cache that has room for a fixed number of tokens.

    Args:
        tokens: The most tokens in all blocks together.
        size: The number of tokens in a block.

    Raises:
        ValueError: If there is no room for one block.
    """

    def __init__(self, tokens: int, size: int) -> None:
        if size < 1 or tokens < size:
            raise ValueError(f"a cache of {tokens} tokens has no room for a block of {size}")
        self.size = size
        self.count = tokens // size
        self._free = [Block(index) for index in range(self.count, 0, -1)]
        self._found_by: dict[Key, Block] = {}
        self._idle: OrderedDict[int, Block] = OrderedDict()  # findable, without users
        # Names are never reused: a block whose predecessor was dropped can't be found by mistake.
        self._names = itertools.count(ROOT + 1)

    @property
    def available(self) -> int:
        """The number of blocks that `allocate` can give."""
        return len(self._free) + len(self._idle)

    def key(self, token_ids: Sequence[int], number: int, content: int) -> Key:
        """The key of a block of a sequence.

        Args:
            token_ids: All tokens of the sequence, shape `(P,)`.
            number: The number of the block in the sequence, from 0.
            content: The content name of all tokens before the block.
        """
        return content, tuple(token_ids[number * self.size : (number + 1) * self.size])

    def longest_prefix(self, token_ids: Sequence[int]) -> list[Block]:
        """Find the complete blocks with which a sequence begins, in order, without holding them.

        At least one token is left out, because a forward pass needs one to give a distribution.
        """
        prefix: list[Block] = []
        content = ROOT
        for number in range((len(token_ids) - 1) // self.size):
            block = self._found_by.get(self.key(token_ids, number, content))
            if block is None:
                break
            prefix.append(block)
            content = block.content
        return prefix

    def hold(self, blocks: Iterable[Block]) -> None:
        """Hold blocks that `longest_prefix` has found."""
        for block in blocks:
            if not block.users:
                del self._idle[block.index]
            block.users += 1

    def allocate(self) -> Block | None:
        """Give an empty block with one user; `None` if all blocks are in use."""
        if self._free:
            block = self._free.pop()
        elif self._idle:
            _, block = self._idle.popitem(last=False)
            self._forget(block)
        else:
            return None
        block.users = 1
        return block

    def complete(self, block: Block, key: Key) -> int:
        """Make a held block findable. All its tokens are computed.

        Returns:
            The content name of all tokens up to the block's end. If another block already holds the
            same tokens, its name is returned, and this block is not shared.
        """
        other = self._found_by.get(key)
        if other is not None:
            return other.content
        block.key, block.content = key, next(self._names)
        self._found_by[key] = block
        return block.content

    def release(self, blocks: Sequence[Block]) -> None:
        """Release the blocks of a sequence.

        The blocks at the end of the sequence will go first: a block is of use only together with
        the blocks before it.
        """
        for block in reversed(blocks):
            block.users -= 1
            if block.users:
                continue
            if block.key is None:
                self._free.append(block)
            else:
                self._idle[block.index] = block

    def clear(self) -> None:
        """Forget the contents of all blocks.

        Blocks in use stay with their sequences, and are not found again.
        """
        for block in list(self._found_by.values()):
            self._forget(block)
        self._free.extend(self._idle.values())
        self._idle.clear()

    def _forget(self, block: Block) -> None:
        if block.key is not None:
            del self._found_by[block.key]
            block.key = None
