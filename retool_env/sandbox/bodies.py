"""The bodies of requests that are being read, bounded in number and in bytes.

Where there are too many, the slowest of those that have had their time is given up, so that slow
clients keep out nobody; where all have just begun, the one that asks for more.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SECONDS = 1.0  # in which no body counts as slow


class Body:
    """One that is being read.

    Args:
        bodies: All of them.
        scope: Ends the reading when it is given up.
    """

    def __init__(self, bodies: "Bodies", scope: asyncio.Timeout) -> None:
        self.data = bytearray()
        self.given_up = False
        self._bodies = bodies
        self._scope = scope
        self._began = asyncio.get_running_loop().time()

    @property
    def seconds(self) -> float:
        """How long it has been read."""
        return asyncio.get_running_loop().time() - self._began

    def add(self, chunk: bytes) -> None:
        """Takes more of it.

        Raises:
            TimeoutError: It is given up.
        """
        self.data += chunk
        self._bodies.bound(self)

    def give_up(self) -> None:
        """Ends the reading with a `TimeoutError`, and frees what was read."""
        self.given_up = True
        self.data = bytearray()
        with suppress(RuntimeError):  # it is about to end anyway
            self._scope.reschedule(asyncio.get_running_loop().time())


class Bodies:
    """All that are being read.

    Args:
        most: How many there may be at once.
        most_bytes: How much they may hold, all together.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._read: set[Body] = set()

    @contextmanager
    def reading(self, scope: asyncio.Timeout) -> Iterator[Body]:
        """One more.

        Args:
            scope: Around the reading.

        Raises:
            TimeoutError: It is given up.
        """
        body = Body(self, scope)
        self._read.add(body)
        try:
            self.bound(body)
            yield body
        finally:
            self._read.discard(body)

    def bound(self, latest: Body) -> None:
        """Gives up as many as needed.

        Args:
            latest: The one that asks for more.

        Raises:
            TimeoutError: `latest` is given up.
        """
        while self._are_too_many():
            slow = [body for body in self._read if body.seconds > _SECONDS]
            victim = min(slow, key=lambda body: len(body.data) / body.seconds, default=latest)
            self._read.discard(victim)
            victim.give_up()
        if latest.given_up:
            raise TimeoutError

    def _are_too_many(self) -> bool:
        held = sum(len(body.data) for body in self._read)
        return len(self._read) > self._most or held > self._most_bytes
