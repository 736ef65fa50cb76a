"""The host's side of one process: input, output, end, and the resulting `Execution`.

A `Job` starts nothing by itself and never blocks. Its driver, in a thread or an event loop, waits
for its descriptors and calls `step`, and calls `lapse` when the job's patience is over.
"""

import codecs
import os
import select
import signal
import socket
import struct
import time
from contextlib import suppress

from retool_env.execution import Execution, Files, Limits, Outcome
from retool_env.sandbox import processes
from retool_env.sandbox.guest import wire
from retool_env.sandbox.guests import Guest
from retool_env.sandbox.kernel import bounds, signal_name
from retool_env.sandbox.record import pack_files, read_record, read_reports, unpack_files

START_SECONDS = 30.0
"""The longest time until a program starts. An idle machine needs 0.003, or up to a second while the
guest loads its packages."""
GONE_SECONDS = 5.0
"""The longest time in which a guest ends a process."""
_MOST_WAITING = 19  # wall-clock limits that a program may wait for a processor

_CHUNK = 1 << 16
_BELL_BYTES = struct.calcsize(wire.BELL)
_HEARD_BYTES = _BELL_BYTES + 1
_FETCHED_BYTES = wire.FETCHED_BYTES * 3 // 2 + (1 << 20)  # in base64, with their names
_CREDENTIALS = "3i"


