"""Room: the tokens to which the episodes of a process may grow on servers, by the load they report.

Each process may reserve its share of the servers' caches. An episode reserves its greatest length,
which few episodes reach, so the share can be overbooked: the bound rises, slowly, while the servers
have room and episodes wait for it, and falls while requests wait on a server or its cache is full.
All processes see the same load, so they need not know of each other beyond their number.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from retool_env.rollout.vllm.client import METRICS, Client
from retool_env.rollout.vllm.routing import Server
from retool_env.servers.hosts import Busy, Failure

_LOOK_SECONDS, _ANSWER_SECONDS = 2.0, 5.0
_RISE, _FALL = 1.15, 0.8
_LOOKS = 15  # from a rise to the next: meanwhile the episodes that it let in grow
_MOST = 16.0  # the greatest overbooking: episodes that use a sixteenth of their greatest length
_ROOMY, _FULL = 0.8, 0.95  # shares of a cache
_SAMPLE = re.compile(r"^vllm:(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Load:
    """The load of a server, as it reports it."""

    waiting: float
    """The number of requests that wait for room."""
    usage: float
    """The used share of the cache, from 0 to 1; of several caches, the fullest."""
    tokens: int
    """The number of tokens that the cache holds."""

    @classmethod
    def of(cls, metrics: str) -> Load | None:
        """Read the load from the text of a server's metrics; `None` if the text does not tell it.

        Args:
            metrics: The metrics in the text format of Prometheus.
        """
        waiting, usages, sizes, blocks = 0.0, [], [], 0
        for name, labels, value in _SAMPLE.findall(metrics):
            if name == "num_requests_waiting":
                waiting += float(value)
            elif name == "kv_cache_usage_perc":
                usages.append(float(value))
            elif name == "cache_config_info":
                config = dict(_LABEL.findall(labels))
                with suppress(KeyError, ValueError):
                    # Each engine of a server reports the blocks of all its engines together.
                    blocks = int(config["block_size"]) * int(config["num_gpu_blocks"])
                with suppress(KeyError, ValueError):
                    sizes.append(int(config["kv_cache_size_tokens"]))
        tokens = sum(sizes) or blocks
        return cls(waiting, max(usages), tokens) if usages and tokens else None


class Room:
    """Bounds the tokens of the episodes in flight. It belongs to one event loop.

    Args:
        servers: The servers.
        client: The client that sends the requests.
        sharers: The number of processes that share the servers.
    """

    def __init__(self, servers: Sequence[Server], client: Client, sharers: int) -> None:
        self.tokens: float | None = None
        """The most tokens that the episodes of this process may reserve; `None`: no bound."""
        self._servers = servers
        self._client = client
        self._sharers = sharers
        self._overbooked = 1.0
        self._refused = False
        self._looks = 0

    def admits(self, tokens: float) -> bool:
        """Whether the episodes in flight of this process may grow to this many tokens together.

        Args:
            tokens: The sum of the greatest lengths of the episodes.
        """
        if self.tokens is None or tokens <= self.tokens:
            return True
        self._refused = True
        return False

    async def watch(self) -> None:
        """Ask the servers for their load again and again."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Ask the servers for their load, and set the bound."""
        loads = await asyncio.gather(*map(self._ask, self._servers))
        known = [load for load in loads if load is not None]
        if not known:
            return
        self._looks += 1
        if any(load.waiting or load.usage > _FULL for load in known):
            self._overbooked, self._looks = max(1.0, self._overbooked * _FALL), 0
        elif self._looks >= _LOOKS and self._refused and max(load.usage for load in known) < _ROOMY:
            self._overbooked, self._looks = min(_MOST, self._overbooked * _RISE), 0
            self._refused = False
        self.tokens = sum(load.tokens for load in known) / self._sharers * self._overbooked

    async def _ask(self, server: Server) -> Load | None:
        # It fails, or shows no metrics.
        with suppress(Failure, Busy, RuntimeError, ValueError, PermissionError):
            seconds = _ANSWER_SECONDS
            return Load.of(await self._client.send(server, "GET", METRICS, seconds=seconds))
        return None
