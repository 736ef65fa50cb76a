"""Programs and sessions on this machine, in a pool of guests.

A program is tried again, up to three times in all, when the sandbox fails: a guest dies, say.

Invariant: when `run` or `run_async` returns, nothing of the program is left; a cancelled call
returns when the program has ended, and gives its place to another program only then. Each program
has exactly one `Execution`.
"""

import dataclasses
import os
import re
import resource
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

from retool_env.errors import SettingsError
from retool_env.execution import (
    DEFAULT_LIMITS,
    Execution,
    Files,
    Limits,
    Outcome,
    SandboxUnavailable,
    advised,
    check_program,
    check_whole_number,
)
from retool_env.sandbox.command import Command
from retool_env.sandbox.drivers import LOOP, THREAD, Driver, complete
from retool_env.sandbox.job import Job
from retool_env.sandbox.pool import Pool, put_away

_ATTEMPTS = 3
_RETRY_SECONDS = 0.1
_MOST_GUESTS = 8
_MOST_PROGRAMS = 256
_DESCRIPTORS = 4  # that a program in flight has here
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_SESSION_CLOSED = Execution(
    Outcome.INFRASTRUCTURE, "", "the program was not run: the session was closed"
)
_SESSION_ENDED = "the session was ended by that, its variables are lost"


