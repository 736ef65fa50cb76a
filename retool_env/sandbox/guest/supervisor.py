"""The guest's first process: the parent of every program.

It has loaded no packages. When the host shuts its end of a program's status socket, the supervisor
kills the program. When a program and its descendants have ended, the supervisor reports how. It
ends when the template ends, and the template ends when the host does. The kernel then ends all
other processes of the jail.
"""

import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys
from contextlib import suppress

from . import adapt, confine, template, wire


class Supervisor:
    """Ends and reaps processes.

    Args:
        made: The socket on which the template announces each new process.
        template: The template's process id.
        jailed: Whether the guest is in a jail, where the kernel ends a program's descendants
            together with the program's first process.
    """

    def __init__(self, made: socket.socket, template: int, jailed: bool) -> None:
        self._made = made
        self._template = template
        self._jailed = jailed
        self._processes: dict[int, tuple[socket.socket, str]] = {}
        self._by_descriptor: dict[int, int] = {}
        self._ended: dict[int, bytes] = {}
        self._events = select.epoll()

    def serve(self) -> None:
        """Serves until the template has ended."""
        woken, wake = socket.socketpair()
        woken.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._events.register(self._made, select.EPOLLIN)
        self._events.register(woken, select.EPOLLIN)
        while self._reap():
            for descriptor, _ in self._events.poll():
                if descriptor == self._made.fileno():
                    self._admit()
                elif descriptor == woken.fileno():
                    woken.recv(4096)
                elif descriptor in self._by_descriptor:
                    self._kill(self._by_descriptor[descriptor])
        for pid in self._processes:
            self._kill(pid)

    def _admit(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._made, 4096, 1)
        if not message:
            return
        size = struct.calcsize(wire.MADE)
        (pid,) = struct.unpack(wire.MADE, message[:size])
        status = socket.socket(fileno=descriptors[0])
        self._processes[pid] = (status, message[size:].decode())
        self._by_descriptor[status.fileno()] = pid
        self._events.register(status, select.EPOLLRDHUP)
        if pid in self._ended:
            self._bury(pid, self._ended.pop(pid))

    def _kill(self, pid: int) -> None:
        status = self._processes[pid][0]
        with suppress(OSError):
            self._events.unregister(status)
        if self._jailed:
            os.kill(pid, signal.SIGKILL)  # the kernel ends its whole PID namespace with it
        else:
            _kill_group(pid)

    def _reap(self) -> bool:
        """Reaps processes that have ended; `False` when the template has ended."""
        while True:
            if not self._jailed:
                with suppress(ChildProcessError):
                    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    if ended is not None:  # before another process can get its number
                        _kill_group(ended.si_pid)
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._template:
                return False
            code = os.waitstatus_to_exitcode(status)
            message = struct.pack(wire.ENDED, code, usage.ru_utime + usage.ru_stime)
            if pid in self._processes:
                self._bury(pid, message)
            else:  # the template has not announced it yet
                self._ended[pid] = message

    def _bury(self, pid: int, message: bytes) -> None:
        status, folder = self._processes.pop(pid)
        del self._by_descriptor[status.fileno()]
        with suppress(OSError):  # it was unregistered when it was killed
            self._events.unregister(status)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # the host may be gone
            status.send(message)
        status.close()


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Runs the guest.

    The arguments of the command are a descriptor of /proc, `jail` or `bare`, the first user id or
    `-`, the folders of packages, and the packages.
    """
    sys.path[:] = [path for path in sys.path if path and not path.endswith(".zip")]
    proc, mode, uid, folders, *packages = sys.argv[1:]
    jailed = mode == "jail"
    sys.path += folders.split(":")
    sys.argv[:] = [""]
    confine.go_first(int(proc))
    adapt.install()
    confine.keep_one_arena()
    # The socket was standard input, which is now empty for programs without input.
    requests = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    if jailed:
        confine.hide()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        first = None if uid == "-" else int(uid)
        template.Template(requests, theirs, int(proc), jailed, first, packages).serve()
        return
    os.close(int(proc))
    requests.close()
    theirs.close()
    Supervisor(ours, pid, jailed).serve()
