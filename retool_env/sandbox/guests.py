"""A guest, seen from the host: a process that forks one for each program."""

import os
import socket
import subprocess
import threading
import weakref
from contextlib import ExitStack, suppress
from typing import Protocol

from retool_env.execution import SandboxUnavailable, advised
from retool_env.sandbox.command import Command
from retool_env.sandbox.diagnosis import last_words, not_executable

_END_ATTEMPTS = 100
_END_SECONDS = 0.05
_LOG_BYTES = 4096

_all_guests: "weakref.WeakSet[Guest]" = weakref.WeakSet()


class Child(Protocol):
    """What a guest has forked, or is about to: a program's process."""

    gone: bool
    """Whether it and all that it started are gone."""

    def close(self) -> None:
        """Close its descriptors."""
        ...


class Guest:
    """A process that forks programs, seen from the host.

    Args:
        process: It.
        control: The socket of requests to it.
        log: Descriptor of the file in memory to which it writes what goes wrong.
        packages: What it has loaded beyond the standard library.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        log: int,
        packages: tuple[str, ...],
    ) -> None:
        self.process = process
        self.packages = packages
        self.control = control
        self.jobs: set[Child] = set()
        """What it runs or keeps ready."""
        self.warm = False
        """Whether it has loaded its packages."""
        self.condemned = False
        """Whether it is to be ended, since it does not do what it is told."""
        self._log = log
        self._last_words = ""
        self.ending = threading.Lock()
        """Held while the log is read or closed."""
        _all_guests.add(self)

    @property
    def alive(self) -> bool:
        """Whether it can be given programs."""
        return not self.condemned and self.process.poll() is None

    def log(self) -> str:
        """The last lines of what went wrong, as one; empty if nothing did."""
        with self.ending:
            return self._last_words if self._log < 0 else self._read_log()

    def _read_log(self) -> str:
        size = os.fstat(self._log).st_size
        text = os.pread(self._log, _LOG_BYTES, max(size - _LOG_BYTES, 0)).decode("utf-8", "replace")
        return last_words(text)

    def end(self) -> None:
        """Ends it and all that it runs, and waits for that. May be called again."""
        self.control.close()  # a guest in good health ends by itself
        for attempt in range(_END_ATTEMPTS):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_SECONDS)
                break
            # Asked again and again, since a jail in the making does not hear it. Were nsjail itself killed, what
            # it has begun could outlive it: the last resort.
            last = attempt > _END_ATTEMPTS // 2
            (self.process.kill if last else self.process.terminate)()
        with self.ending:
            if self._log >= 0:
                self._last_words = self._read_log()
                os.close(self._log)
                self._log = -1

    def abandon(self) -> None:
        """In a forked copy of this process: closes what is the original's."""
        self.ending = threading.Lock()  # another thread may have held it
        self.control.close()
        for job in self.jobs:
            job.close()
            job.gone = True


def start_guest(command: Command, packages: tuple[str, ...]) -> Guest:
    """Starts a guest.

    Args:
        command: The command that starts the guest.
        packages: The packages that the guest loads.

    Raises:
        SandboxUnavailable: The command cannot be run.
        OSError: This process has no descriptors left.
    """
    with ExitStack() as opened, ExitStack() as theirs:
        for descriptor in command.descriptors:
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
                command.arguments,
                stdin=requests.fileno(),
                stdout=pipe[1],  # unread
                stderr=log,
                env=command.environment,
                pass_fds=command.descriptors,
                start_new_session=True,  # Ctrl-C is for us; we end the guests
            )
        except OSError as error:
            executable = command.arguments[0]
            why = f"{advised(error)}{not_executable(executable)}"
            raise SandboxUnavailable(f"cannot start {executable}: {why}") from error
        opened.pop_all()
    return Guest(process, ours, log, packages)


def end_later(guest: Guest) -> None:
    """Ends a guest, for those who must not wait for it: event loops, the garbage collector."""
    try:
        threading.Thread(target=guest.end, daemon=True).start()
    except RuntimeError:  # no thread can be started; here where the limit on processes is met
        guest.end()


def _abandon_all() -> None:
    # Were they left open, a guest would outlive this process by as long as its copy.
    for guest in _all_guests:
        guest.abandon()


os.register_at_fork(after_in_child=_abandon_all)
