"""Gate: many turns pass at once; new weights pass alone.

A turn is therefore sampled with one version of the weights, from its first token to its last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Separates turns from changes of the weights. A gate belongs to one event loop.

    Leaving the gate awaits nothing, so a cancellation can't prevent it.
    """

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
        """Pass the gate for one turn, as soon as no weights are being changed."""
        while not self.open:  # the gate may have been shut again before this task woke up
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
        """Keep new turns out, and pass when the turns under way have ended."""
        async with self._changing:
            self._open.clear()
            try:
                await self._empty.wait()
                yield
            finally:
                self._open.set()
