"""A pool of warm guests: every program in a fresh process of one of them.

A guest is a process that forks one for each program. There are two kinds: one has loaded the packages, and the other,
for programs that do not name them, has not: its copies are made and ended several times as fast. While there is nothing
to do, a few copies are kept ready ahead of their programs, with the first costs of a fork behind them. The caller talks
to a copy directly: there is no thread or queue between them, and any thread or event loop can call.

Invariant: when `run` or `run_async` returns, nothing of the program is left; when it is cancelled, the program has been
told to end, and its place is given to another only when it has. Each program has exactly one `Execution`.
"""

import abc
import asyncio
import dataclasses
import errno
import math
import os
import re
import resource
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from select import POLLIN, poll
from types import TracebackType
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
from retool_env.sandbox.diagnosis import not_executable
from retool_env.sandbox.guests import Guest, end_later
from retool_env.sandbox.job import Job
from retool_env.sandbox.slots import Slots

_ATTEMPTS = 3
_RETRY_SECONDS = 0.1
_BUSY_SECONDS = 0.002
_MOST_GUESTS = 8
_MOST_PROGRAMS = 256
_DESCRIPTORS = 4  # that a program in flight has here
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_POLL_SECONDS = 3600.0  # `poll` counts milliseconds in 31 bits
_SPARES = 2  # processes kept ready, a guest
_CLOSED = Execution(Outcome.INFRASTRUCTURE, "", "the program was not run: the sandbox was closed")
_SESSION_CLOSED = Execution(
    Outcome.INFRASTRUCTURE, "", "the program was not run: the session was closed"
)
_SESSION_ENDED = "the session was ended by that, its variables are lost"

_all_sandboxes: "weakref.WeakSet[PooledSandbox]" = weakref.WeakSet()


def _put_away(job: Job) -> None:
    # Without a lock: it is called also by the garbage collector, and so wherever anything is.
    job.guest.jobs.discard(job)
    job.close()


def _end_dropped(guests: list[Guest], spares: list[Job]) -> None:
    """Ends what a sandbox had that was dropped without being closed."""
    for guest in guests:
        guest.control.close()
    for job in spares:
        job.close()
    for guest in guests:
        end_later(guest)


def _begin_all_anew() -> None:
    # In a forked copy of this process, whose guests are the original's.
    for sandbox in _all_sandboxes:  # whose locks and places other threads may have held
        sandbox._begin_anew()


os.register_at_fork(after_in_child=_begin_all_anew)


