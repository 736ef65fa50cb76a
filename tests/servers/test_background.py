"""An event loop in a thread: results and errors come over, cancellations go there, and nothing waits for a closed one."""

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
    """Work without end, which tells when it has begun and when it was cancelled."""

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


def test_results_and_errors_come_over_from_its_thread(background):
    assert background.run_blocking(name()) == "test"
    assert asyncio.run(background.run(name())) == "test"
    assert background.submit(name()).result(60) == "test"
    with pytest.raises(LookupError, match="lost"):
        background.run_blocking(name("lost"))
    with pytest.raises(LookupError, match="lost"):
        asyncio.run(background.run(name("lost")))


def test_who_is_cancelled_cancels_the_work(background):
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
def test_an_interrupt_of_who_waits_cancels_the_work_and_comes_when_that_has_ended(
    background, monkeypatch, begun
):
    hanging = Hanging()
    submit = background.submit

    async def work():
        try:
            await hanging.work()
        finally:
            hanging.ended.clear()
            await asyncio.sleep(0.2)  # what has begun in a thread, say, can't be cancelled
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


def test_closing_cancels_what_runs_and_ends_the_thread(background):
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


def test_who_awaits_work_when_it_is_closed_gets_an_error_and_no_cancellation(
    background, monkeypatch
):
    async def main():
        waiting = [Hanging(), Hanging()]
        tasks = [asyncio.create_task(background.run(each.work())) for each in waiting]
        for each in waiting:
            await asyncio.to_thread(each.begun.wait, 60)
        with monkeypatch.context() as patch:
            patch.setattr(background, "_closed", True)  # as if it were closed just now
            tasks[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[1]
        await asyncio.to_thread(background.close)
        with pytest.raises(RuntimeError, match="closed while it was at work"):
            await tasks[0]
        with pytest.raises(RuntimeError, match="this is closed"):
            await background.run(name())

    asyncio.run(main())


def test_work_that_comes_while_it_is_closed_is_refused_or_cancelled():
    """Never left lying: whoever awaits it would wait for ever."""
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
