"""Which of several servers gets a turn: the one that has to compute the least for it.

A server keeps the key-value blocks of what it has seen, so a turn is cheapest where its episode's earlier turns went, and
the rollouts of one problem share their prompt. But all problems share their template, and a server that gets every turn is
slow for each. So the tokens that a server would have to read are weighed against the turns that it has in flight: with a
long history an episode stays where it is; with a short one it goes to whoever is free.

What a server holds is guessed from what it was sent: blocks of tokens, named by a hash of all tokens up to their end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

_BLOCK = 16  # as small as engines' own blocks get: what is guessed too fine costs a few tokens
_MOST_BLOCKS = 200_000  # 3.2 million tokens, more than one server's cache
_TURN_TOKENS = (
    512  # what a turn in flight weighs: about the tokens that it will make the server compute
)


@dataclass(eq=False)
class Server:
    """What is known of a server."""

    url: str
    """Without a slash at the end."""
    in_flight: int = 0
    """Our turns there."""
    failures: int = 0
    """Failures in a row; those of turns that were sent together count once."""
    aside_until: float = 0.0
    """The time until when it is not asked."""
    heard: float = 0.0
    """The time of its last answer."""
    weights: str | None = None
    """The weights that it had then; `None` after a failure: it may have been started anew."""
    blocks: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Names of the blocks that it should hold, the longest unused first."""

    def learn(self, token_ids: Sequence[int]) -> None:
        """Note that it has seen these tokens, shape `(P,)`."""
        for name in _names(token_ids):
            self.blocks[name] = None
            self.blocks.move_to_end(name)
        while len(self.blocks) > _MOST_BLOCKS:
            self.blocks.popitem(last=False)

    def known(self, names: Iterable[int]) -> int:
        """Number of tokens, from the first, that it should hold."""
        count = 0
        for name in names:
            if name not in self.blocks:
                break
            count += _BLOCK
        return count


def cheapest(servers: Sequence[Server], token_ids: Sequence[int]) -> Server:
    """The server that is best asked for a turn after these tokens, shape `(P,)`; of equals, the first."""
    if len(servers) == 1:
        return servers[0]
    names = list(_names(token_ids))
    return min(servers, key=lambda each: _TURN_TOKENS * each.in_flight - each.known(names))


def _names(token_ids: Sequence[int]) -> Iterator[int]:
    name = 0
    for end in range(_BLOCK, len(token_ids) + 1, _BLOCK):
        name = hash((name, *token_ids[end - _BLOCK : end]))
        yield name
