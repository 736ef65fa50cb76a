"""Servers for tests of the sandbox service: uvicorn on a free port, and scripted sandboxes."""

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
    """A sandbox whose results come from a function of the test."""

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
            await asyncio.sleep(0.3)  # the end of a program takes some time
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


def says(execution: Execution) -> Scripted:
    """A sandbox in which all programs have the same result."""

    async def answer(*_: Any) -> Execution:
        return execution

    return Scripted(answer)


def sleeps() -> Scripted:
    """A sandbox whose program is a number of seconds: it sleeps so long and prints the number."""

    async def answer(code: str, *_: Any) -> Execution:
        await asyncio.sleep(float(code))
        return Execution(Outcome.OK, code)

    return Scripted(answer)


@contextlib.contextmanager
def serving(app: Any, port: int = 0, **settings: Any) -> Iterator[str]:
    """Serve an ASGI application from a thread; yields its URL, and closes the port at the end.

    Args:
        app: The application.
        port: The port; 0: a free port.
        **settings: Settings of uvicorn.
    """
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
    """Run `retool serve` on a free port; yields the process and its URL."""
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
    """Wait until a condition holds, which another thread fulfils."""
    ended = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        ended.wait(0.02)
    raise AssertionError("the condition did not hold in time")
