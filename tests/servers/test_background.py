"""An event loop in a thread: results, errors, cancellations, and the end of the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from retool_env.servers.background import BackgroundLoop


@pytest.fixture
def background() -> Iterator[BackgroundLoop]:
    loop = BackgroundLoop("test")
    yield loop
    loop.close()


class Hanging:
    """Work without end, with an event for its start and an event for its cancellation."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    async def work(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def name(text: str = "") -> str:
    if text:
        raise LookupError(text)
    return threading.current_thread().name


def test_results_and_errors_reach_the_caller(background):
    assert background.run_blocking(name()) == "test"
    assert asyncio.run(background.run(name())) == "test"
    assert background.submit(name()).result(60) == "test"
    with pytest.raises(LookupError, match="lost"):
        background.run_blocking(name("lost"))
    with pytest.raises(LookupError, match="lost"):
        asyncio.run(background.run(name("lost")))


def test_a_cancelled_caller_cancels_the_work(background):
    hanging = Hanging()

    async def caller():
        task = asyncio.create_task(background.run(hanging.work()))
        await asyncio.to_thread(hanging.begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(caller())
    assert hanging.ended.wait(60)
    assert background.run_blocking(name()) == "test"


@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupt_cancels_the_work_and_is_raised_after_its_end(background, monkeypatch, begun):
    hanging = Hanging()
    submit = background.submit

    async def work():
        try:
            await hanging.work()
        finally:
            hanging.ended.clear()
            await asyncio.sleep(0.2)  # work in a thread, for example, can't be cancelled
            hanging.ended.set()

    def interrupted(work):
        monkeypatch.undo()
        future = submit(work)

        def result(timeout=None):
            if begun:
                hanging.begun.wait(60)
            raise KeyboardInterrupt

        future.result = result
        return future

    monkeypatch.setattr(background, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        background.run_blocking(work())
    assert hanging.ended.is_set() == hanging.begun.is_set() >= begun
    assert background.run_blocking(name()) == "test"


def test_closing_cancels_all_work_and_ends_the_thread(background):
    hanging = Hanging()
    future = background.submit(hanging.work())
    assert hanging.begun.wait(60)
    background.close()
    assert hanging.ended.is_set() and "test" not in {t.name for t in threading.enumerate()}
    with pytest.raises(CancelledError):
        future.result(0)
    background.close()
    for use in (background.submit, background.run_blocking):
        with pytest.raises(RuntimeError, match="closed"):
            use(name())


def test_closing_gives_the_caller_an_error_and_not_a_cancellation(background, monkeypatch):
    async def main():
        waiting = [Hanging(), Hanging()]
        tasks = [asyncio.create_task(background.run(hanging.work())) for hanging in waiting]
        for hanging in waiting:
            await asyncio.to_thread(hanging.begun.wait, 60)
        with monkeypatch.context() as patch:
            patch.setattr(background, "closed", True)  # as if the loop were closed at this moment
            tasks[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[1]
        await asyncio.to_thread(background.close)
        with pytest.raises(RuntimeError, match="closed before the work ended"):
            await tasks[0]
        with pytest.raises(RuntimeError, match="the background loop is closed"):
            await background.run(name())

    asyncio.run(main())


def test_work_submitted_during_the_close_is_refused_or_cancelled():
    """Forgotten work would let its caller wait for ever."""
    for _ in range(200):
        background, start = BackgroundLoop("race"), threading.Barrier(2)

        def close(background=background, start=start):
            start.wait()
            background.close()

        closer = threading.Thread(target=close)
        closer.start()
        start.wait()
        try:
            while True:
                background.submit(asyncio.sleep(0)).result(60)
        except (RuntimeError, CancelledError):
            pass
        closer.join()


def test_work_may_close_its_own_loop(background):
    """A finalizer may do so, because it may run in any thread."""

    async def work() -> None:
        background.close()
        await asyncio.sleep(60)

    with pytest.raises(CancelledError):
        background.submit(work()).result(60)
    background.close()
    assert background.closed


def test_closing_waits_at_most_the_given_time(background):
    go_on = threading.Event()

    async def work() -> None:
        go_on.wait(60)

    busy = background.submit(work())
    background.close(0.01)
    assert not busy.done()
    go_on.set()
    background.close()
    assert busy.done()
