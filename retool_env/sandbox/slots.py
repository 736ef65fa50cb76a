"""Places for programs: so many at once, first come, first served, over all threads and event loops."""

import asyncio
import collections
import threading
from concurrent.futures import Future


class Slots:
    """A fair semaphore.

    Whoever finds no place free waits for one, as long as it takes: the callers are held back, and
    nothing piles up but they themselves.

    Args:
        number: How many places there are.
    """

    def __init__(self, number: int) -> None:
        self.free = number
        """How many places nobody has."""
        self._waiting: collections.deque[Future[None]] = collections.deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many wait."""
        return sum(not place.done() for place in tuple(self._waiting))

    def acquire(self) -> None:
        """Waits for a place in this thread."""
        place = self.ask()
        try:
            place.result()
        except BaseException:  # a Ctrl-C while it waits
            self.give_up(place)
            raise

    async def acquire_async(self) -> None:
        """Waits for a place; may be cancelled."""
        place = self.ask()
        if place.done():
            return
        try:
            await asyncio.wrap_future(place)
        except asyncio.CancelledError:
            self.give_up(place)
            raise

    def release(self) -> None:
        """Frees a place."""
        with self._lock:
            while self._waiting:
                place = self._waiting.popleft()
                if place.set_running_or_notify_cancel():
                    place.set_result(None)
                    return
            self.free += 1

    def ask(self) -> Future[None]:
        """Gets in the queue; the future is done when the place is there."""
        place: Future[None] = Future()
        with self._lock:
            if self.free:
                self.free -= 1
                place.set_result(None)
            else:
                self._waiting.append(place)
        return place

    def give_up(self, place: Future[None]) -> None:
        """Leaves the queue, or gives the place to the next if it came at the same moment."""
        with self._lock:
            withdrawn = place.cancel()
        if not withdrawn:
            self.release()
