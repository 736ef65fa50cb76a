"""A guest as the host sees it: a process that forks one process for each program."""

import os
import socket
import subprocess
import threading
import weakref
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Protocol

from retool_env.execution import SandboxUnavailable, advised
from retool_env.sandbox.command import Command
from retool_env.sandbox.diagnosis import last_words, not_executable

_END_ATTEMPTS = 100
_END_SECONDS = 0.05
_LOG_BYTES = 4096

_all_guests: "weakref.WeakSet[Guest]" = weakref.WeakSet()


class Child(Protocol):
    """A process that a guest has forked for a program, or is about to fork."""

    gone: bool
    """Whether the process and all its descendants are gone."""

    def close(self) -> None:
        """Closes the descriptors of the process."""
        ...


@dataclass(eq=False)
class Guest:
    """A process that forks programs, seen from the host."""

    process: subprocess.Popen[bytes]
    """The guest's process."""
    control: socket.socket
    """The socket on which the host sends requests to the guest."""
    _log: int
    """The descriptor of a file in memory, to which the guest writes its errors."""
    packages: tuple[str, ...]
    """The packages that the guest loads besides the standard library."""
    warm: bool = False
    """Whether the guest has loaded its packages."""
    condemned: bool = False
    """Whether the guest disobeys and is being ended."""
    jobs: set[Child] = field(default_factory=set)
    """The processes that the guest runs or keeps ready."""

    def __post_init__(self) -> None:
        self._last_words = ""
        self.log_lock = threading.Lock()  # held while the log is read or closed
        _all_guests.add(self)

    @property
    def alive(self) -> bool:
        """Whether the guest can run programs."""
        return not self.condemned and self.process.poll() is None

    def log(self) -> str:
        """The last error messages in one line; empty if the guest wrote nothing."""
        with self.log_lock:
            return self._last_words if self._log < 0 else self._read_log()

    def _read_log(self) -> str:
        size = os.fstat(self._log).st_size
        text = os.pread(self._log, _LOG_BYTES, max(size - _LOG_BYTES, 0)).decode("utf-8", "replace")
        return last_words(text)

    def end(self) -> None:
        """Ends the guest and its programs, and waits until they are gone. May be called again."""
        self.control.close()  # a guest in good health ends by itself
        for attempt in range(_END_ATTEMPTS):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_SECONDS)
                break
            # Repeated, since nsjail ignores the signal while it builds a jail. SIGKILL is the last
            # resort: processes that nsjail has started could outlive nsjail.
            last = attempt > _END_ATTEMPTS // 2
            (self.process.kill if last else self.process.terminate)()
        with self.log_lock:
            if self._log >= 0:
                self._last_words = self._read_log()
                os.close(self._log)
                self._log = -1

    def abandon(self) -> None:
        """Closes the original's descriptors, in a forked copy of this process."""
        self.log_lock = threading.Lock()  # another thread may have held the old lock
        self.control.close()
        for job in self.jobs:
            job.close()
            job.gone = True


def start_guest(command: Command, packages: tuple[str, ...]) -> Guest:
    """Starts a guest, and closes the command's descriptors in this process.

    Args:
        command: The command that starts the guest.
        packages: The packages that the guest loads.

    Raises:
        SandboxUnavailable: The command cannot be run.
        OSError: This process has no descriptors left.
    """
    with ExitStack() as opened, ExitStack() as guests_ends:
        for descriptor in command.descriptors:
            guests_ends.callback(os.close, descriptor)
        ours, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        opened.enter_context(ours)
        guests_ends.enter_context(requests)
        # In memory: nothing is left behind, however this process ends.
        log = os.memfd_create("log")
        opened.callback(os.close, log)
        for descriptor in (pipe := os.pipe()):
            guests_ends.callback(os.close, descriptor)
        try:
            process = subprocess.Popen(
                command.arguments,
                stdin=requests.fileno(),
                stdout=pipe[1],  # unread
                stderr=log,
                env=command.environment,
                pass_fds=command.descriptors,
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends the guests
            )
        except OSError as error:
            executable = command.arguments[0]
            why = f"{advised(error)}{not_executable(executable)}"
            raise SandboxUnavailable(f"cannot start {executable}: {why}") from error
        opened.pop_all()
    return Guest(process, ours, log, packages)


def end_later(guest: Guest) -> None:
    """Ends a guest in another thread, for callers that must not wait.

    Such callers are event loops and the garbage collector.
    """
    try:
        threading.Thread(target=guest.end, daemon=True).start()
    except RuntimeError:  # no thread can be started; here where the limit on processes is met
        guest.end()


def _abandon_all() -> None:
    # With these left open, a guest would live until the copy of this process ends.
    for guest in _all_guests:
        guest.abandon()


os.register_at_fork(after_in_child=_abandon_all)
