"""Sticky routing: an episode stays on its server, and a first turn goes to the server with the least work.

A server keeps the key-value blocks of what it has seen, so an episode stays where it is: at another server all that it has
would be read again, and how many turns are in flight here and there changes from one turn to the next.

A first turn, or one whose server has failed, may go anywhere. The rollouts of one problem share their prompt; but all problems
share their template, and a server that gets every turn is slow for each. So the tokens that a server would have to read are
weighed against the turns that it has in flight.

What a server holds is guessed from what it was sent: blocks of tokens, named by a hash of all tokens up to their end. The block
in which a turn ends tells its episode from others, those with the same prompt included.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from retool_env.servers.hosts import Host

_BLOCK = 16  # as small as engines' own blocks get: what is guessed too fine costs a few tokens
_MOST_BLOCKS = 200_000  # 3.2 million tokens, more than one server's cache
_TURN_TOKENS = (
    512  # what a turn in flight weighs: about the tokens that it will make the server compute
)


_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Server(Host):
    """What is known of a server."""

    heard: float = 0.0
    """The time of its last answer."""
    weights: str | None = None
    """The weights that it had then; `None` after a failure: it may have been started anew."""
    failure: str = ""
    """The error of its last failure."""
    blocks: OrderedDict[int, bool] = field(default_factory=OrderedDict)
    """Names of the blocks that it should hold, the longest unused first, and whether a turn ended in them."""

    def fail(self, sent: float, failure: Exception) -> None:
        """Notes a failure: the server is set aside, its weights and its cache may be lost.

        Args:
            sent: The time at which the failed request was sent.
            failure: The error.
        """
        first = not self.failures
        if self.set_aside(sent):
            if first:
                _log.warning("%s is set aside: %s", self.url, failure)
            self.failure = str(failure)
            self.weights = None
            self.blocks.clear()

    def learn(self, token_ids: Sequence[int], sampled: int = 0) -> None:
        """Note that it has seen these tokens, shape `(P,)`, of which the last `sampled` are a turn that it sampled."""
        name = 0
        for name in _names(token_ids):
            self.blocks.setdefault(name, False)
            self.blocks.move_to_end(name)
        # Otherwise the last block holds nothing of the turn.
        if name and sampled > len(token_ids) % _BLOCK:
            self.blocks[name] = True
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


def best(servers: Sequence[Server], token_ids: Sequence[int]) -> Server:
    """The server that is to be asked for a turn after these tokens, shape `(P,)`; of equals, the first."""
    if len(servers) == 1:
        return servers[0]
    names = list(_names(token_ids))
    for name in reversed(names):
        for server in servers:
            if server.blocks.get(name):
                return server
    return min(servers, key=lambda each: _TURN_TOKENS * each.in_flight - each.known(names))


def _names(token_ids: Sequence[int]) -> Iterator[int]:
    name = 0
    for end in range(_BLOCK, len(token_ids) + 1, _BLOCK):
        name = hash((name, *token_ids[end - _BLOCK : end]))
        yield name
