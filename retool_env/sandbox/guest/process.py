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
"""Run by a process whose program has not come yet: a fork shares its memory until it is written to, and the first
writes, of reference counts above all, take longer than a small program itself."""

SECOND_TOUCH = {
    "sympy": """
from sympy import *
x = symbols("x")
str(solve(x**2 - 7*x + 12, x))
"""
}
"""The same for a package; run only while no program has come."""

_IDLE_MS = 30
_TEXT = 6000  # characters of a traceback that are kept
_SIGNALS = signal.valid_signals()
# As they are now: a program may leave others in their place.
_monotonic, _getpid, _exit, _dumps = time.monotonic, os.getpid, os._exit, json.dumps
_OUT_OF_MEMORY = b'["memory_limit", "", ""]'  # made beforehand: later there is no memory to make it


class Process:
    """What the process makes of itself.

    Args:
        flags: `wire.SESSION`, `wire.EAGER`.
        source: Descriptor on which programs come; in a session also rung when one is over.
        stdout: Descriptor of what it prints.
        record: Descriptor of the record's memory.
        status: Where it says that it is ready.
        turn: How many were made before it, in this guest.
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
        # Opened anew: the flags of a shared one, such as O_NONBLOCK, would last beyond the program.
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 2)
        self._record = confine.Record(record)
        kept = sorted((0, 1, 2, source, status.fileno()))
        for first, last in zip(kept, [*kept[1:], 1 << 20], strict=True):
            os.closerange(first + 1, last)
        self._source = socket.socket(fileno=source)

    def enter_jail(self, bounds: wire.Bounds, own: int, uid: int | None, code: bytes) -> None:
        """Gives up all that a program must not have."""
        self._jailed = True
        os.setsid()  # `kill(0)` would reach the whole guest where its user is the program's
        confine.private_tmp(bounds.tmp)
        confine.become_nobody(uid)
        confine.limit(bounds, own)
        adapt.limit(bounds, True, self._turn)
        confine.install_filter(code)

    def settle_in(self, folder: str, bounds: wire.Bounds, own: int) -> None:
        """Without a jail: a process group, a folder and limits of its own."""
        os.setsid()
        os.chdir(folder)
        os.environ |= {"HOME": folder, "TMPDIR": folder}
        tempfile.tempdir = None
        confine.limit(bounds, own, processes=False)
        adapt.limit(bounds, False, self._turn)

    def serve(self, packages: list[str]) -> NoReturn:
        """Runs programs until there are no more, and ends."""
        waiting = select.poll()
        waiting.register(self._source, select.POLLIN)
        # A program that has come already would only be kept waiting.
        if not waiting.poll(0):
            program.execute(FIRST_TOUCH, program.new_main())
            program.clear(sys.maxsize)  # without a collection, which would touch much
        with suppress(OSError):  # the host may be gone; reading will say so
            self._status.send(wire.READY)
        touches = [SECOND_TOUCH[name] for name in packages if name in SECOND_TOUCH]
        if touches and not waiting.poll(self._idle_ms):
            for text in touches:
                program.execute(text, program.new_main())
            forget_randomness()
            with suppress(OSError):
                self._status.send(wire.WARM)
        self._status.close()
        random.seed(0)  # at each fork it seeds itself anew; see `forget_randomness`
        gc.freeze()  # what is there now is not the program's
        gc.enable()
        self._main: ModuleType | None = program.new_main()
        # Between blocks a signal waits: its handler is the program's, and what that raises the next block's.
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
                import binascii  # rarely needed: each copy of the template would have to map it

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
        forked = _getpid() != self._pid  # a child that the program forked ends here, too
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
                # All but this one: the host stops this one, and those that a thread lets go on.
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
        """Runs a program; its outcome's name, what the record says of it, and its exit status."""
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
        begin = partial(self._begin, files.get("given", {}))
        name = f"<block {number}>" if self._session else program.NAME
        outcome, error, trace, status = program.execute(source, self._main, display, name, begin)
        confine.make_room()
        return outcome, _dumps([outcome, error, _shorten(trace)]).encode(), status

    def _begin(self, files: dict[str, str]) -> None:
        for name, data in files.items():
            if folder := os.path.dirname(name):
                os.makedirs(folder, exist_ok=True)
            with open(name, "wb") as file:
                file.write(binascii.a2b_base64(data))
        self._objects = len(gc.get_objects()) - 2  # its module and namespace, which go
        self._handle_deferred()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _defer(self) -> None:
        """Keeps the program's signal handlers from running until its next block: another thread may take a signal."""
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
            # Then it told that children were stopped, or went on, which is our doing.
            deferred.discard(signal.SIGCHLD)
            if signal.SIGCHLD in signal.sigpending():
                signal.sigtimedwait([signal.SIGCHLD], 0)
        for number in deferred:
            signal.raise_signal(number)  # waits as those do that are pending

    def _end(self) -> None:
        """Does what Python does at the end of any script."""
        # Python itself calls the first, which is private.
        for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]  # as at an exit
            with suppress(BaseException):
                step()
        self._main = None
        with suppress(BaseException):
            program.clear(self._objects)

    def _read(self, size: int) -> bytes:
        """Reads `size` bytes of what the host sends; none when it has nothing more to send."""
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
    """What of these files there is, as it is sent back."""
    found, room = {}, wire.FETCHED_BYTES
    for name in names:
        with suppress(OSError, ValueError):
            # Not one that is waited for: a named pipe.
            with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                data = file.read(room + 1)
            if len(data) <= room:
                found[name] = binascii.b2a_base64(data, newline=False).decode()
                room -= len(data)
    return json.dumps(found).encode()


def forget_randomness() -> None:
    """The global generators start alike in each process, so that the same program gives the same output."""
    for name in ("numpy.random", "sympy.core.random"):
        if name in sys.modules:
            sys.modules[name].seed(0)


def _shorten(trace: str) -> str:
    if len(trace) <= _TEXT:
        return trace
    return f"{trace[: _TEXT // 2]}\n  ...\n{trace[len(trace) - _TEXT // 2 :]}"
