"""Servers for the tests of the service: real uvicorn on a free port, and sandboxes to command."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn

from retool_env.execution import DEFAULT_LIMITS
from retool_env.sandbox import Execution, Limits, Outcome

Answer = Callable[[str, Limits, str, bool], Awaitable[Execution]]


class Scripted:
    """A sandbox whose programs do what the test says."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.started = 0
        self.running = 0
        self.cancelled = 0

    async def run_async(
        self, code: str, limits: Limits = DEFAULT_LIMITS, *, stdin: str = "", display: bool = False
    ) -> Execution:
        self.started += 1
        self.running += 1
        try:
            return await self.answer(code, limits, stdin, display)
        except asyncio.CancelledError:
            await asyncio.sleep(0.3)  # ending a program takes its time
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


def says(execution: Execution) -> Scripted:
    """Every program comes to the same."""

    async def answer(*_: Any) -> Execution:
        return execution

    return Scripted(answer)


def sleeps() -> Scripted:
    """A program is a number of seconds; it prints it at its end."""

    async def answer(code: str, *_: Any) -> Execution:
        await asyncio.sleep(float(code))
        return Execution(Outcome.OK, code)

    return Scripted(answer)


@contextlib.contextmanager
def serving(app: Any, port: int = 0, **settings: Any) -> Iterator[str]:
    """Serves an ASGI application from a thread; at its end the port is closed."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, **settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def command(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`retool serve` on a free port, and its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "retool_env.cli", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Waits for what another thread does."""
    ended = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        ended.wait(0.02)
    raise AssertionError("it did not happen in time")
