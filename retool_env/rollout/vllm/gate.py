"""Gate: turns pass many at once, new weights alone.

So a turn is sampled with the weights of one version, from its first token to its last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Belongs to one event loop. Whoever leaves it awaits nothing, so that a cancellation can't keep it from doing so."""

    def __init__(self) -> None:
        self._turns = 0
        self._open, self._empty = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._empty.set()
        self._changing = asyncio.Lock()

    @property
    def open(self) -> bool:
        """Whether turns may begin: no weights are being changed."""
        return self._open.is_set()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Passes when no weights are being changed."""
        while not self.open:  # it may have been shut again before this one's turn came
            await self._open.wait()
        self._turns += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._turns -= 1
            if not self._turns:
                self._empty.set()

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Keeps new turns out, and passes when those under way have ended."""
        async with self._changing:
            self._open.clear()
            try:
                await self._empty.wait()
                yield
            finally:
                self._open.set()
