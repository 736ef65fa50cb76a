"""BackgroundLoop: an event loop in a thread of its own.

An engine or a connection belongs to the event loop that it was made in, and each `RolloutEngine.run` has another. What
lives here outlasts them all. Callers in any loop await what runs here; when they are cancelled, so is it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any


class BackgroundLoop:
    """Runs coroutines.

    Args:
        name: The thread's.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self.closed = False
        """Whether this takes no more work."""
        self._lock = threading.Lock()  # so that nothing is submitted behind the stop
        # A daemon, so that a policy that nobody closed does not keep the process alive.
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    async def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`, which runs in this loop, from another.

        Raises:
            RuntimeError: If this has been closed, or is before the work has ended.
        """
        try:
            return await asyncio.wrap_future(self.submit(work))
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self.closed and not (caller and caller.cancelling()):  # so it was not the caller
                raise RuntimeError("this was closed while it was at work") from None
            raise

    def submit[T](self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `work`. Cancelling what is returned cancels it.

        Raises:
            RuntimeError: If this has been closed.
        """
        with self._lock:
            if self.closed:
                work.close()
                raise RuntimeError("this is closed; make a new one")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run_blocking[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work`, from a thread that is not this loop's. A Ctrl-C there cancels it, and is raised when it has ended.

        Raises:
            RuntimeError: If this has been closed.
        """
        future = self.submit(work)
        try:
            return future.result()
        finally:
            if future.cancel():  # otherwise it is done
                with suppress(RuntimeError, CancelledError):  # closed meanwhile, which ends it too
                    self.submit(_ended(work)).result()

    def close(self, seconds: float | None = None) -> None:
        """Cancel what still runs, and end the thread. May be called again.

        Args:
            seconds: How long to wait for the thread's end; by default, as long as it takes.
        """
        with self._lock:
            if not self.closed:
                self.closed = True
                self._loop.call_soon_threadsafe(self._stopped.set)
        if threading.current_thread() is not self._thread:  # a finalizer may run in any
            self._thread.join(seconds)

    def _main(self) -> None:
        # The runner cancels what is left when it is done.
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        await self._stopped.wait()


async def closed_at_the_end(close: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Closes a client when the running event loop shuts down: a loop ends the asynchronous generators begun in it."""
    try:
        yield
    finally:
        await close()


async def _ended(work: Coroutine[Any, Any, Any]) -> None:
    """Returns when a coroutine that runs in this loop has ended."""
    if tasks := [task for task in asyncio.all_tasks() if task.get_coro() is work]:
        await asyncio.wait(tasks)