class PooledSandbox(abc.ABC):
    """A sandbox of warm guests. Its guests are started at once, and again when they die.

    Args:
        concurrency: How many programs run at once; further ones wait, first come, first served.
            `None`: 256, or what the limit on open files leaves room for.
        guests: How many guests there are of each kind: with the packages and without. `None`: one a processor, eight
            at most.
        packages: What the one kind loads.

    Raises:
        SandboxUnavailable: It cannot work here; the message says what is missing.
        ValueError: A number is not whole or below one, or `packages` is not a list of names.
    """

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
        self._processors = (
            os.cpu_count() or 1
        )  # asked once: it takes as long as to make a process's pipes
        self.number_of_guests = guests or min(self._processors, _MOST_GUESTS)
        self.packages = tuple(packages)
        self._begin_anew()
        self._closed = False
        self._guests: list[Guest] = []
        self._spares: list[Job] = []
        self._dropped = weakref.finalize(self, _end_dropped, self._guests, self._spares)
        self._dropped.atexit = False  # the end of this process is theirs
        _all_sandboxes.add(self)

    def _begin_anew(self) -> None:
        self._slots = Slots(self.concurrency)
        self._lock = threading.RLock()

    @abc.abstractmethod
    def _command(
        self, packages: tuple[str, ...]
    ) -> tuple[list[str], dict[str, str], tuple[int, ...]]:
        """What starts a guest: its arguments, its environment, and descriptors it inherits, which are then closed.

        Args:
            packages: What it loads.
        """

    @abc.abstractmethod
    def _diagnose(self, failure: str) -> str:
        """What to say and to advise when programs cannot be run because of `failure`."""

    def _begin(self) -> None:
        """Starts the guests.

        Raises:
            SandboxUnavailable: A probe program did not run.
        """
        # Most programs need no package, and a process without them is made and ended several times as fast.
        kinds = [(), self.packages] if self.packages else [()]
        try:
            with self._lock:
                for packages in kinds * self.number_of_guests:
                    self._guests.append(self._start_guest(packages))
            execution = self.run("print(6 * 7)", Limits(wall_seconds=60))
            if execution.outcome is not Outcome.OK or execution.stdout != "42\n":
                raise SandboxUnavailable(self._diagnose(execution.error or repr(execution.stdout)))
            with self._lock:
                for packages in kinds * (_SPARES * self.number_of_guests):
                    self._make_spare(DEFAULT_LIMITS, packages)
        except (OSError, MemoryError) as error:
            self.close()
            raise SandboxUnavailable(self._diagnose(advised(error))) from error
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
        self._check_open()
        check_program(code, limits, stdin, display, files)
        self._slots.acquire()
        try:
            for attempt in range(_ATTEMPTS):
                if attempt:
                    time.sleep(_RETRY_SECONDS * attempt)
                job = self._take(limits, code)
                if isinstance(job, Execution):
                    execution = job
                else:
                    try:
                        execution = self._drive(job, code, stdin, display, files)
                    finally:
                        _put_away(job)
                        self._make_spare(limits, job.guest.packages)
                if execution.outcome is not Outcome.INFRASTRUCTURE or self._closed:
                    break
        finally:
            self._slots.release()
        return execution

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
        self._check_open()
        check_program(code, limits, stdin, display, files)
        await self._slots.acquire_async()
        try:
            for attempt in range(_ATTEMPTS):
                if attempt:
                    await asyncio.sleep(_RETRY_SECONDS * attempt)
                job = self._take(limits, code)
                if isinstance(job, Execution):
                    execution = job
                else:
                    try:
                        execution = await self._watch(job, code, stdin, display, files)
                    finally:
                        _put_away(job)
                        self._make_spare(limits, job.guest.packages)
                if execution.outcome is not Outcome.INFRASTRUCTURE or self._closed:
                    break
        finally:
            self._slots.release()
        return execution

    def session(self, limits: Limits = DEFAULT_LIMITS, *, display: bool = False) -> "PooledSession":
        """Begins a session: blocks of code that share a process.

        Raises:
            RuntimeError: The sandbox is closed.
            TypeError: An argument is not of its type.
        """
        self._check_open()
        check_program("", limits, display=display)
        return PooledSession(self, limits, display)

    def close(self) -> None:
        """Ends all guests and what they run; programs in flight end as infrastructure failures."""
        with self._lock:
            self._closed = True
            self._dropped.detach()
            guests, self._guests = self._guests, []
            spares, self._spares = self._spares, []
        for guest in guests:
            guest.control.close()  # all at once, so that the wait is that for one
        for guest in guests:
            guest.end()
        for job in spares:
            job.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the sandbox is closed; make a new one")

    def _start_guest(self, packages: tuple[str, ...]) -> Guest:
        with ExitStack() as opened, ExitStack() as theirs:
            arguments, environment, descriptors = self._command(packages)
            for descriptor in descriptors:
                theirs.callback(os.close, descriptor)
            ours, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            opened.enter_context(ours)
            theirs.enter_context(requests)
            # In memory: nothing is left behind, however this process ends.
            log = os.memfd_create("log")
            opened.callback(os.close, log)
            for descriptor in (pipe := os.pipe()):
                theirs.callback(os.close, descriptor)
            try:
                process = subprocess.Popen(
                    arguments,
                    stdin=requests,
                    stdout=pipe[1],  # unread
                    stderr=log,
                    env=environment,
                    pass_fds=descriptors,
                    start_new_session=True,  # Ctrl-C is for us; we end the guests
                )
            except OSError as error:
                why = f"{advised(error)}{not_executable(arguments[0])}"
                raise SandboxUnavailable(f"cannot start {arguments[0]}: {why}") from error
            opened.pop_all()
        return Guest(process, ours, log, packages)

    def _take(self, limits: Limits, code: str, session: bool = False) -> Job | Execution:
        """A process for a program: one of those kept ready, or a new one; or why there is none."""
        # A guess, which decides only over speed: a program can import them anywhere.
        needs = session or any(name in code for name in self.packages)
        packages = self.packages if needs else ()
        with self._lock:
            if self._closed:
                return _CLOSED
            try:
                self._renew()
                spare = None if session else self._spare(limits, packages)
                return spare or self._new(limits, packages, session)
            except (OSError, SandboxUnavailable) as error:
                why = f"the program was not run: {advised(error)}"
                return Execution(Outcome.INFRASTRUCTURE, "", why)

    def _spare(self, limits: Limits, packages: tuple[str, ...]) -> Job | None:
        for job in self._spares:
            if job.ready < 2:
                job.listen()
                job.guest.warm |= job.ready > 0
        # One that is not ready yet will be before one that is asked for only now.
        usable = [
            job
            for job in self._spares
            if job.guest.warm
            and not job.gone
            and job.guest.packages == packages
            and job.limits == limits
        ]
        if not usable:
            return None
        job = max(usable, key=lambda job: job.ready)
        self._spares.remove(job)
        return job

    def _new(self, limits: Limits, packages: tuple[str, ...], session: bool) -> Job:
        job = Job(self._least_busy(packages), limits, session)
        job.guest.jobs.add(job)
        return job

    def _least_busy(self, packages: tuple[str, ...]) -> Guest:
        guests = (guest for guest in self._guests if guest.packages == packages)
        return min(guests, key=lambda guest: len(guest.jobs))

    def _make_spare(self, limits: Limits, packages: tuple[str, ...]) -> None:
        """Keeps a process ready for the next program with such limits."""
        with self._lock:
            if self._closed:
                return
            alike = [spare for spare in self._spares if spare.guest.packages == packages]
            stale = [spare for spare in alike if spare.limits != limits]
            # One takes the place of that which was used, and one that of a stale one.
            made = [self._new_spare(limits, packages) for _ in range(2 if stale else 1)]
            fresh = [spare for spare in alike if spare.limits == limits]
            fresh += [spare for spare in made if spare]
            surplus = len(stale) + len(fresh) - _SPARES * self.number_of_guests
            for spare in [*stale, *fresh][: max(surplus, 0)]:
                self._spares.remove(spare)
                _put_away(spare)

    def _new_spare(self, limits: Limits, packages: tuple[str, ...]) -> Job | None:
        guest = self._least_busy(packages)
        running = sum(len(each.jobs) for each in self._guests) - len(self._spares)
        try:
            job = Job(guest, limits, spare=True, eager=running < self._processors / 2)
        except OSError:  # no more descriptors
            return None
        try:
            job.hand_over()
        except OSError:  # the guest is busy, or gone: the program will ask for itself
            job.close()
            return None
        guest.jobs.add(job)
        self._spares.append(job)
        return job

    def _renew(self) -> None:
        """Replaces guests that have died."""
        for index, guest in enumerate(self._guests):
            if not guest.alive:
                for job in [job for job in self._spares if job.guest is guest]:
                    self._spares.remove(job)
                    job.close()
                if not guest.condemned:
                    guest.end()
                self._guests[index] = self._start_guest(guest.packages)

    def _lapse(self, job: Job) -> float:
        """Its patience is over; returns the seconds that it is given."""
        left = job.lapse()
        if job.hung and not job.gone:
            self._condemn(job.guest)
        return left

    def _condemn(self, guest: Guest) -> None:
        """Ends a guest that is dead or does not do what it is told; the next program starts another."""
        with self._lock:
            if guest.condemned or guest not in self._guests:
                return
            guest.condemned = True
        end_later(guest)

    def _conclude(self, job: Job, files: Files | None) -> Execution:
        if files is not None:
            files.fetched = job.fetched()
        if job.lost:
            if not job.refused:
                self._condemn(job.guest)
            closed = "the sandbox was closed" if self._closed else ""
            job.fail(closed or job.guest.log() or "its guest ended")
        return job.execution()

    def _drive(
        self,
        job: Job,
        code: str,
        stdin: str = "",
        display: bool = False,
        files: Files | None = None,
    ) -> Execution:
        """Runs a program in this thread."""
        try:
            while not self._hand_over(job):
                time.sleep(_BUSY_SECONDS)
            job.begin(code, stdin, display, files)
            self._wait(job)
        except BaseException:
            job.kill()
            job.session = False  # its end is waited for, not that of the block
            job.finished = job.gone
            self._wait(job)
            raise
        return self._conclude(job, files)

    def _wait(self, job: Job) -> None:
        deadline = time.monotonic() + job.patience()
        while not job.finished:
            poller = poll()
            for descriptor, events in job.interests().items():
                poller.register(descriptor, events)
            left = deadline - time.monotonic()
            # A program that keeps us busy does not put off its end by that.
            if poller.poll(math.ceil(1000 * min(max(left, 0.0), _POLL_SECONDS))):
                job.step()
            if not job.finished and time.monotonic() >= deadline:
                deadline = time.monotonic() + self._lapse(job)

    async def _watch(
        self,
        job: Job,
        code: str,
        stdin: str = "",
        display: bool = False,
        files: Files | None = None,
    ) -> Execution:
        """Runs a program from an event loop."""
        watch = _Watch(job, self._lapse)
        try:
            while not self._hand_over(job):
                await asyncio.sleep(_BUSY_SECONDS)
            job.begin(code, stdin, display, files)
            await watch.finished()
        except BaseException:
            job.kill()
            job.session = False
            job.finished = job.gone
            await watch.finished()
            raise
        finally:
            watch.stop()
        return self._conclude(job, files)

    def _hand_over(self, job: Job) -> bool:
        """Asks the guest for the process, if that has not been done; `False` if the guest is busy."""
        try:
            job.hand_over()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.ETOOMANYREFS, errno.ENOBUFS):
                return False
            job.fail(job.guest.log() or f"its guest is gone: {error}")
        return True