class PooledSandbox:
    """A sandbox of warm guests. Its guests are started at once, and again when they die.

    Args:
        concurrency: How many programs run at once; further ones wait, first come, first served.
            `None`: 256, or what the limit on open files leaves room for.
        guests: How many guests there are of each kind: with the packages and without. `None`: one
            a processor, eight at most.
        packages: What the one kind loads.

    Raises:
        SandboxUnavailable: It cannot work here; the message says what is missing.
        ValueError: A number is not whole or below one, or `packages` is not a list of names.
    """

    pool: Pool
    """Its guests, and the places of programs."""

    def __init__(
        self, concurrency: int | None, guests: int | None, packages: Sequence[str]
    ) -> None:
        for name, value in (("concurrency", concurrency), ("guests", guests)):
            if value is not None:
                check_whole_number(name, value)
        names = isinstance(packages, Sequence) and not isinstance(packages, str)
        if not names or not all(isinstance(n, str) and _NAME.fullmatch(n) for n in packages):
            raise SettingsError(
                f"packages must be a list of names, without versions, as ['numpy'], not {packages!r}"
            )
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        room = max((files - 256) // _DESCRIPTORS, 8)
        self.concurrency = concurrency or min(_MOST_PROGRAMS, room)
        self.number_of_guests = guests or min(os.cpu_count() or 1, _MOST_GUESTS)
        self.packages = tuple(packages)

    def _begin(
        self, command: Callable[[tuple[str, ...]], Command], diagnose: Callable[[str], str]
    ) -> None:
        """Starts the guests.

        Args:
            command: Makes the command that starts a guest with these packages. A reference from it
                to this sandbox would keep the guests alive when the sandbox is dropped.
            diagnose: Turns a failure into an error message with advice.

        Raises:
            SandboxUnavailable: A probe program did not run.
        """
        self.pool = Pool(self.concurrency, self.number_of_guests, self.packages, command)
        try:
            self.pool.start()
            execution = self.run("print(6 * 7)", Limits(wall_seconds=60))
            if execution.outcome is not Outcome.OK or execution.stdout != "42\n":
                raise SandboxUnavailable(diagnose(execution.error or repr(execution.stdout)))
            self.pool.make_ready()
        except (OSError, MemoryError) as error:
            self.close()
            raise SandboxUnavailable(diagnose(advised(error))) from error
        except BaseException:
            self.close()
            raise

    def run(
        self,
        code: str,
        limits: Limits = DEFAULT_LIMITS,
        *,
        stdin: str = "",
        display: bool = False,
        files: Files | None = None,
    ) -> Execution:
        """Runs `code` to its end in the calling thread.

        Raises:
            RuntimeError: The sandbox is closed.
            TypeError: An argument is not of its type.
            ValueError: `stdin` or `files` are larger than `limits.tmp_mb`.
        """
        return complete(self._run(THREAD, code, limits, stdin, display, files))

    async def run_async(
        self,
        code: str,
        limits: Limits = DEFAULT_LIMITS,
        *,
        stdin: str = "",
        display: bool = False,
        files: Files | None = None,
    ) -> Execution:
        """Runs `code` to its end; cancelling this ends the program.

        Raises:
            RuntimeError: The sandbox is closed.
            TypeError: An argument is not of its type.
            ValueError: `stdin` or `files` are larger than `limits.tmp_mb`.
        """
        return await self._run(LOOP, code, limits, stdin, display, files)

    def session(self, limits: Limits = DEFAULT_LIMITS, *, display: bool = False) -> "PooledSession":
        """Begins a session: blocks of code that share a process.

        Raises:
            RuntimeError: The sandbox is closed.
            TypeError: An argument is not of its type.
        """
        _check_open(self.pool)
        check_program("", limits, display=display)
        return PooledSession(self.pool, limits, display)

    def close(self) -> None:
        """Ends all guests and what they run; programs in flight end as infrastructure failures."""
        self.pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _run(
        self,
        driver: Driver,
        code: str,
        limits: Limits,
        stdin: str,
        display: bool,
        files: Files | None,
    ) -> Execution:
        pool = self.pool
        _check_open(pool)
        check_program(code, limits, stdin, display, files)

        async def attempt() -> Execution:
            job = pool.take(limits, code)
            if isinstance(job, Execution):
                return job
            try:
                return await pool.drive(driver, job, code, stdin, display, files)
            finally:
                pool.put_back(job, limits)

        return await _tried(driver, pool, attempt, _ATTEMPTS, lambda: pool.closed)


class PooledSession:
    """A `Session` in a process of a pool. Made by `PooledSandbox.session`.

    One that is dropped without being closed ends its process as well.
    """

    def __init__(self, pool: Pool, limits: Limits, display: bool) -> None:
        self._pool = pool
        self._limits = limits
        self._display = display
        self._job: Job | None = None
        self._put_away: Callable[[], object] | None = None  # once, or when this is dropped
        self._running = self._closed = False
        self._lock = threading.Lock()  # of these: `close` comes from any thread

    @property
    def pid(self) -> int | None:
        """The id of the session's process on this machine; `None` while there is no process."""
        return self._job.pid if self._job is not None else None

    def run(self, code: str) -> Execution:
        """Runs one block in the calling thread.

        Raises:
            RuntimeError: The session or its sandbox is closed, or another block of it runs.
            TypeError: `code` is not a `str`.
        """
        return complete(self._run(THREAD, code))

    async def run_async(self, code: str) -> Execution:
        """Runs one block; cancelling this ends the session's process.

        Raises:
            RuntimeError: The session or its sandbox is closed, or another block of it runs.
            TypeError: `code` is not a `str`.
        """
        return await self._run(LOOP, code)

    def close(self) -> None:
        """Ends the process. May be called again, and while a block runs.

        That block then ends as an infrastructure failure which says that the session was closed.
        """
        with self._lock:
            self._closed = True
            if not self._running:
                self._drop()
            elif self._job is not None:  # whoever drives it sees its end, and puts it away
                self._job.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _run(self, driver: Driver, code: str) -> Execution:
        pool = self._pool

        async def attempt() -> Execution:
            job = self._take(code)
            if isinstance(job, Execution):
                return job
            return await pool.drive(driver, job, code, display=self._display)

        self._enter(code)
        try:
            # After the first block there are variables to lose.
            most = _ATTEMPTS if self._job is None else 1
            return self._judge(
                await _tried(driver, pool, attempt, most, lambda: self._closed or pool.closed)
            )
        finally:
            self._leave()

    def _enter(self, code: str) -> None:
        check_program(code, self._limits)
        _check_open(self._pool)
        with self._lock:
            if self._closed:
                raise RuntimeError("the session is closed; begin a new one")
            if self._running:
                raise RuntimeError(
                    "another block of this session is running: its blocks take turns"
                )
            self._running = True

    def _take(self, code: str) -> Job | Execution:
        with self._lock:
            if self._closed:
                return _SESSION_CLOSED
            if self._job is not None and self._job.gone:
                self._drop()
        taken = self._job or self._pool.take(self._limits, code, session=True)
        if isinstance(taken, Execution):
            return taken
        with self._lock:
            if self._job is None:
                self._job = taken
                self._put_away = weakref.finalize(self, put_away, taken)
                self._put_away.atexit = False
            return _SESSION_CLOSED if self._closed else taken

    def _judge(self, execution: Execution) -> Execution:
        """The outcome of a block, which says also whether the session has ended."""
        lives = self._job is not None and not self._job.gone
        if self._closed and self._job is not None and not lives:
            error = "the program was lost while it ran: the session was closed"
            return dataclasses.replace(
                execution, outcome=Outcome.INFRASTRUCTURE, error=error, traceback=""
            )
        if lives or execution.outcome is Outcome.INFRASTRUCTURE:
            return execution
        return dataclasses.replace(execution, error=f"{execution.error}; {_SESSION_ENDED}")

    def _leave(self) -> None:
        """No block runs any longer."""
        with self._lock:
            self._running = False
            if self._closed or (self._job is not None and self._job.gone):
                self._drop()

    def _drop(self) -> None:
        if self._put_away is not None:
            self._put_away()
        self._job = self._put_away = None


async def _tried(
    driver: Driver,
    pool: Pool,
    attempt: Callable[[], Awaitable[Execution]],
    most: int,
    closed: Callable[[], bool],
) -> Execution:
    """The one loop of attempts. It ends with the first attempt at which the sandbox does not fail.

    Args:
        driver: How the caller waits.
        pool: The pool. All attempts together take one of its places.
        attempt: Runs the program once.
        most: The largest number of attempts.
        closed: Whether something was closed, so that another attempt would fail as well.
    """
    await driver.acquire(pool.slots)
    try:
        for number in range(1, most):
            execution = await attempt()
            if execution.outcome is not Outcome.INFRASTRUCTURE or closed():
                return execution
            await driver.sleep(_RETRY_SECONDS * number)
        return await attempt()
    finally:
        pool.slots.release()


def _check_open(pool: Pool) -> None:
    if pool.closed:
        raise RuntimeError("the sandbox is closed; make a new one")
