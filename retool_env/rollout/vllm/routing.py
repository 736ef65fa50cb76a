"""Sticky routing: an episode stays on its server; first turns go to the server with the least work.

A server caches the key-value blocks of the tokens that it has processed. An episode therefore stays
where it is: another server would have to compute the whole episode again, and the number of turns
in flight changes from one turn to the next.

A first turn, or a turn whose server has failed, may go to any server. The rollouts of one problem
share their prompt, but all problems share the prompt template, and a server that gets every turn is
slow. The router therefore weighs the tokens that a server would have to compute against the turns
that it has in flight.

The router estimates the cache of a server from the requests sent to it: blocks of tokens, each
named by a hash of all tokens up to its end. The block in which a turn ends tells its episode apart
from other episodes, also from those with the same prompt.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from retool_env.servers.hosts import Host

_BLOCK = 16  # the smallest block size of engines: a finer guess costs only a few tokens
_MOST_BLOCKS = 200_000  # 3.2 million tokens, more than the cache of one server
# The weight of a turn in flight: about the number of tokens that the server computes for it.
_TURN_TOKENS = 512

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Server(Host):
    """The state of a server, as its client knows it."""

    heard: float = 0.0
    """The time of the server's last answer."""
    weights: str | None = None
    """The name of the weights at that time. `None` after a failure: the server may have restarted.
    """
    failure: str = ""
    """The error of the server's last failure."""
    blocks: OrderedDict[int, bool] = field(default_factory=OrderedDict)
    """The names of the blocks in the server's cache, the least recently used first. The value tells
    whether a turn ended in the block.
    """

    def fail(self, sent: float, failure: Exception) -> None:
        """Note a failure. The server is set aside, since its weights and its cache may be lost.

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
        """Note that the server has processed these tokens.

        Args:
            token_ids: All tokens of the request, and of the turn if it was sampled. Shape `(P,)`.
            sampled: The number of tokens at the end that the server sampled; 0 for a request.
        """
        name = 0
        for name in _names(token_ids):
            self.blocks.setdefault(name, False)
            self.blocks.move_to_end(name)
        # Only then does the last block hold tokens of the turn.
        if name and sampled > len(token_ids) % _BLOCK:
            self.blocks[name] = True
        while len(self.blocks) > _MOST_BLOCKS:
            self.blocks.popitem(last=False)

    def known(self, names: Iterable[int]) -> int:
        """Count the tokens at the beginning of a sequence that the server's cache should hold.

        Args:
            names: The names of the sequence's blocks, in order.
        """
        count = 0
        for name in names:
            if name not in self.blocks:
                break
            count += _BLOCK
        return count


def best(servers: Sequence[Server], token_ids: Sequence[int]) -> Server:
    """Choose the server of a turn; of equal servers, the first.

    Args:
        servers: The servers that are not set aside.
        token_ids: The context of the turn, shape `(P,)`.
    """
    if len(servers) == 1:
        return servers[0]
    names = list(_names(token_ids))
    for name in reversed(names):
        for server in servers:
            if server.blocks.get(name):
                return server
    return min(servers, key=lambda server: _TURN_TOKENS * server.in_flight - server.known(names))


def _names(token_ids: Sequence[int]) -> Iterator[int]:
    name = 0
    for end in range(_BLOCK, len(token_ids) + 1, _BLOCK):
        name = hash((name, *token_ids[end - _BLOCK : end]))
        yield name
