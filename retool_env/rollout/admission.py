"""Admission: a bound on the episodes in flight, and on the tokens to which they may grow."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress

_LOOK_SECONDS = 0.5  # between two questions about a bound that changes by itself


class Admission:
    """Lets episodes in, first come, first served, while there is room.

    An episode reserves the most tokens to which it may grow. All admitted episodes can therefore be
    finished, however long they become.

    Args:
        episodes: The most episodes in flight at once.
        tokens: The most tokens of all episodes in flight. A larger episode runs alone. `None`: no
            bound.
        admits: Returns whether all episodes in flight may grow to this many tokens at present.
            `None`: always.
    """

    def __init__(
        self,
        episodes: int,
        tokens: int | None = None,
        admits: Callable[[float], bool] | None = None,
    ) -> None:
        self.episodes = 0
        """The number of episodes in flight now."""
        self.tokens: float = 0
        """The number of tokens that these episodes have reserved."""
        self._most_episodes = episodes
        self._most_tokens = math.inf if tokens is None else tokens
        self._admits = admits
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()

    async def enter(self, size: Callable[[], int]) -> float:
        """Wait for room, and reserve it until `leave`.

        Args:
            size: Returns the most tokens to which the episode may grow. Called when the episode is
                the next to be admitted.

        Returns:
            The number of reserved tokens, for `leave`.
        """
        async with self._turn:
            tokens = min(size(), self._most_tokens)
            while not self._has_room(tokens):
                self._left.clear()
                # Without a bound that changes by itself, room comes only when an episode leaves.
                with suppress(TimeoutError):
                    seconds = None if self._admits is None else _LOOK_SECONDS
                    await asyncio.wait_for(self._left.wait(), seconds)
            self.episodes += 1
            self.tokens += tokens
        return tokens

    def _has_room(self, tokens: float) -> bool:
        if self.episodes >= self._most_episodes or self.tokens + tokens > self._most_tokens:
            return False
        return self._admits is None or not self.episodes or self._admits(self.tokens + tokens)

    def leave(self, tokens: float) -> None:
        """Give the room of an episode back.

        Args:
            tokens: The number of reserved tokens, as returned by `enter`.
        """
        self.episodes -= 1
        self.tokens -= tokens
        self._left.set()
