"""A forked process, from its first moment to its program's end."""

import atexit
import gc
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from . import adapt, confine, program, wire

if TYPE_CHECKING:
    import binascii

FIRST_TOUCH = """
def f(a, b=1):
    return [i * b for i in range(a)]
total = sum(f(10)) + len({str(i): i / 2 for i in range(4)})
try:
    print(f"{total:.3f}"[:0], end="")
except ValueError as error:
    print(error)
"""
"""Code that a spare process runs before its program comes. A fork shares memory until it writes
to it, and the first writes, mostly of reference counts, take longer than a small program
itself."""

SECOND_TOUCH = {
    "sympy": """
from sympy import *
x = symbols("x")
str(solve(x**2 - 7*x + 12, x))
"""
}
"""Such code for each package; run only while no program has come."""

_IDLE_MS = 30
_TEXT = 6000  # the most characters of a traceback
_SIGNALS = signal.valid_signals()
# Kept here, because a program may replace them in their modules.
_monotonic, _getpid, _exit, _dumps = time.monotonic, os.getpid, os._exit, json.dumps
_OUT_OF_MEMORY = b'["memory_limit", "", ""]'  # made in advance: later there may be no memory for it


class Process:
    """The forked process that runs a program or a session.

    Args:
        flags: `wire.SESSION` and `wire.EAGER`.
        source: Descriptor on which programs come, and on which the process sends its bell.
        stdout: Descriptor of the program's standard output.
        record: Descriptor of the record's memory.
        status: The socket on which the process reports that it is ready.
        turn: The number of this process among the guest's processes, from 1.
    """

    def __init__(
        self, flags: int, source: int, stdout: int, record: int, status: socket.socket, turn: int
    ) -> None:
        self._turn = turn
        self._objects = 0
        self._jailed = False
        self._handlers: dict[int, Callable[..., object]] = {}
        self._deferred: set[int] = set()
        self._session = bool(flags & wire.SESSION)
        self._idle_ms = 0 if flags & wire.EAGER else _IDLE_MS
        self._pid = os.getpid()
        self._status = status
        os.dup2(stdout, 1)
        # Not shared, since flags such as O_NONBLOCK would outlast the program.
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 2)
        self._record = confine.Record(record)
        kept = sorted((0, 1, 2, source, status.fileno()))
        for first, last in zip(kept, [*kept[1:], 1 << 20], strict=True):
            os.closerange(first + 1, last)
        self._source = socket.socket(fileno=source)

    def enter_jail(self, bounds: wire.Bounds, used: int, uid: int | None, code: bytes) -> None:
        """Gives up every right that a program must not have.

        Args:
            bounds: The limits of the process.
            used: Bytes of address space that the process already uses.
            uid: The user id of the program; see `confine.become_nobody`.
            code: The filter of system calls.
        """
        self._jailed = True
        os.setsid()  # `kill(0)` would reach the whole guest where its user is the program's
        confine.private_tmp(bounds.tmp)
        confine.become_nobody(uid)
        confine.limit(bounds, used)
        adapt.limit(bounds, True, self._turn)
        confine.install_filter(code)

    def settle_in(self, folder: str, bounds: wire.Bounds, used: int) -> None:
        """Without a jail: gives the process its own process group, folder and limits.

        Args:
            folder: The path of the folder.
            bounds: The limits of the process.
            used: Bytes of address space that the process already uses.
        """
        os.setsid()
        os.chdir(folder)
        os.environ |= {"HOME": folder, "TMPDIR": folder}
        tempfile.tempdir = None
        confine.limit(bounds, used, processes=False)
        adapt.limit(bounds, False, self._turn)

    def serve(self, packages: list[str]) -> NoReturn:
        """Runs programs until no more come, and ends the process.

        Args:
            packages: The packages that the template has loaded.
        """
        waiting = select.poll()
        waiting.register(self._source, select.POLLIN)
        # Skipped if the program is there already and would have to wait.
        if not waiting.poll(0):
            program.execute(FIRST_TOUCH, program.new_main())
            program.clear(sys.maxsize)  # without a collection, which would write to many pages
        with suppress(OSError):  # the host may be gone; the next read ends the process
            self._status.send(wire.READY)
        touches = [SECOND_TOUCH[name] for name in packages if name in SECOND_TOUCH]
        if touches and not waiting.poll(self._idle_ms):
            for text in touches:
                program.execute(text, program.new_main())
            forget_randomness()
            with suppress(OSError):
                self._status.send(wire.WARM)
        self._status.close()
        random.seed(0)  # a fork seeds the module `random` again; see `forget_randomness`
        gc.freeze()  # no object up to here is the program's
        gc.enable()
        self._main: ModuleType | None = program.new_main()
        # Signals wait between blocks: an error that a program's handler raises belongs to a block.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS if self._session else ())
        number, outcome = 0, "ok"
        while self._session or number == 0:
            if not (head := self._read(struct.calcsize(wire.PROGRAM))):
                break
            number += 1
            outcome = self._run(number, head)
        _exit(0 if outcome == "ok" else wire.FAILURE)

    def _run(self, number: int, head: bytes) -> str:
        global binascii
        display, size, stdin_size, files_size = struct.unpack(wire.PROGRAM, head)
        stdin, files = b"", {}
        try:
            text, stdin = self._read(size), self._read(stdin_size)
            if files_size:
                import binascii  # rarely needed, and each copy of the template would have to map it

                files = json.loads(self._read(files_size))
        except MemoryError:
            text = None
        began = _monotonic()
        with suppress(OSError):  # the host may be gone
            self._source.send(struct.pack(wire.BELL, began))
        wanted = files.get("wanted", ())
        if not (self._session or wanted):
            self._source.close()
        self._record.write(number, began)
        outcome, text, status = self._outcome(number, display, text, stdin, files)
        forked = _getpid() != self._pid  # a child that the program forked also ends here
        if forked or not self._session:
            self._end()
        if forked:
            _exit(status)
        if wanted:
            with suppress(OSError, MemoryError):  # the host may be gone
                self._source.sendall(_fetch(wanted))
        if self._session:
            with suppress(BaseException):
                program.flush()
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            self._defer()
            if self._jailed:
                # All others: the host stops this process, and any that a thread continues again.
                with suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGSTOP)
        self._record.write(number, began, _monotonic(), text)
        if self._session:
            with suppress(OSError):  # the program may have closed it
                self._source.send(b"\n")
        return outcome

    def _outcome(
        self, number: int, display: bool, text: bytes | None, stdin: bytes, files: dict
    ) -> tuple[str, bytes, int]:
        """Runs a program; returns the outcome's name, the record's text and the exit status."""
        try:
            return self._execute(number, display, text, stdin, files)
        except MemoryError:
            confine.make_room()
            return "memory_limit", _OUT_OF_MEMORY, 1

    def _execute(
        self, number: int, display: bool, text: bytes | None, stdin: bytes, files: dict
    ) -> tuple[str, bytes, int]:
        if text is None:
            raise MemoryError
        assert self._main is not None
        source = text.decode("utf-8", "surrogatepass")
        _give_stdin(stdin)
        begin = partial(self._begin, files.get("given", {}), files.get("prelude", ""))
        name = f"<block {number}>" if self._session else program.NAME
        outcome, error, trace, status = program.execute(source, self._main, display, name, begin)
        confine.make_room()
        record = [outcome, error, _shorten(trace), *sorted(program.reported)]
        return outcome, _dumps(record).encode(), status

    def _begin(self, files: dict[str, str], prelude: str) -> None:
        program.reported.clear()
        if prelude:
            program.run_prelude(prelude)
        for name, data in files.items():
            if folder := os.path.dirname(name):
                os.makedirs(folder, exist_ok=True)
            with open(name, "wb") as file:
                file.write(binascii.a2b_base64(data))
        self._objects = len(gc.get_objects()) - 2  # the module and its namespace are removed later
        self._handle_deferred()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _defer(self) -> None:
        """Postpones the program's signal handlers until its next block.

        Masking the signals is not enough, since another thread may take a signal.
        """
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler) and handler is not signal.default_int_handler:
                self._handlers[number] = handler
                signal.signal(number, lambda number, _: self._deferred.add(number))

    def _handle_deferred(self) -> None:
        handlers, self._handlers = self._handlers, {}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        deferred, self._deferred = self._deferred, set()
        if signal.SIGCHLD in handlers and not _child_ended():
            # Then the signal reported children that the sandbox stopped or continued.
            deferred.discard(signal.SIGCHLD)
            if signal.SIGCHLD in signal.sigpending():
                signal.sigtimedwait([signal.SIGCHLD], 0)
        for number in deferred:
            signal.raise_signal(number)  # waits, like signals that are pending

    def _end(self) -> None:
        """Does the steps of Python at the end of a script."""
        for step in (
            threading._shutdown,  # type: ignore[attr-defined]  # private: Python itself calls it
            atexit._run_exitfuncs,
        ):
            with suppress(BaseException):
                step()
        self._main = None
        with suppress(BaseException):
            program.clear(self._objects)

    def _read(self, size: int) -> bytes:
        """Reads `size` bytes from the host; returns no bytes if the host has closed the socket."""
        data = bytearray()
        while len(data) < size:
            chunk = self._source.recv(min(size - len(data), 1 << 20))
            if not chunk:
                return b""
            data += chunk
        return bytes(data)


def _give_stdin(data: bytes) -> None:
    if not data:
        return
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        os.dup2(file.fileno(), 0)


def _child_ended() -> bool:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _fetch(names: list[str]) -> bytes:
    """The files of these names that exist, as sent back to the host."""
    contents, room = {}, wire.FETCHED_BYTES
    for name in names:
        with suppress(OSError, ValueError):
            # Without waiting: the file may be a named pipe.
            with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                data = file.read(room + 1)
            if len(data) <= room:
                contents[name] = binascii.b2a_base64(data, newline=False).decode()
                room -= len(data)
    return json.dumps(contents).encode()


def forget_randomness() -> None:
    """Seeds the global generators, so that equal programs give equal output in every process."""
    for name in ("numpy.random", "sympy.core.random"):
        if name in sys.modules:
            sys.modules[name].seed(0)


def _shorten(trace: str) -> str:
    if len(trace) <= _TEXT:
        return trace
    return f"{trace[: _TEXT // 2]}\n  ...\n{trace[len(trace) - _TEXT // 2 :]}"
