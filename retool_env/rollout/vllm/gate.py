"""Gate: many requests pass at once; new weights pass alone.

A request is therefore sampled with one version of the weights, from its first token to its last.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from retool_env.errors import RetoolError


class Dropped(RetoolError):
    """New weights have ended a request before it gave a token."""


class Gate:
    """Separates requests from changes of the weights. A gate belongs to one event loop.

    Leaving the gate awaits nothing, so a cancellation can't prevent it.
    """

    def __init__(self) -> None:
        self._open, self._empty = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._empty.set()
        self._requests: dict[asyncio.Timeout, float] = {}  # with the time of their beginning
        self._changing = asyncio.Lock()
        self._held = False

    @property
    def open(self) -> bool:
        """Whether requests may begin: no weights are being changed."""
        return self._open.is_set()

    @property
    def requests(self) -> int:
        """The number of requests under way."""
        return len(self._requests)

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Pass the gate for one request, as soon as no weights are being changed.

        Raises:
            Dropped: If `drop` ended the request.
        """
        while not self.open:  # the gate may have been shut again before this task woke up
            await self._open.wait()
        scope = asyncio.timeout(None)
        self._requests[scope] = asyncio.get_running_loop().time()
        self._empty.clear()
        try:
            async with scope:
                yield
        except TimeoutError:
            if scope.expired():
                raise Dropped from None
            raise
        finally:
            del self._requests[scope]
            if not self._requests:
                self._empty.set()

    @asynccontextmanager
    async def change(
        self, cut: Callable[[], Awaitable[None]] | None = None, waits: bool = True
    ) -> AsyncIterator[None]:
        """Keep new requests out, and pass when the requests under way have ended.

        Args:
            cut: Lets the requests under way end soon. `None`: they end by themselves.
            waits: Whether the requests under way end first. Otherwise they stay under way.
        """
        async with self._changing:
            self._open.clear()
            try:
                if cut is not None:
                    await cut()
                if waits:
                    await self._empty.wait()
                yield
            finally:
                if not self._held:
                    self._open.set()

    async def unchanging(self) -> None:
        """Wait until no weights are being changed."""
        async with self._changing:
            pass

    def hold(self) -> None:
        """Let no request begin until `release`."""
        self._held = True
        self._open.clear()

    def release(self) -> None:
        """Let requests begin again, once no weights are being changed."""
        self._held = False
        if not self._changing.locked():
            self._open.set()

    async def ended(self, seconds: float) -> bool:
        """Wait until no request is under way, for some seconds at most.

        Returns:
            Whether all requests have ended.
        """
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def drop(self, newest: float = math.inf) -> None:
        """End requests under way without an answer; each raises `Dropped`.

        Args:
            newest: The greatest age of these requests, in seconds; all without it.
        """
        now = asyncio.get_running_loop().time()
        for scope, began in self._requests.items():
            if now - began <= newest and not scope.expired():
                scope.reschedule(now)
