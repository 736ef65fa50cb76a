"""Drivers: how a caller waits for a program, by blocking a thread or inside an event loop.

All work on a program is one coroutine that awaits only methods of a `Driver`. The driver `LOOP`
suspends the coroutine as usual. The driver `THREAD` blocks the thread instead; the coroutine then
never suspends, and `complete` runs it from beginning to end.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from select import POLLIN, poll
from typing import Any

from retool_env.sandbox.job import Job
from retool_env.sandbox.slots import Slots

_POLL_SECONDS = 3600.0  # `poll` counts milliseconds in 31 bits

type Lapse = Callable[[Job], float]
"""A function that gets a job whose patience is over; it returns the seconds until its next call."""


@dataclass(frozen=True)
class Driver:
    """The three ways in which work on a program waits."""

    acquire: Callable[[Slots], Awaitable[None]]
    """Waits for a slot."""

    sleep: Callable[[float], Awaitable[None]]
    """Waits for a number of seconds."""

    finish: Callable[[Job, Lapse], Awaitable[None]]
    """Steps through a job until the job is finished."""


def complete[T](work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that awaits only `THREAD`, and returns its result.

    Args:
        work: The coroutine.

    Raises:
        AssertionError: The coroutine has awaited something else.
    """
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the coroutine has awaited something else than THREAD")


async def _acquire_in_thread(slots: Slots) -> None:
    slots.acquire()


async def _sleep_in_thread(seconds: float) -> None:
    time.sleep(seconds)


async def _finish_in_thread(job: Job, lapse: Lapse) -> None:
    deadline = time.monotonic() + job.patience()
    while not job.finished:
        poller = poll()
        for descriptor, events in job.interests().items():
            poller.register(descriptor, events)
        left = deadline - time.monotonic()
        # A program that keeps this thread busy does not put off its end by that.
        if poller.poll(math.ceil(1000 * min(max(left, 0.0), _POLL_SECONDS))):
            job.step()
        if not job.finished and time.monotonic() >= deadline:
            deadline = time.monotonic() + lapse(job)


async def _finish_in_loop(job: Job, lapse: Lapse) -> None:
    await _Watch(job, lapse).finished()


class _Watch:
    """Steps through a job from the callbacks of the running event loop."""

    def __init__(self, job: Job, lapse: Lapse) -> None:
        self._job = job
        self._lapse = lapse
        self._loop = asyncio.get_running_loop()
        self._watched: dict[int, int] = {}
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._timer = self._loop.call_later(job.patience(), self._on_timer)

    async def finished(self) -> None:
        """Waits until the job is finished."""
        try:
            self._advance()
            await self._over
        finally:
            for descriptor in list(self._watched):
                self._forget(descriptor)
            self._timer.cancel()

    def _advance(self) -> None:
        job = self._job
        if not job.finished:
            job.step()
        wanted = {} if job.finished else job.interests()
        for descriptor in [d for d, events in self._watched.items() if wanted.get(d) != events]:
            self._forget(descriptor)
        for descriptor, events in wanted.items():
            if descriptor not in self._watched:
                add = self._loop.add_reader if events == POLLIN else self._loop.add_writer
                add(descriptor, self._advance)
                self._watched[descriptor] = events
        if job.finished and not self._over.done():
            self._over.set_result(None)

    def _forget(self, descriptor: int) -> None:
        reading = self._watched.pop(descriptor) == POLLIN
        (self._loop.remove_reader if reading else self._loop.remove_writer)(descriptor)

    def _on_timer(self) -> None:
        if not self._job.finished:
            left = self._lapse(self._job)
            self._advance()
            self._timer = self._loop.call_later(left, self._on_timer)


THREAD = Driver(_acquire_in_thread, _sleep_in_thread, _finish_in_thread)
"""Blocks the calling thread."""

LOOP = Driver(Slots.acquire_async, asyncio.sleep, _finish_in_loop)
"""Suspends the calling coroutine; callbacks of its event loop step through the job."""
