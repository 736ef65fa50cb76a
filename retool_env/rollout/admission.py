"""Admission: how many episodes, of how many tokens, are in flight at once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Admission:
    """Lets episodes in, first come, first served, while there is room.

    An episode's room is what it may grow to: whatever is let in can be finished, however long all become.

    Args:
        episodes: The most in flight at once.
        tokens: The most tokens of all that are in flight; `None`: no bound. An episode larger than that runs alone.
    """

    def __init__(self, episodes: int, tokens: int | None = None) -> None:
        self.episodes = 0
        """In flight now."""
        self.tokens: float = 0
        """That these may grow to."""
        self._most_episodes = episodes
        self._most_tokens = math.inf if tokens is None else tokens
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()

    async def enter(self, size: Callable[[], int]) -> float:
        """Waits for room, and takes it, until `leave`.

        Args:
            size: Tells how many tokens the episode may grow to; called when it is its turn.

        Returns:
            How many it holds, for `leave`.
        """
        async with self._turn:
            tokens = min(size(), self._most_tokens)
            while self.episodes >= self._most_episodes or self.tokens + tokens > self._most_tokens:
                self._left.clear()
                await self._left.wait()
            self.episodes += 1
            self.tokens += tokens
        return tokens

    def leave(self, tokens: float) -> None:
        """Gives it back."""
        self.episodes -= 1
        self.tokens -= tokens
        self._left.set()
