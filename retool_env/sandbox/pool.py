"""A pool of warm guests: every program runs in a fresh process of a guest.

A guest is a process that forks one process for each program. There are two kinds of guests. Guests
of one kind have loaded the packages. Guests of the other kind have not; they serve programs that do
not name a package, and their forks start and end several times as fast. While the pool is idle,
guests fork a few spare processes ahead of their programs. The caller talks to a process directly,
without a thread or a queue in between, so any thread or event loop can call.
"""

import errno
import os
import threading
import weakref
from collections.abc import Callable

from retool_env.execution import (
    DEFAULT_LIMITS,
    Execution,
    Files,
    Limits,
    Outcome,
    SandboxUnavailable,
    advised,
)
from retool_env.sandbox.command import Command
from retool_env.sandbox.drivers import Driver
from retool_env.sandbox.guests import Guest, end_later, start_guest
from retool_env.sandbox.job import Job
from retool_env.sandbox.slots import Slots

_BUSY_SECONDS = 0.002
_SPARES = 2  # spare processes for each guest
_CLOSED = Execution(Outcome.INFRASTRUCTURE, "", "the program was not run: the sandbox was closed")

_all_pools: "weakref.WeakSet[Pool]" = weakref.WeakSet()


def put_away(job: Job) -> None:
    """Closes a job's descriptors, which ends a process that is still there.

    The function takes no lock, because the garbage collector may call it at any point.

    Args:
        job: The job.
    """
    job.guest.jobs.discard(job)
    job.close()


def _end_dropped(guests: list[Guest], spares: list[Job]) -> None:
    """Ends the guests and spare processes of a pool that was dropped without being closed."""
    for guest in guests:
        guest.control.close()
    for job in spares:
        job.close()
    for guest in guests:
        end_later(guest)


def _begin_all_anew() -> None:
    # In a forked copy of this process: other threads may have held the pools' locks and slots.
    for pool in _all_pools:
        pool.begin_anew()


os.register_at_fork(after_in_child=_begin_all_anew)


