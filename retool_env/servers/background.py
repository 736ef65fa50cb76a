"""BackgroundLoop: an event loop in its own thread.

An engine or a connection belongs to the event loop that made it, but each `RolloutEngine.run` has a
new loop. The background loop outlives these loops. Code in any loop can await a coroutine that runs
in the background loop. If the awaiting task is cancelled, the coroutine is also cancelled.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any


class BackgroundLoop:
    """An event loop in its own thread, which runs coroutines for other threads and loops.

    Args:
        name: The name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self.closed = False
        """Whether the loop is closed and refuses further work."""
        self._lock = threading.Lock()  # so that no work is submitted after the stop
        # A daemon thread, so that a policy that was not closed does not keep the process alive.
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    async def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in this loop, and awaits it from another loop.

        Args:
            work: The coroutine.

        Raises:
            RuntimeError: The loop is closed, or was closed before the work ended.
        """
        try:
            return await asyncio.wrap_future(self.submit(work))
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self.closed and not (caller and caller.cancelling()):  # the close cancelled it
                raise RuntimeError("the background loop was closed before the work ended") from None
            raise

    def submit[T](self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine in this loop.

        Args:
            work: The coroutine.

        Returns:
            The future of the work. Cancelling it cancels the work.

        Raises:
            RuntimeError: The loop is closed.
        """
        with self._lock:
            if self.closed:
                work.close()
                raise RuntimeError("the background loop is closed; make a new one")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run_blocking[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in this loop, and blocks another thread until the coroutine ends.

        Args:
            work: The coroutine. Ctrl-C in the blocked thread cancels it; the `KeyboardInterrupt` is
                raised after the coroutine has ended.

        Raises:
            RuntimeError: The loop is closed.
        """
        future = self.submit(work)
        try:
            return future.result()
        finally:
            if future.cancel():  # false if the work is done
                # A loop that is closed in the meantime also ends the work.
                with suppress(RuntimeError, CancelledError):
                    self.submit(_ended(work)).result()

    def close(self, seconds: float | None = None) -> None:
        """Cancels all running work and ends the thread. Further calls do nothing.

        Args:
            seconds: The longest wait for the end of the thread, in seconds; `None`: without limit.
        """
        with self._lock:
            if not self.closed:
                self.closed = True
                self._loop.call_soon_threadsafe(self._stopped.set)
        if threading.current_thread() is not self._thread:  # a finalizer may run in any thread
            self._thread.join(seconds)

    def _main(self) -> None:
        # On its exit, the runner cancels the tasks that are left.
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._stopped.wait())


async def closed_at_the_end(close: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Closes a client when the running event loop shuts down.

    The mechanism: an event loop closes the asynchronous generators that were started in it.

    Args:
        close: Closes the client.
    """
    try:
        yield
    finally:
        await close()


async def _ended(work: Coroutine[Any, Any, Any]) -> None:
    """Waits until a coroutine that runs in this loop has ended."""
    if tasks := [task for task in asyncio.all_tasks() if task.get_coro() is work]:
        await asyncio.wait(tasks)
