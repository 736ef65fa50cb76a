"""Supervision of one program: start it, feed it, drain it, limit it, end it, judge it.

`ProcessSandbox` is the part that the jailed and the unsafe sandbox share; they differ in the
command that starts the guest, in how it is killed, and in how its exit status reads. `run` and
`run_async` are one path: the first drives the second on an event loop of its own.

Invariant: when `run_async` returns, raises or is cancelled, the program has been killed, and none
of its pipes is left open.
"""

import abc
import asyncio
import codecs
import os
import signal
import time
import weakref
from asyncio.subprocess import PIPE
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from retool_env.sandbox.execution import DEFAULT_LIMITS, Execution, Limits, Outcome

GUEST = Path(__file__).with_name("guest.py")
"""The script that runs inside."""

INTERPRETER_OPTIONS = ("-S", "-s", "-P", "-B", "-u", "-X", "utf8")
"""`-S` starts quickly; `-u` keeps what was printed before a time-out out of a lost buffer."""

GUEST_ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",  # sets print in the same order each time: equal code, equal output
}
"""All that a program finds in its environment."""

_ATTEMPTS = 3
_RETRY_SECONDS = 0.1
_START_SECONDS = 20.0  # on an idle machine it takes 0.02
_END_ATTEMPTS = 40
_END_SECONDS = 0.05
_REPORT_BYTES = 1 << 16
_STARTED = b"\0started\0"


@dataclass(frozen=True)
class Command:
    """How to start a guest."""

    argv: tuple[str, ...]
    """The executable and its arguments."""

    env: dict[str, str] | None = None
    """Its environment; `None` for that of this process."""

    cwd: str | None = None
    """Its working directory; `None` for that of this process."""

    pass_fds: tuple[int, ...] = ()
    """Descriptors it inherits."""


class _Guest(asyncio.SubprocessProtocol):
    """Collects what a guest writes, and notes when it starts, ends, or writes too much."""

    def __init__(self, output_bytes: int) -> None:
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[float] = loop.create_future()
        """Done, with the time, when the program is about to begin."""
        self.over: asyncio.Future[float] = loop.create_future()
        """Done, with the time, when the process has exited or has written too much."""
        self.closed: asyncio.Future[None] = loop.create_future()
        """Done when it has exited and its pipes have been read to their end."""
        self.transport: asyncio.SubprocessTransport | None = None
        self.stdout = bytearray()
        self.report = bytearray()
        self.overflowed = False
        self.output_bytes = output_bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            room = self.output_bytes - len(self.stdout)
            self.stdout += data[:room]
            if len(data) > room:
                self.overflowed = True
                self._finish()
            return
        self.report += data[: _REPORT_BYTES - len(self.report)]
        if not self.started.done() and _STARTED in self.report:
            self.started.set_result(time.perf_counter())

    def process_exited(self) -> None:
        self._finish()

    def _finish(self) -> None:
        if not self.over.done():
            self.over.set_result(time.perf_counter())

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)


