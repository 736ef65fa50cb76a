"""BlockPool: which blocks of a key-value cache are in use, which can be found again, and which goes first.

A block holds the keys and values of `size` consecutive tokens. Complete blocks are found again by what they hold and what
precedes them, so that sequences with a common beginning share it. A block that nobody uses is kept until its room is
needed; the least recently used goes first. No tensors here: the pool hands out numbers.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ROOT = 0
"""The content name of the empty beginning."""

Key = tuple[int, tuple[int, ...]]
"""The content name of all that precedes a block, and the block's own tokens."""


@dataclass(eq=False, slots=True)
class Block:
    """Room for `size` tokens."""

    index: int
    """Its place in the cache, from 1; place 0 is nobody's, for padding."""
    users: int = 0
    """Sequences that hold it."""
    key: Key | None = None
    """What it is found by; `None` while it is not complete."""
    content: int = ROOT
    """The name of all tokens up to its end; two blocks with one name hold the same. Meaningless without a key."""


class BlockPool:
    """Blocks of a cache of a fixed number of tokens.

    Args:
        tokens: Of all blocks together, at most.
        size: Tokens a block.

    Raises:
        ValueError: If there is not room for one block.
    """

    def __init__(self, tokens: int, size: int) -> None:
        if size < 1 or tokens < size:
            raise ValueError(f"a cache of {tokens} tokens has no room for a block of {size}")
        self.size = size
        self.count = tokens // size
        self._free = [Block(index) for index in range(self.count, 0, -1)]
        self._found_by: dict[Key, Block] = {}
        self._idle: OrderedDict[int, Block] = OrderedDict()  # findable, and nobody's
        # Names are never given twice, so a block whose predecessor went can't be mistaken for another's successor.
        self._names = itertools.count(ROOT + 1)

    @property
    def available(self) -> int:
        """Blocks that `allocate` can hand out."""
        return len(self._free) + len(self._idle)

    def key(self, token_ids: Sequence[int], number: int, content: int) -> Key:
        """The key of a sequence's block, counted from 0, where `content` names all before it."""
        return content, tuple(token_ids[number * self.size : (number + 1) * self.size])

    def longest_prefix(self, token_ids: Sequence[int]) -> list[Block]:
        """The complete blocks that a sequence begins with, in order; not held yet.

        At least one token is left out, because a forward pass needs one to give a distribution.
        """
        found: list[Block] = []
        content = ROOT
        for number in range((len(token_ids) - 1) // self.size):
            block = self._found_by.get(self.key(token_ids, number, content))
            if block is None:
                break
            found.append(block)
            content = block.content
        return found

    def hold(self, blocks: Iterable[Block]) -> None:
        """Use blocks that were found."""
        for block in blocks:
            if not block.users:
                del self._idle[block.index]
            block.users += 1

    def allocate(self) -> Block | None:
        """An empty block, held once; `None` if all are in use."""
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
        """Let a held block, all of whose tokens are computed, be found.

        Returns:
            The name of all tokens up to its end. Where another block holds the same already, that one's, and this one stays
            its owner's alone.
        """
        other = self._found_by.get(key)
        if other is not None:
            return other.content
        block.key, block.content = key, next(self._names)
        self._found_by[key] = block
        return block.content

    def release(self, blocks: Sequence[Block]) -> None:
        """Let go of a sequence's blocks. Its end is what will go first: no block is of use without those before it."""
        for block in reversed(blocks):
            block.users -= 1
            if block.users:
                continue
            if block.key is None:
                self._free.append(block)
            else:
                self._idle[block.index] = block

    def clear(self) -> None:
        """Forget what every block holds. Those in use stay with their holders and are found no more."""
        for block in list(self._found_by.values()):
            self._forget(block)
        self._free.extend(self._idle.values())
        self._idle.clear()

    def _forget(self, block: Block) -> None:
        if block.key is not None:
            del self._found_by[block.key]
            block.key = None
