"""The two ways in which a caller waits: in its thread, or in its event loop."""

import asyncio
import os
import time
from collections.abc import Callable
from select import POLLIN

import pytest

from retool_env.sandbox.drivers import LOOP, THREAD, Driver, complete
from retool_env.sandbox.slots import Slots


class Job:
    """The part of a job that drivers use; it is finished after some bytes from a pipe."""

    def __init__(self, size: int, patience: float = 60.0) -> None:
        self._out, self._into = os.pipe()
        self._left = size
        self._patience = patience
        self.lapses = 0
        self.finished = False

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        os.close(self._into)

    def send(self) -> None:
        os.write(self._into, b"x")

    def patience(self) -> float:
        return self._patience

    def interests(self) -> dict[int, int]:
        return {self._out: POLLIN}

    def step(self) -> None:
        os.set_blocking(self._out, False)
        try:
            self._left -= len(os.read(self._out, 1))
        except BlockingIOError:
            return
        self.finished = self._left <= 0

    def lapse(self, _: object) -> float:
        """Sends the next byte, which the job waits for."""
        self.lapses += 1
        self.send()
        return 0.01


async def work(driver: Driver, job: Job, slots: Slots) -> str:
    """Drives a job once.

    Args:
        driver: How the caller waits.
        job: The job.
        slots: The slots, of which the job takes one.
    """
    await driver.acquire(slots)
    await driver.sleep(0.001)
    await driver.finish(job, job.lapse)
    slots.release()
    return "done"


def in_thread(job: Job, slots: Slots) -> str:
    return complete(work(THREAD, job, slots))


def in_loop(job: Job, slots: Slots) -> str:
    return asyncio.run(work(LOOP, job, slots))


@pytest.mark.parametrize("run", [in_thread, in_loop])
def test_a_job_is_stepped_through_until_it_is_finished(run: Callable[[Job, Slots], str]) -> None:
    with Job(3) as job:
        for _ in range(3):
            job.send()
        assert run(job, slots := Slots(1)) == "done"
        assert job.finished and job.lapses == 0 and slots.free == 1


@pytest.mark.parametrize("run", [in_thread, in_loop])
def test_a_job_lapses_again_and_again(run: Callable[[Job, Slots], str]) -> None:
    with Job(3, patience=0.0) as job:
        assert run(job, Slots(1)) == "done"
        assert job.finished and job.lapses == 3


def test_a_thread_gets_what_its_work_raises() -> None:
    async def fails() -> None:
        await THREAD.sleep(0.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(fails())


def test_work_that_awaits_something_else_is_not_completed_in_a_thread() -> None:
    with pytest.raises(AssertionError):
        complete(LOOP.sleep(0.0))


def test_a_loop_goes_on_meanwhile_and_forgets_a_job_that_is_cancelled() -> None:
    async def play(job: Job) -> None:
        run = asyncio.create_task(work(LOOP, job, Slots(1)))
        await asyncio.sleep(0.05)
        assert not run.done()
        run.cancel()
        await asyncio.wait({run})
        job.send()
        began = time.monotonic()
        await asyncio.sleep(0.05)  # with a byte to be read
        assert not job.finished and time.monotonic() - began < 5

    with Job(1) as job:
        asyncio.run(play(job))