class Job:
    """One process of a guest, made ahead of its program or for it.

    Args:
        guest: The guest that forks the process.
        limits: The limits of its programs.
        session: Whether the process runs more than one block.
        spare: Whether the process is forked ahead of its program.
        eager: Whether a spare process may warm up immediately.
    """

    def __init__(
        self,
        guest: Guest,
        limits: Limits,
        session: bool = False,
        spare: bool = False,
        eager: bool = False,
    ) -> None:
        self.guest = guest
        self.limits = limits
        self.session = session
        self.ready = 0
        """1 when the process waits for a program, 2 when it is also warm, 0 before."""
        self.gone = False
        """Whether the process and all its descendants are gone."""
        self.finished = False
        """Whether the program, or the current block, is over."""
        self.hung = False
        """Whether the guest failed to end the process, so that the guest itself has to be ended."""
        flags = wire.SESSION * session | wire.SPARE * spare | wire.EAGER * eager
        self._request = struct.pack(wire.REQUEST, flags) + bounds(limits, session).pack()
        opened: list[socket.socket | int] = []  # closed after an error
        try:
            self._input, source = pair = socket.socketpair()
            opened += pair
            self._status, told = pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            opened += pair
            self._stdout, stdout = ends = os.pipe()
            opened += ends
            self._record = os.memfd_create("record")
            opened.append(self._record)
            record = os.dup(self._record)
            opened.append(record)
            os.ftruncate(self._record, wire.RECORD_BYTES)
            os.set_blocking(self._stdout, False)
            self._input.setblocking(False)
            self._status.setblocking(False)
            # The process's first message then tells its number here, outside its namespace.
            self._status.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        except BaseException:
            for end in opened:
                os.close(end if isinstance(end, int) else end.detach())
            raise
        self._guest_ends = [source.detach(), stdout, record, told.detach()]
        self.pid = 0
        """The process id outside the process's namespace; 0 until the process is ready."""
        self._pidfd = -1
        self._number = 0
        self._unsent = memoryview(b"")
        self._output = bytearray()
        self._overflowed = self._timed_out = False
        self._reading = True
        self._submitted = self._began = self._killed = 0.0
        self._waited = self._burdened = 0.0
        self._heard, self._deaf = b"", False
        self._wanted: frozenset[str] = frozenset()
        self._fetched = bytearray()
        self.reported: tuple[str, ...] | None = None  # see `Files.reported`
        self._code: int | None = None
        self._processor_seconds = 0.0
        self._failure = ""

    def hand_over(self) -> None:
        """Asks the guest to fork the process, unless this has been done.

        Raises:
            BlockingIOError: The guest has not yet taken earlier requests; try again.
            OSError: The guest is gone.
        """
        if self._guest_ends:
            # Not by `socket.send_fds`, which in some versions of Python ignores the flag.
            rights = struct.pack(f"{len(self._guest_ends)}i", *self._guest_ends)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            self.guest.control.sendmsg([self._request], ancillary, socket.MSG_DONTWAIT)
            self._close_guest_ends()

    def _close_guest_ends(self) -> None:
        while self._guest_ends:
            os.close(self._guest_ends.pop())

    def begin(
        self, code: str, stdin: str = "", display: bool = False, files: Files | None = None
    ) -> None:
        """Sends a program, or the next block, to the process.

        Args:
            code: The program's text.
            stdin: The text on the program's standard input.
            display: Whether the value of a last expression is shown.
            files: The files that go with the program and come back. `None`: no files.
        """
        text, data = code.encode("utf-8", "surrogatepass"), stdin.encode("utf-8", "surrogatepass")
        about = pack_files(files) if files and files.some else b""
        self._wanted = frozenset(files.wanted if files else ())
        head = struct.pack(wire.PROGRAM, display, len(text), len(data), len(about))
        self._unsent = memoryview(head + text + data + about)
        self._number += 1
        self._output.clear()
        self.finished = False
        self._began = 0.0
        self._heard, self._deaf = b"", False
        self._submitted = time.monotonic()
        if self._number > 1:
            self._go_on()
            self._waited = processes.waiting_seconds(self.pid)
            self._burdened = processes.Burden(self.pid).seconds
        self.step()

    def interests(self) -> dict[int, int]:
        """The descriptors to wait for, each with `select.POLLIN` or `select.POLLOUT`."""
        found = {self._status.fileno(): select.POLLIN}
        if self._reading:
            found[self._stdout] = select.POLLIN
        if self._unsent:
            found[self._input.fileno()] = select.POLLOUT
        elif (self.session or self._wanted) and not self._deaf:
            found[self._input.fileno()] = select.POLLIN
        return found

    def step(self) -> None:
        """Reads and writes as far as possible without waiting."""
        self._send()
        self._read()
        self.listen()
        if self._wanted:
            self._fetch()
        if self.gone:
            self._read()
            self.finished = True
        elif self.session and self._number:
            self._hear(to_the_end=True)
            number, _, _, ended = self._header()  # read once: between two reads it could begin
            over = ended and number == self._number and len(self._heard) == _HEARD_BYTES
            if over and not self._killed:
                self._read()
                self.finished = True
                self._pause()

    def patience(self) -> float:
        """The seconds until `lapse` is to be called if nothing happens before."""
        now = time.monotonic()
        if self._killed:
            return max(self._killed + GONE_SECONDS - now, 0.0)
        # No event marks the program's start, so look again when its time could be over.
        since = self._began if self._has_begun() else now
        return max(since + self.limits.wall_seconds - now, 0.0)

    def lapse(self) -> float:
        """Ends the process when its patience is over, unless it had to wait for a processor.

        Returns:
            The seconds until the next call.
        """
        now = time.monotonic()
        if self._killed and self.hung:
            self.fail("its guest cannot be ended")
            return 0.0
        if self._killed:
            self.hung, self._killed = True, now
            return GONE_SECONDS
        if self._number > 1 and not self._has_begun():
            self._began = self._submitted  # an earlier block keeps the process from this one
        if self._has_begun():
            # The time in which it was ready to run, but other processes ran, does not count.
            allowed = self.limits.wall_seconds
            allowed += min(self._earned(), _MOST_WAITING * allowed)
            left = self._began + allowed - now
            self._timed_out = left <= 0
        else:
            left = self._submitted + START_SECONDS - now
        if left > 0:
            return max(left, 0.005)
        self.kill()
        return GONE_SECONDS

    def kill(self) -> None:
        """Asks the guest to end the process and its descendants; `step` notices their end."""
        if not self._killed:
            self._killed = time.monotonic()
            with suppress(OSError):
                self._status.shutdown(socket.SHUT_WR)

    @property
    def lost(self) -> bool:
        """Whether the process is gone without a report of its end."""
        return self.gone and self._code is None

    @property
    def refused(self) -> bool:
        """Whether the guest has reported why it cannot make the process."""
        return bool(self._failure)

    def fail(self, why: str) -> None:
        """Marks the process as lost.

        Args:
            why: The reason. A reason that the guest has reported takes precedence.
        """
        self._failure = self._failure or why
        self.gone = self.finished = True

    def close(self) -> None:
        """Closes the descriptors, which also ends a process that is still there."""
        self._close_guest_ends()
        self._input.close()
        self._status.close()
        for descriptor in (self._stdout, self._record, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self._stdout = self._record = self._pidfd = -1

    def execution(self) -> Execution:
        """The result of the program, once the program is finished."""
        if not self._has_begun():
            if self._number > 1 and self._code is not None:  # an earlier block ended the process
                error = "the session's process ended before the block began"
                return Execution(Outcome.RUNTIME_ERROR, "", error)
            why = self._failure or (
                "its process did not begin in time" if self._killed else "its process ended before"
            )
            return Execution(Outcome.INFRASTRUCTURE, "", f"the program was not run: {why}")
        number, size, _, ended = self._header()
        now = time.monotonic()
        over, text = now, b""
        self.reported = None
        if ended and number == self._number:  # not the record of an earlier block
            over = ended if self._began <= ended <= now else now
            most = min(size, wire.RECORD_BYTES)
            text = os.pread(self._record, most, struct.calcsize(wire.RECORD))
            self.reported = read_reports(text)

        outcome, error, trace = self._outcome(text)
        # A limit may cut a character in two: its first bytes are dropped, not replaced.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        stdout = decoder.decode(bytes(self._output), final=not self._overflowed)
        return Execution(outcome, stdout, error, trace, over - self._began)

    def _outcome(self, text: bytes) -> tuple[Outcome, str, str]:
        """How the program ended: the outcome, the error and the traceback.

        A program can write to all memory of its own process, including the record. So the record
        counts only where it agrees with the host's own observations.
        """
        limits = self.limits
        if self._overflowed:
            error = f"output limit: the program wrote more than {limits.output_bytes} bytes"
            return Outcome.OUTPUT_LIMIT, error, ""
        recorded = read_record(text, limits)
        if self._timed_out and self._code is None and recorded and not self.session:
            return recorded  # the guest hangs, which no program can cause, and missed the end
        if self._timed_out and self._code in (None, -signal.SIGKILL):  # else it ended in time
            error = f"time limit: the program ran for more than {limits.wall_seconds:g} s"
            return Outcome.TIMEOUT, error, ""
        if not self.gone:  # a block of a session, whose process goes on
            unsaid = "the session's process did not say how the block ended"
            return recorded or (Outcome.RUNTIME_ERROR, unsaid, "")
        if self._code is None:
            why = self._failure or "its process is gone"
            return Outcome.INFRASTRUCTURE, f"the program was lost while it ran: {why}", ""
        if self._code == -signal.SIGKILL:  # not sent by the host
            cpu = bounds(limits, self.session).cpu
            # The kernel's limit counts ticks, unlike this figure; on a busy host they differ a lot.
            if self._processor_seconds >= cpu / 2:
                return Outcome.TIMEOUT, f"time limit: more than {cpu} s of processor time", ""
            return Outcome.MEMORY_LIMIT, "ended by the kernel, for want of memory", ""
        if self._code == -signal.SIGSYS:
            return Outcome.BLOCKED, "the program used a system call that is not allowed", ""
        if self._code < 0:
            return Outcome.RUNTIME_ERROR, f"ended by {signal_name(-self._code)}", ""
        failed = self._code == wire.FAILURE and not self.session
        if failed and recorded and recorded[0] != Outcome.OK:
            return recorded
        if self._code or self.session:  # whatever its status, the process must outlive a block
            return Outcome.RUNTIME_ERROR, f"exit status {self._code}", ""
        return Outcome.OK, "", ""

    def _send(self) -> None:
        with suppress(BlockingIOError):
            while self._unsent:
                try:
                    sent = self._input.send(self._unsent)
                except (BrokenPipeError, ConnectionResetError):  # gone; the status socket says how
                    sent = len(self._unsent)
                self._unsent = self._unsent[sent:]

    def _read(self) -> None:
        while self._reading:
            try:
                chunk = os.read(self._stdout, _CHUNK)
            except BlockingIOError:
                return
            room = self.limits.output_bytes - len(self._output)
            self._output += chunk[:room]
            if len(chunk) > room:
                self._overflowed = True
                self.kill()
            self._reading = bool(chunk) and not self._overflowed

    def listen(self) -> None:
        """Takes the messages of the process and the guest about the process."""
        while not self.gone:
            try:
                message, extra, _, _ = self._status.recvmsg(1024, 128)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if message == wire.READY:
                self.ready = 1
                for _, kind, data in extra:
                    if kind == socket.SCM_CREDENTIALS:
                        self.pid = struct.unpack(_CREDENTIALS, data)[0]
                        with suppress(OSError):  # it has ended, or no descriptor is left
                            self._pidfd = os.pidfd_open(self.pid) if self.session else -1
            elif message == wire.WARM:
                self.ready = 2
            elif message.startswith(wire.FAILED):
                self._failure = message[len(wire.FAILED) :].decode("utf-8", "replace")
            else:
                if message:
                    self._code, self._processor_seconds = struct.unpack(wire.ENDED, message)
                self.gone = True

    def _header(self) -> tuple[int, int, float, float]:
        """The record's header: number of the block, bytes of text, its start and its end."""
        data = os.pread(self._record, struct.calcsize(wire.RECORD), 0)
        return struct.unpack(wire.RECORD, data)

    def _hear(self, to_the_end: bool = False) -> None:
        """Reads the process's bell. Unlike the record, a program cannot take the bell back.

        Args:
            to_the_end: Whether to read the end of a block as well. Only `step` does, which acts on
                it: read elsewhere, the end would wake nobody until the time limit.
        """
        if self._deaf:
            return
        try:
            most = _HEARD_BYTES if to_the_end and not self._wanted else _BELL_BYTES
            if len(self._heard) >= most:
                return
            data = self._input.recv(most - len(self._heard))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._heard += data
        # Nothing more can come, or is needed; `_fetch` reads the files of a program.
        self._deaf = not data or (len(self._heard) == _HEARD_BYTES and not self._wanted)
        if data and not self._began and len(self._heard) >= _BELL_BYTES:
            (began,) = struct.unpack(wire.BELL, self._heard[:_BELL_BYTES])
            now = time.monotonic()
            self._began = began if self._submitted <= began <= now else now

    def _fetch(self) -> None:
        """Reads the files that come back.

        The program can also write to this socket. So the size is bounded, and the content is
        checked when the program is over.
        """
        with suppress(BlockingIOError, OSError):
            while self._has_begun() and not self._deaf:
                chunk = self._input.recv(_CHUNK)
                self._fetched += chunk
                self._deaf = not chunk or len(self._fetched) > _FETCHED_BYTES

    def fetched(self) -> dict[str, bytes]:
        """The files that came back, once the program is finished: names and contents."""
        return unpack_files(self._fetched, self._wanted)

    def _has_begun(self) -> bool:
        """Whether the program has begun."""
        if not self._began:
            self._hear()
        return bool(self._began)

    def _pause(self) -> None:
        """Stops a session's process and its descendants until the next block."""
        if self._signal(signal.SIGSTOP) and not processes.stop(self.pid):
            self.kill()

    def _go_on(self) -> None:
        if self._signal(signal.SIGCONT):
            processes.go_on(self.pid)

    def _signal(self, number: int) -> bool:
        """Sends a signal to a session's process; `False` if the process is gone."""
        if self._pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        return True

    def _earned(self) -> float:
        """Seconds in which the process waited for a processor that none of its own work used."""
        burden = processes.Burden(self.pid)
        if burden.running:  # its own work keeps it waiting
            return 0.0
        waited = processes.waiting_seconds(self.pid) - self._waited
        return max(waited - (burden.seconds - self._burdened), 0.0)