class _Watch:
    """Drives a job from the callbacks of an event loop.

    Args:
        job: It.
        lapse: Called when its patience is over; gives the seconds until it is called again.
    """

    def __init__(self, job: Job, lapse: Callable[[Job], float]) -> None:
        self._job = job
        self._lapse = lapse
        self._loop = asyncio.get_running_loop()
        self._watched: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[None] | None = None

    async def finished(self) -> None:
        """Waits until the job is finished."""
        self._over = self._loop.create_future()
        self._advance()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._job.patience(), self._on_timer)
        await self._over

    def stop(self) -> None:
        """Looks no further."""
        for descriptor in list(self._watched):
            self._forget(descriptor)
        if self._timer is not None:
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
        if job.finished and self._over is not None and not self._over.done():
            self._over.set_result(None)

    def _forget(self, descriptor: int) -> None:
        reading = self._watched.pop(descriptor) == POLLIN
        (self._loop.remove_reader if reading else self._loop.remove_writer)(descriptor)

    def _on_timer(self) -> None:
        if not self._job.finished:
            left = self._lapse(self._job)
            self._advance()
            self._timer = self._loop.call_later(left, self._on_timer)


class PooledSession:
    """A `Session` in a process of a pool. Made by `PooledSandbox.session`.

    One that is dropped without being closed ends its process as well.
    """

    def __init__(self, sandbox: PooledSandbox, limits: Limits, display: bool) -> None:
        self._sandbox = sandbox
        self._limits = limits
        self._display = display
        self._job: Job | None = None
        self._put_away: Callable[[], object] | None = None  # once, or when this is dropped
        self._running = self._closed = False
        self._lock = threading.Lock()  # of these: `close` comes from any thread

    def run(self, code: str) -> Execution:
        """Runs one block in the calling thread.

        Raises:
            RuntimeError: The session or its sandbox is closed, or another block of it runs.
            TypeError: `code` is not a `str`.
        """
        sandbox = self._sandbox
        self._enter(code)
        try:
            sandbox._slots.acquire()
            try:
                for attempt in self._attempts():
                    if attempt:
                        time.sleep(_RETRY_SECONDS * attempt)
                    execution = self._current(code)
                    if isinstance(execution, Job):
                        execution = sandbox._drive(execution, code, display=self._display)
                    if self._is_final(execution):
                        break
                return self._leave(execution)
            finally:
                sandbox._slots.release()
        finally:
            self._stop()

    async def run_async(self, code: str) -> Execution:
        """Runs one block; cancelling this ends the session's process.

        Raises:
            RuntimeError: The session or its sandbox is closed, or another block of it runs.
            TypeError: `code` is not a `str`.
        """
        sandbox = self._sandbox
        self._enter(code)
        try:
            await sandbox._slots.acquire_async()
            try:
                for attempt in self._attempts():
                    if attempt:
                        await asyncio.sleep(_RETRY_SECONDS * attempt)
                    execution = self._current(code)
                    if isinstance(execution, Job):
                        execution = await sandbox._watch(execution, code, display=self._display)
                    if self._is_final(execution):
                        break
                return self._leave(execution)
            finally:
                sandbox._slots.release()
        finally:
            self._stop()

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _enter(self, code: str) -> None:
        check_program(code, self._limits)
        self._sandbox._check_open()
        with self._lock:
            if self._closed:
                raise RuntimeError("the session is closed; begin a new one")
            if self._running:
                raise RuntimeError(
                    "another block of this session is running: its blocks take turns"
                )
            self._running = True

    def _attempts(self) -> range:
        """Numbers of the attempts at a block; after the first block there are variables to lose."""
        return range(_ATTEMPTS if self._job is None else 1)

    def _is_final(self, execution: Execution) -> bool:
        """Whether the block is not to be tried again."""
        failed = execution.outcome is Outcome.INFRASTRUCTURE
        return not failed or self._closed or self._sandbox._closed

    def _current(self, code: str) -> Job | Execution:
        with self._lock:
            if self._closed:
                return _SESSION_CLOSED
            if self._job is not None and self._job.gone:
                self._drop()
        taken = self._job or self._sandbox._take(self._limits, code, session=True)
        if isinstance(taken, Execution):
            return taken
        with self._lock:
            if self._job is None:
                self._job = taken
                self._put_away = weakref.finalize(self, _put_away, taken)
                self._put_away.atexit = False
            return _SESSION_CLOSED if self._closed else taken

    def _leave(self, execution: Execution) -> Execution:
        lives = self._job is not None and not self._job.gone
        if self._closed and self._job is not None and not lives:
            error = "the program was lost while it ran: the session was closed"
            return dataclasses.replace(
                execution, outcome=Outcome.INFRASTRUCTURE, error=error, traceback=""
            )
        if lives or execution.outcome is Outcome.INFRASTRUCTURE:
            return execution
        return dataclasses.replace(execution, error=f"{execution.error}; {_SESSION_ENDED}")

    def _stop(self) -> None:
        """No block runs any longer."""
        with self._lock:
            self._running = False
            if self._closed or (self._job is not None and self._job.gone):
                self._drop()

    def _drop(self) -> None:
        if self._put_away is not None:
            self._put_away()
        self._job = self._put_away = None
