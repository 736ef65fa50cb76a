"""Slots bound the programs that run at once: first come, first served, across threads and loops."""

import asyncio
import collections
import threading
from concurrent.futures import Future


class Slots:
    """A fair semaphore for threads and event loops.

    A caller that finds no free slot waits as long as it takes.

    Args:
        number: The number of slots.
    """

    def __init__(self, number: int) -> None:
        self.free = number
        """The number of free slots."""
        self._waiting: collections.deque[Future[None]] = collections.deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of callers that wait."""
        return sum(not slot.done() for slot in tuple(self._waiting))

    def acquire(self) -> None:
        """Waits for a slot in this thread."""
        slot = self.ask()
        try:
            slot.result()
        except BaseException:  # a Ctrl-C while it waits
            self.give_up(slot)
            raise

    async def acquire_async(self) -> None:
        """Waits for a slot; the call may be cancelled."""
        slot = self.ask()
        if slot.done():
            return
        try:
            await asyncio.wrap_future(slot)
        except asyncio.CancelledError:
            self.give_up(slot)
            raise

    def release(self) -> None:
        """Frees a slot."""
        with self._lock:
            while self._waiting:
                slot = self._waiting.popleft()
                if slot.set_running_or_notify_cancel():
                    slot.set_result(None)
                    return
            self.free += 1

    def ask(self) -> Future[None]:
        """Joins the queue.

        Returns:
            A future that is done when the caller has a slot.
        """
        slot: Future[None] = Future()
        with self._lock:
            if self.free:
                self.free -= 1
                slot.set_result(None)
            else:
                self._waiting.append(slot)
        return slot

    def give_up(self, slot: Future[None]) -> None:
        """Leaves the queue, or passes the slot on if it came at the same moment.

        Args:
            slot: The future from `ask`.
        """
        with self._lock:
            withdrawn = slot.cancel()
        if not withdrawn:
            self.release()
