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
        self._free = number
        self._waiting: collections.deque[Future[None]] = collections.deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many wait."""
        return sum(not place.done() for place in tuple(self._waiting))

    def acquire(self) -> None:
        """Waits for a place in this thread."""
        place = self._ask()
        try:
            place.result()
        except BaseException:  # a Ctrl-C while it waits
            self._give_up(place)
            raise

    async def acquire_async(self) -> None:
        """Waits for a place; may be cancelled."""
        place = self._ask()
        if place.done():
            return
        try:
            await asyncio.wrap_future(place)
        except asyncio.CancelledError:
            self._give_up(place)
            raise

    def release(self) -> None:
        """Frees a place."""
        with self._lock:
            while self._waiting:
                place = self._waiting.popleft()
                if place.set_running_or_notify_cancel():
                    place.set_result(None)
                    return
            self._free += 1

    def _ask(self) -> Future[None]:
        place: Future[None] = Future()
        with self._lock:
            if self._free:
                self._free -= 1
                place.set_result(None)
            else:
                self._waiting.append(place)
        return place

    def _give_up(self, place: Future[None]) -> None:
        with self._lock:
            withdrawn = place.cancel()
        if not withdrawn:  # a place came at the same moment: it goes to the next
            self.release()