class Pool:
    """Guests and their spare processes. A guest that dies is started again.

    Args:
        concurrency: The number of programs that run at once.
        number_of_guests: The number of guests of each kind.
        packages: The packages that one kind of guest loads.
        command: Makes the command that starts a guest with these packages.
    """

    def __init__(
        self,
        concurrency: int,
        number_of_guests: int,
        packages: tuple[str, ...],
        command: Callable[[tuple[str, ...]], Command],
    ) -> None:
        self.guests: list[Guest] = []
        """The guests, alternating between the kind without packages and the kind with packages."""
        self.spares: list[Job] = []
        """The spare processes, which are forked ahead of their programs."""
        self.closed = False
        """Whether the guests have ended for good."""
        self._concurrency = concurrency
        self._number_of_guests = number_of_guests
        self._packages = packages
        self._kinds = [(), packages] if packages else [()]
        self._command = command
        # Read once: the call takes as long as making a process's pipes.
        self._processors = os.cpu_count() or 1
        self.begin_anew()
        self._dropped = weakref.finalize(self, _end_dropped, self.guests, self.spares)
        self._dropped.atexit = False  # the guests end with this process
        _all_pools.add(self)

    def begin_anew(self) -> None:
        """Makes new slots and a new lock, all free."""
        self.slots = Slots(self._concurrency)
        """The slots of programs that run at once."""
        self.lock = threading.RLock()
        """Held while guests and spare processes are read or changed."""

    def start(self) -> None:
        """Starts the guests.

        Raises:
            SandboxUnavailable: The command cannot be run.
            OSError: This process has no descriptors left.
        """
        with self.lock:
            for packages in self._kinds * self._number_of_guests:
                self.guests.append(start_guest(self._command(packages), packages))

    def make_ready(self) -> None:
        """Forks all spare processes."""
        for packages in self._kinds * (_SPARES * self._number_of_guests):
            self._make_spare(DEFAULT_LIMITS, packages)

    def take(self, limits: Limits, code: str, session: bool = False) -> Job | Execution:
        """Returns a process for a program: a spare process or a new process.

        Args:
            limits: The limits of the program.
            code: The program's text.
            session: Whether the program is the first block of a session.

        Returns:
            The process, or an infrastructure failure that says why no process is available.
        """
        # A wrong guess costs only time: every guest can import the packages.
        needs = session or any(name in code for name in self._packages)
        packages = self._packages if needs else ()
        with self.lock:
            if self.closed:
                return _CLOSED
            try:
                self._renew()
                spare = None if session else self._spare(limits, packages)
                return spare or self._new(limits, packages, session)
            except (OSError, SandboxUnavailable) as error:
                why = f"the program was not run: {advised(error)}"
                return Execution(Outcome.INFRASTRUCTURE, "", why)

    def put_back(self, job: Job, limits: Limits) -> None:
        """Closes a process whose program is over, and forks a spare process in its place.

        Args:
            job: The process.
            limits: The limits of its program; the next program is expected to have the same limits.
        """
        put_away(job)
        self._make_spare(limits, job.guest.packages)

    async def drive(
        self,
        driver: Driver,
        job: Job,
        code: str,
        stdin: str = "",
        display: bool = False,
        files: Files | None = None,
    ) -> Execution:
        """Runs a program, or the next block of a session, in a process of this pool.

        A cancellation or an interrupt ends the process, and is raised when the process is gone.

        Args:
            driver: How the caller waits.
            job: The process.
            code: The program's text.
            stdin: The text on the program's standard input.
            display: Whether the value of a last expression is shown.
            files: The files that go with the program and come back. `None`: no files.
        """
        try:
            while not self._hand_over(job):
                await driver.sleep(_BUSY_SECONDS)
            job.begin(code, stdin, display, files)
            await driver.finish(job, self._lapse)
        except BaseException:
            job.kill()
            job.session = False  # wait for the end of the process, not of the block
            job.finished = job.gone
            await driver.finish(job, self._lapse)
            raise
        return self._conclude(job, files)

    def close(self) -> None:
        """Ends all guests and their programs; programs in flight become infrastructure failures."""
        with self.lock:
            self.closed = True
            self._dropped.detach()
            guests, self.guests = self.guests, []
            spares, self.spares = self.spares, []
        for guest in guests:
            guest.control.close()  # all at once, so that their ends overlap
        for guest in guests:
            guest.end()
        for job in spares:
            job.close()

    def _spare(self, limits: Limits, packages: tuple[str, ...]) -> Job | None:
        for job in self.spares:
            if job.ready < 2:
                job.listen()
                job.guest.warm |= job.ready > 0
        wanted = packages, limits
        alike = [job for job in self.spares if (job.guest.packages, job.limits) == wanted]
        # A spare process that is still warming up beats a fork requested now.
        usable = [job for job in alike if job.guest.warm and not job.gone]
        if not usable:
            return None
        job = max(usable, key=lambda job: job.ready)
        self.spares.remove(job)
        return job

    def _new(self, limits: Limits, packages: tuple[str, ...], session: bool) -> Job:
        job = Job(self._least_busy(packages), limits, session)
        job.guest.jobs.add(job)
        return job

    def _least_busy(self, packages: tuple[str, ...]) -> Guest:
        guests = (guest for guest in self.guests if guest.packages == packages)
        return min(guests, key=lambda guest: len(guest.jobs))

    def _make_spare(self, limits: Limits, packages: tuple[str, ...]) -> None:
        """Forks a spare process for the next program with these limits."""
        with self.lock:
            if self.closed:
                return
            alike = [spare for spare in self.spares if spare.guest.packages == packages]
            stale = [spare for spare in alike if spare.limits != limits]
            # The first replaces the used process, the second a stale spare process.
            made = [self._new_spare(limits, packages) for _ in range(2 if stale else 1)]
            fresh = [spare for spare in alike if spare.limits == limits]
            fresh += [spare for spare in made if spare]
            surplus = len(stale) + len(fresh) - _SPARES * self._number_of_guests
            for spare in [*stale, *fresh][: max(surplus, 0)]:
                self.spares.remove(spare)
                put_away(spare)

    def _new_spare(self, limits: Limits, packages: tuple[str, ...]) -> Job | None:
        guest = self._least_busy(packages)
        running = sum(len(guest.jobs) for guest in self.guests) - len(self.spares)
        try:
            job = Job(guest, limits, spare=True, eager=running < self._processors / 2)
        except OSError:  # no descriptor is left
            return None
        try:
            job.hand_over()
        except OSError:  # the guest is busy or gone: the next program requests its own process
            job.close()
            return None
        guest.jobs.add(job)
        self.spares.append(job)
        return job

    def _renew(self) -> None:
        """Replaces guests that have died."""
        for index, guest in enumerate(self.guests):
            if not guest.alive:
                for job in [job for job in self.spares if job.guest is guest]:
                    self.spares.remove(job)
                    job.close()
                if not guest.condemned:
                    guest.end()
                self.guests[index] = start_guest(self._command(guest.packages), guest.packages)

    def _lapse(self, job: Job) -> float:
        """Tells a job that its patience is over; returns the seconds until the next call."""
        left = job.lapse()
        if job.hung and not job.gone:
            self._condemn(job.guest)
        return left

    def _condemn(self, guest: Guest) -> None:
        """Ends a guest that is dead or disobeys; the next program starts a new guest."""
        with self.lock:
            if guest.condemned or guest not in self.guests:
                return
            guest.condemned = True
        end_later(guest)

    def _conclude(self, job: Job, files: Files | None) -> Execution:
        if files is not None:
            files.fetched = job.fetched()
        if job.lost:
            if not job.refused:
                self._condemn(job.guest)
            closed = "the sandbox was closed" if self.closed else ""
            job.fail(closed or job.guest.log() or "its guest ended")
        execution = job.execution()
        if files is not None:
            files.reported = job.reported
        return execution

    def _hand_over(self, job: Job) -> bool:
        """Asks the guest to fork the process, at most once; `False` if the guest is busy."""
        try:
            job.hand_over()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.ETOOMANYREFS, errno.ENOBUFS):
                return False
            job.fail(job.guest.log() or f"its guest is gone: {error}")
        return True