class ProcessSandbox(abc.ABC):
    """A sandbox that runs each program in an operating-system process of its own.

    Args:
        concurrency: how many programs one event loop runs at once; further calls of `run_async`
            wait. `None`: as many as there are processors.
    """

    def __init__(self, concurrency: int | None = None) -> None:
        self.concurrency = concurrency or os.cpu_count() or 1
        self._closed = False
        # A semaphore belongs to one event loop; a training script may use several in turn.
        self._slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]
        self._slots = weakref.WeakKeyDictionary()

    @abc.abstractmethod
    def _command(self, limits: Limits) -> AbstractContextManager[Command]:
        """Gives a command that starts a guest; what it needs lasts as long as the context."""

    @abc.abstractmethod
    def _signal(self, status: int) -> int:
        """The number of the signal that ended the program, by its exit status; 0 if none did."""

    @abc.abstractmethod
    def _end(self, pid: int, exited: bool) -> None:
        """Sends the signal that ends the program of the process `pid` and what it has started.

        Args:
            pid: the process.
            exited: it has exited and been reaped; only what it has started can be left.

        Raises:
            ProcessLookupError: nothing is left.
        """

    def run(self, code: str, limits: Limits = DEFAULT_LIMITS) -> Execution:
        """Runs `code` to its end in the calling thread.

        Raises:
            RuntimeError: the sandbox is closed.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return _drive(self.run_async(code, limits))
        with ThreadPoolExecutor(1) as thread:  # one thread cannot run a loop inside a loop
            return thread.submit(_drive, self.run_async(code, limits)).result()

    async def run_async(self, code: str, limits: Limits = DEFAULT_LIMITS) -> Execution:
        """Runs `code` to its end; cancelling this ends the program.

        Raises:
            RuntimeError: the sandbox is closed.
        """
        if self._closed:
            raise RuntimeError("the sandbox is closed; make a new one")
        loop = asyncio.get_running_loop()
        async with self._slots.setdefault(loop, asyncio.Semaphore(self.concurrency)):
            for attempt in range(_ATTEMPTS):
                if attempt:
                    await asyncio.sleep(_RETRY_SECONDS * attempt)
                execution = await self._attempt(code, limits)
                if execution.outcome is not Outcome.INFRASTRUCTURE:
                    break
        return execution

    async def _attempt(self, code: str, limits: Limits) -> Execution:
        loop = asyncio.get_running_loop()
        guest = _Guest(limits.output_bytes)
        with self._command(limits) as command:
            start = asyncio.create_task(
                loop.subprocess_exec(
                    lambda: guest,
                    *command.argv,
                    stdin=PIPE,
                    stdout=PIPE,
                    stderr=PIPE,
                    env=command.env,
                    cwd=command.cwd,
                    pass_fds=command.pass_fds,
                    start_new_session=True,  # Ctrl-C is for us; we end the program
                )
            )
            try:
                # Shielded: cancelled in here, asyncio would kill the process in its own way.
                transport, _ = await asyncio.shield(start)
                stdin = transport.get_pipe_transport(0)
                stdin.write(code.encode("utf-8", "surrogatepass"))
                stdin.close()
                begun = {guest.started, guest.closed}
                first = asyncio.FIRST_COMPLETED
                await asyncio.wait(begun, timeout=_START_SECONDS, return_when=first)
                if guest.started.done():
                    await asyncio.wait({guest.over}, timeout=limits.wall_seconds)
                timed_out = not guest.over.done()
            except OSError as error:
                return Execution(Outcome.INFRASTRUCTURE, "", f"cannot start: {error}")
            finally:
                await asyncio.wait({start})
                if guest.transport:
                    await self._stop(guest, guest.transport)
        return self._judge(guest, transport.get_returncode(), timed_out, limits)

    async def _stop(self, guest: _Guest, transport: asyncio.SubprocessTransport) -> None:
        """Ends the program, whatever it is doing, and waits until nothing of it is left."""
        pid = transport.get_pid()
        try:
            for _ in range(_END_ATTEMPTS):
                # Signalled directly: `transport.kill` polls first, which would take the status of a
                # process that has just ended away from asyncio's watcher.
                with suppress(ProcessLookupError, PermissionError):
                    self._end(pid, transport.get_returncode() is not None)
                await asyncio.wait({guest.closed}, timeout=_END_SECONDS)
                if guest.closed.done():
                    break
        finally:
            transport.close()

    def _judge(
        self, guest: _Guest, status: int | None, timed_out: bool, limits: Limits
    ) -> Execution:
        log, _, report = guest.report.partition(_STARTED)
        if not guest.started.done():
            how = "did not start in time" if timed_out else f"ended with status {status}"
            return Execution(
                Outcome.INFRASTRUCTURE,
                "",
                f"the sandbox {how}, before the program: {_summary(log)}",
            )
        outcome, error = self._outcome(guest, report, status, timed_out, limits)
        # A limit may cut a character in two: its first bytes are dropped, not replaced.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        stdout = decoder.decode(bytes(guest.stdout), final=not guest.overflowed)
        ended = guest.over.result() if guest.over.done() else time.perf_counter()
        return Execution(outcome, stdout, error, ended - guest.started.result())

    def _outcome(
        self,
        guest: _Guest,
        report: bytes,
        status: int | None,
        timed_out: bool,
        limits: Limits,
    ) -> tuple[Outcome, str]:
        if guest.overflowed:
            error = f"output limit: the program wrote more than {limits.output_bytes} bytes"
            return Outcome.OUTPUT_LIMIT, error
        if timed_out:
            error = f"time limit: the program ran for more than {limits.wall_seconds:g} s"
            return Outcome.TIMEOUT, error
        record = report.partition(b"\0")[2].partition(b"\0")[0].decode("utf-8", "replace")
        name, _, error = record.partition("\n")
        if name == Outcome.MEMORY_LIMIT:
            error = f"MemoryError: the program needed more than {limits.memory_mb} MiB"
        if name == Outcome.BLOCKED:
            error = f"{error} (the sandbox does not allow it)"
        if name in Outcome and name != Outcome.OK:
            return Outcome(name), error
        if not status:
            return Outcome.OK, ""
        number = self._signal(status)
        if number == signal.SIGSYS:
            return Outcome.BLOCKED, "the program used a system call that is not allowed"
        if number:
            return Outcome.RUNTIME_ERROR, f"ended by {signal.Signals(number).name}"
        return Outcome.RUNTIME_ERROR, f"exit status {status}"

    def close(self) -> None:
        """Refuses further programs. May be called again."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _summary(log: bytes) -> str:
    """The last lines of `log` that say something, in one line."""
    lines = log.decode("utf-8", "replace").splitlines()
    said = [line for line in lines if line.strip() and "no version information" not in line]
    return "; ".join(said[-2:])[:2000] or "it wrote nothing"


def _drive(running: Coroutine[Any, Any, Execution]) -> Execution:
    # With a factory, the runner leaves the thread's current event loop as it is.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(running)
