"""Bounds on the request bodies that a server reads at once: their number and their bytes.

When the bodies exceed a bound, the server gives up the slowest body that is older than a second.
Slow clients therefore keep no other client out. When all bodies are younger, the server gives up
the body that asks for more.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SECONDS = 1.0  # a younger body does not count as slow


class Body:
    """A request body that is being read.

    Args:
        bodies: All bodies that the server is reading.
        scope: The timeout around the reading. It expires when the body is given up.
    """

    def __init__(self, bodies: "Bodies", scope: asyncio.Timeout) -> None:
        self.data = bytearray()
        self.given_up = False
        self._bodies = bodies
        self._scope = scope
        self._began = asyncio.get_running_loop().time()

    @property
    def seconds(self) -> float:
        """The seconds since the reading began."""
        return asyncio.get_running_loop().time() - self._began

    def add(self, chunk: bytes) -> None:
        """Appends the next piece of the body.

        Args:
            chunk: The bytes that arrived.

        Raises:
            TimeoutError: The body is given up.
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
    """The bodies that a server is reading.

    Args:
        most: The largest number of bodies at once.
        most_bytes: The largest number of bytes that all bodies hold together.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._read: set[Body] = set()

    @contextmanager
    def reading(self, scope: asyncio.Timeout) -> Iterator[Body]:
        """Counts one more body while the context lasts.

        Args:
            scope: The timeout around the reading.

        Raises:
            TimeoutError: The body is given up.
        """
        body = Body(self, scope)
        self._read.add(body)
        try:
            self.bound(body)
            yield body
        finally:
            self._read.discard(body)

    def bound(self, latest: Body) -> None:
        """Gives up bodies until the rest is within the bounds.

        Args:
            latest: The body that asks for more.

        Raises:
            TimeoutError: `latest` is given up.
        """
        while (
            len(self._read) > self._most or sum(len(b.data) for b in self._read) > self._most_bytes
        ):
            slow = [body for body in self._read if body.seconds > _SECONDS]
            victim = min(slow, key=lambda body: len(body.data) / body.seconds, default=latest)
            self._read.discard(victim)
            victim.give_up()
        if latest.given_up:
            raise TimeoutError
