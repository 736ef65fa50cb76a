"""Programs and sessions on this machine, in a pool of guests.

A program is tried up to three times if the sandbox fails, for instance because a guest dies.

Invariant: when `run` or `run_async` returns, nothing of the program is left. A cancelled call
returns when the program has ended, and only then frees its slot. Each program has exactly one
`Execution`.
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
MOST_GUESTS = 256
"""The largest number of guests of each kind: each is a process of some 60 MB."""
_MOST_GUESTS = 8
_MOST_PROGRAMS = 256
_DESCRIPTORS = 4  # in this process, for each program in flight
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_SESSION_CLOSED = Execution(
    Outcome.INFRASTRUCTURE, "", "the program was not run: the session was closed"
)
_SESSION_ENDED = "the session was ended by that, its variables are lost"


class PooledSandbox:
    """A sandbox of warm guests. Guests start at once, and again when they die.

    Args:
        concurrency: The number of programs that run at once; further programs wait, first come,
            first served. `None`: 256, or fewer if the limit on open files is low.
        guests: The number of guests of each kind, with and without the packages. `None`: one for
            each processor, at most eight.
        packages: The packages that one kind of guest loads.

    Raises:
        SandboxUnavailable: The sandbox cannot work here. The message says what is missing.
        ValueError: A number is not whole or below one, or `packages` is not a list of names.
    """

    pool: Pool
    """The guests, and the slots of programs."""
    runs_preludes = True
    """Whether a program, or a block of a session, can have a prelude (`Files.prelude`)."""

    def __init__(
        self, concurrency: int | None, guests: int | None, packages: Sequence[str]
    ) -> None:
        if concurrency is not None:
            check_whole_number("concurrency", concurrency)
        if guests is not None:
            check_whole_number("guests", guests, most=MOST_GUESTS)
        names = isinstance(packages, Sequence) and not isinstance(packages, str)
        if not names or not all(isinstance(n, str) and _NAME.fullmatch(n) for n in packages):
            raise SettingsError(
                "packages must be a list of names without versions, such as ['numpy'], not "
                f"{packages!r}"
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
            command: Makes the command that starts a guest with these packages. It must not refer to
                this sandbox, or else a sandbox that is dropped would keep its guests.
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
        except BaseException as error:
            self.close()
            if isinstance(error, OSError | MemoryError):
                raise SandboxUnavailable(diagnose(advised(error))) from error
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
        """Runs a program to its end in the calling thread.

        Args:
            code: The program's text.
            limits: The program's limits.
            stdin: The text on the program's standard input.
            display: Whether the value of a last expression is shown.
            files: The files that go with the program and come back. `None`: no files.

        Raises:
            RuntimeError: The sandbox is closed.
            TypeError: An argument has the wrong type.
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
        """Runs a program to its end; cancelling the call ends the program.

        Args:
            code: The program's text.
            limits: The program's limits.
            stdin: The text on the program's standard input.
            display: Whether the value of a last expression is shown.
            files: The files that go with the program and come back. `None`: no files.

        Raises:
            RuntimeError: The sandbox is closed.
            TypeError: An argument has the wrong type.
            ValueError: `stdin` or `files` are larger than `limits.tmp_mb`.
        """
        return await self._run(LOOP, code, limits, stdin, display, files)

    def session(self, limits: Limits = DEFAULT_LIMITS, *, display: bool = False) -> "PooledSession":
        """Begins a session: blocks of code that share a process.

        Args:
            limits: The limits of each block.
            display: Whether the value of a block's last expression is shown.

        Raises:
            RuntimeError: The sandbox is closed.
            TypeError: An argument has the wrong type.
        """
        _check_open(self.pool)
        check_program("", limits, display=display)
        return PooledSession(self.pool, limits, display)

    def close(self) -> None:
        """Ends all guests and their programs; programs in flight become infrastructure failures."""
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
    """A `Session` in a process of a pool; `PooledSandbox.session` makes it.

    A session that is dropped without `close` also ends its process.

    Args:
        pool: The pool that provides the process.
        limits: The limits of each block.
        display: Whether the value of a block's last expression is shown.
    """

    def __init__(self, pool: Pool, limits: Limits, display: bool) -> None:
        self._pool = pool
        self._limits = limits
        self._display = display
        self.reported: tuple[str, ...] | None = None  # in the last block, see `Files.reported`
        self._job: Job | None = None
        self._put_away: Callable[[], object] | None = None  # also called when this is dropped
        self._running = self._closed = False
        self._lock = threading.Lock()  # guards these fields: any thread may call `close`

    @property
    def pid(self) -> int | None:
        """The id of the session's process on this machine; `None` while there is no process."""
        return self._job.pid if self._job is not None else None

    def run(self, code: str, prelude: str = "") -> Execution:
        """Runs one block in the calling thread.

        Args:
            code: The block's text.
            prelude: Python code that the process runs before the block (see `Files.prelude`).

        Raises:
            RuntimeError: The session or its sandbox is closed, or another block of the session
                runs.
            TypeError: `code` is not a `str`.
        """
        return complete(self._run(THREAD, code, prelude))

    async def run_async(self, code: str, prelude: str = "") -> Execution:
        """Runs one block; cancelling the call ends the session's process.

        Args:
            code: The block's text.
            prelude: Python code that the process runs before the block (see `Files.prelude`).

        Raises:
            RuntimeError: The session or its sandbox is closed, or another block of the session
                runs.
            TypeError: `code` is not a `str`.
        """
        return await self._run(LOOP, code, prelude)

    def close(self) -> None:
        """Ends the process. May be called again, and while a block runs.

        A running block then becomes an infrastructure failure, which says that the session was
        closed.
        """
        with self._lock:
            self._closed = True
            if not self._running:
                self._drop()
            elif self._job is not None:  # the job's driver sees its end, and closes it
                self._job.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _run(self, driver: Driver, code: str, prelude: str) -> Execution:
        pool = self._pool
        files = Files(prelude=prelude)
        self.reported = None

        async def attempt() -> Execution:
            job = self._take(code)
            if isinstance(job, Execution):
                return job
            return await pool.drive(driver, job, code, display=self._display, files=files)

        self._enter(code)
        try:
            # After the first block there are variables to lose.
            most = _ATTEMPTS if self._job is None else 1
            done = await _tried(driver, pool, attempt, most, lambda: self._closed or pool.closed)
            self.reported = files.reported
            return self._judge(done)
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
        """The outcome of a block, with a note if the session has ended."""
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
        """Marks the end of a block."""
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
    """The only loop of attempts. It ends with the first attempt in which the sandbox does not fail.

    Args:
        driver: How the caller waits.
        pool: The pool. All attempts together take one of its slots.
        attempt: Runs the program once.
        most: The largest number of attempts.
        closed: Whether something was closed, so that another attempt would also fail.
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
