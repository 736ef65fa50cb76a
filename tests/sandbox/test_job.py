"""A job on the host's side; the test plays the guest, or a hostile program."""

import json
import os
import re
import resource
import select
import signal
import socket
import struct
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from helpers.tree import descriptors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retool_env.sandbox import Execution, Limits, Outcome, job, processes
from retool_env.sandbox.guest import wire
from retool_env.sandbox.job import Job, bounds

LIMITS = Limits(wall_seconds=0.2, memory_mb=77, output_bytes=1000)


class Guest:
    """The guest's end of a job.

    Args:
        session: Whether the job belongs to a session.
        limits: The limits of the job.
        **flags: Further arguments of `Job`.
    """

    def __init__(self, limits: Limits = LIMITS, session: bool = False, **flags: bool) -> None:
        self.control, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.job = Job(self, limits, session, **flags)
        self.job.hand_over()
        self.request, descriptors, _, _ = socket.recv_fds(requests, 256, 8)
        requests.close()
        source, self.stdout, self.record, told = descriptors
        self.source, self.status = socket.socket(fileno=source), socket.socket(fileno=told)
        self.source.settimeout(5)
        self.status.settimeout(5)

    def read(self) -> tuple[bool, str, str]:
        """The next program: whether its value is displayed, its text, its stdin."""
        head = self._exactly(struct.calcsize(wire.PROGRAM))
        display, size, stdin, files = struct.unpack(wire.PROGRAM, head)
        assert files == 0
        return display, self._exactly(size).decode(), self._exactly(stdin).decode()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            self.job.step()
            data += self.source.recv(size - len(data))
        return data

    def begins(self, number: int = 1) -> None:
        now = time.monotonic()
        self.rings(now)
        self.says(number, now)

    def rings(self, began: float) -> None:
        self.source.send(struct.pack(wire.BELL, began))

    def says(self, number: int, began: float, ended: float = 0.0, text: bytes = b"") -> None:
        """Writes the record.

        Args:
            number: The number of the block.
            began: The block's start, in seconds of the monotonic clock.
            ended: The block's end. 0.0: it still runs.
            text: The text of the record.
        """
        os.pwrite(self.record, struct.pack(wire.RECORD, number, len(text), began, ended) + text, 0)

    def ends(self, code: int = 0, seconds: float = 0.0, text: bytes | None = None) -> Execution:
        """Ends the program, and returns the job's result.

        Args:
            code: The exit code, or minus the signal.
            seconds: The processor time.
            text: The text of the record. `None`: no record is written.
        """
        if text is not None:
            now = time.monotonic()
            self.says(1, now, now, text)
        self.job.step()
        self.status.send(struct.pack(wire.ENDED, code, seconds))
        self.close()
        self.job.step()
        assert self.job.finished
        return self.job.execution()

    def told_to_end(self) -> bool:
        return self.status.recv(1) == b""

    def close(self) -> None:
        """Closes all descriptors of the process, as at its end."""
        if self.stdout >= 0:
            os.close(self.stdout)
            os.close(self.record)
            self.stdout = self.record = -1
        self.source.close()
        self.status.close()

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.job.close()
        self.control.close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest() as made:
        yield made


def begun(guest: Guest) -> Guest:
    guest.job.begin("x")
    guest.begins()
    guest.job.step()
    return guest


# --- the request


def test_a_request_says_what_is_wanted() -> None:
    with Guest(spare=True, eager=True) as guest:
        assert guest.request[0] == wire.SPARE | wire.EAGER
        assert wire.Bounds.unpack(guest.request[1:]) == bounds(LIMITS, False)
    with Guest(session=True) as guest:
        assert guest.request[0] == wire.SESSION


def test_bounds_are_those_of_the_limits() -> None:
    limits = Limits(wall_seconds=2.5, memory_mb=3, processes=4, tmp_mb=5)
    assert bounds(limits, session=False) == wire.Bounds(3 << 20, 4, 4, 5 << 20)
    assert bounds(limits, session=True).cpu > 50 * bounds(limits, session=False).cpu


def test_it_is_asked_for_once(guest: Guest) -> None:
    guest.job.hand_over()  # nobody reads it


def test_closing_leaves_no_descriptor() -> None:
    before = descriptors()
    with Guest() as guest:
        guest.job.begin("print(1)")
        assert descriptors() > before + 5
    assert descriptors() == before
    control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    guest.control = control
    Job(guest, LIMITS).close()  # before it was asked for
    control.close()
    other.close()
    assert descriptors() == before


@pytest.mark.parametrize("step", range(12))
def test_whatever_fails_on_the_way_leaves_no_descriptor(monkeypatch, step: int) -> None:
    """Each call in the making of a job fails in turn, for an unexpected reason."""
    calls = [
        (os, "pipe"),
        (os, "memfd_create"),
        (os, "dup"),
        (os, "ftruncate"),
        (os, "set_blocking"),
        (socket.socket, "setblocking"),
        (socket.socket, "setsockopt"),
        (job, "bounds"),
        (wire.Bounds, "pack"),
        (socket, "socketpair"),
    ]

    def fail(*_: object) -> None:
        raise MemoryError

    pairs = iter([socket.socketpair()])
    before = descriptors()
    if step < len(calls):
        monkeypatch.setattr(*calls[step], fail)
    elif step == len(calls):  # the second pair alone
        monkeypatch.setattr(socket, "socketpair", lambda *_: next(pairs, None) or fail())
    else:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 3, limits[1]))
    fake = type("Guest", (), {"control": None})()
    try:
        for _ in range(20):
            with pytest.raises((MemoryError, OSError)):
                Job(fake, LIMITS)
    finally:
        monkeypatch.undo()
        if step > len(calls):
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for pair in pairs:
        for each in pair:
            each.close()
    assert descriptors() <= before


def test_a_busy_guest_is_asked_again() -> None:
    control, _other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    fake = type("Busy", (), {"control": control})()
    jobs = []
    with pytest.raises(BlockingIOError):
        for _ in range(100):
            jobs.append(Job(fake, LIMITS))
            jobs[-1].hand_over()
    assert len(jobs) > 1
    for each in jobs:
        each.close()


# --- the program


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_a_program_arrives_whole(guest: Guest, size: int) -> None:
    guest.job.begin("π" * size, "in" * size, display=True)
    assert (size > 10_000) == (select.POLLOUT in guest.job.interests().values())
    assert guest.read() == (True, "π" * size, "in" * size)
    guest.job.step()
    assert select.POLLOUT not in guest.job.interests().values()


def test_a_process_that_ends_before_it_has_read_all(guest: Guest) -> None:
    guest.job.begin("x" * 3_000_000)
    assert guest.ends(code=3).outcome is Outcome.INFRASTRUCTURE


# --- the outcome


ENDS = {
    "0": (0, 0, Outcome.OK, ""),
    "3": (3, 0, Outcome.RUNTIME_ERROR, "exit status 3"),
    "a crash": (-11, 0, Outcome.RUNTIME_ERROR, "ended by SIGSEGV"),
    "the filter": (
        -signal.SIGSYS,
        0,
        Outcome.BLOCKED,
        "the program used a system call that is not allowed",
    ),
    "want of memory": (-9, 0.1, Outcome.MEMORY_LIMIT, "ended by the kernel, for want of memory"),
    "processor time, on a busy host": (
        -9,
        1.2,
        Outcome.TIMEOUT,
        "time limit: more than 2 s of processor time",
    ),
    "processor time": (-9, 1.95, Outcome.TIMEOUT, "time limit: more than 2 s of processor time"),
}


@pytest.mark.parametrize(("code", "seconds", "outcome", "error"), ENDS.values(), ids=ENDS)
def test_how_a_process_ended(
    guest: Guest, code: int, seconds: float, outcome: Outcome, error: str
) -> None:
    os.write(guest.stdout, b"printed")
    assert begun(guest).ends(code, seconds) == Execution(outcome, "printed", error)


@pytest.mark.parametrize("code", range(1, 256))
def test_no_exit_code_is_taken_for_anything_else(guest: Guest, code: int) -> None:
    execution = begun(guest).ends(code)
    assert execution == Execution(Outcome.RUNTIME_ERROR, "", f"exit status {code}")


@pytest.mark.parametrize("number", sorted({*range(1, 65)} - {9, 31}))
def test_every_signal_has_a_name(guest: Guest, number: int) -> None:
    execution = begun(guest).ends(-number)
    assert execution.outcome is Outcome.RUNTIME_ERROR
    assert re.fullmatch(r"ended by (SIG[A-Z0-9]+|signal \d+)", execution.error)


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.INFRASTRUCTURE}))
def test_what_a_process_says(guest: Guest, outcome: Outcome) -> None:
    text = json.dumps([outcome, "error", "trace"]).encode()
    execution = begun(guest).ends(code=wire.FAILURE, text=text)
    if outcome is Outcome.OK:  # it is not, as the status of its process says
        assert execution == Execution(Outcome.RUNTIME_ERROR, "", "exit status 1")
        return
    assert execution.outcome is outcome
    if outcome is Outcome.MEMORY_LIMIT:
        assert execution.error == "MemoryError: the program needed more than 77 MiB"
    else:
        assert execution.error.startswith("error") and execution.traceback == "trace"
    assert 0 <= execution.duration < 5


FORGED = [
    b"",
    b"\xff\xff",
    b"null",
    b"3",
    b"{}",
    b"[]",
    b"[1, 2, 3]",
    b'["ok", {}, null]',
    b'["ok", "", "", ""]',
    b'["infrastructure_failure", "x", "y"]',
    b'["no such", "x", "y"]',
    b"[" * 60_000,
    b"1" * 60_000,
    b'["ok", 1e999, NaN]',
]


@pytest.mark.parametrize("text", FORGED, ids=range(len(FORGED)))
def test_nonsense_in_the_record_is_the_programs_own(guest: Guest, text: bytes) -> None:
    """A program can write to all of its memory; the exit code then says how it ended."""
    execution = begun(guest).ends(code=1, text=text)
    assert execution == Execution(Outcome.RUNTIME_ERROR, "", "exit status 1")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.integers(-64, 255))
def test_any_record_has_an_outcome(header_and_text: bytes, code: int) -> None:
    with Guest() as guest:
        begun(guest).job.patience()
        os.pwrite(guest.record, header_and_text, 0)
        execution = guest.ends(code)
        assert execution.outcome is not Outcome.INFRASTRUCTURE
        assert 0 <= execution.duration < 5
        assert "\n" not in execution.error
        execution.error.encode(), execution.traceback.encode(), execution.stdout.encode()


@pytest.mark.parametrize(
    ("began", "ended"),
    [(0.0, 1e300), (1e300, 1e300), (float("nan"),) * 2, (-1.0, -5.0), (0.0, float("inf"))],
)
def test_times_that_cannot_be_are_not_believed(guest: Guest, began: float, ended: float) -> None:
    guest.job.begin("x")
    guest.rings(began)
    guest.job.step()
    assert 0 <= guest.job.patience() < 0.3
    guest.says(1, began, ended, b'["ok", "", ""]')
    guest.job.step()
    execution = guest.ends()
    assert execution.outcome is Outcome.OK and 0 <= execution.duration < 5


def test_a_size_that_cannot_be_costs_no_memory(guest: Guest) -> None:
    begun(guest)
    os.pwrite(guest.record, struct.pack(wire.RECORD, 1, 2**32 - 1, 1.0, 1.0), 0)
    tracemalloc.start()
    try:
        execution = guest.ends(code=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert execution.error == "exit status 2"
    assert peak < 1 << 20


# --- output


def test_output_is_joined_and_drained_while_it_runs(guest: Guest) -> None:
    begun(guest)
    for _ in range(10):
        os.write(guest.stdout, b"x" * 100)
        guest.job.step()
    assert guest.ends() == Execution(Outcome.OK, "x" * 1000)


def test_output_that_is_too_much_ends_it(guest: Guest) -> None:
    begun(guest)
    os.write(guest.stdout, "π".encode() * 600)
    guest.job.step()
    assert guest.told_to_end()
    execution = guest.ends(-9)
    assert execution.outcome is Outcome.OUTPUT_LIMIT and execution.stdout == "π" * 500


@pytest.mark.parametrize("data", [b"a\xcf", "aπ".encode()[:-1]])
def test_a_character_cut_by_the_limit_is_dropped_and_by_the_program_replaced(data: bytes) -> None:
    with Guest(Limits(output_bytes=2)) as guest:
        begun(guest)
        os.write(guest.stdout, data)
        assert guest.ends().stdout == "a\ufffd"
    with Guest(Limits(output_bytes=2)) as guest:
        begun(guest)
        os.write(guest.stdout, data + b"more")
        guest.job.step()
        assert guest.ends(-9).stdout == "a"


# --- time


def test_patience_begins_with_the_program(guest: Guest) -> None:
    guest.job.begin("x")
    time.sleep(0.25)
    assert guest.job.patience() == pytest.approx(0.2, abs=0.01)
    assert guest.job.lapse() > 1  # it is still allowed to start
    guest.begins()
    assert guest.job.patience() == pytest.approx(0.2, abs=0.05)
    time.sleep(0.25)
    assert guest.job.patience() == 0
    guest.job.lapse()
    assert guest.told_to_end()
    error = "time limit: the program ran for more than 0.2 s"
    assert guest.ends(-9) == Execution(Outcome.TIMEOUT, "", error)


def test_waiting_for_a_processor_is_not_the_programs_time(guest: Guest, monkeypatch) -> None:
    begun(guest)
    time.sleep(0.25)
    monkeypatch.setattr(processes, "waiting_seconds", lambda pid: 5.0)
    assert guest.job.lapse() > 0.1
    monkeypatch.setattr(processes, "waiting_seconds", lambda pid: 1e9)
    assert guest.job.lapse() < 0.2 * 20  # not for ever
    guest.status.setblocking(False)
    with pytest.raises(BlockingIOError):
        guest.status.recv(1)


def test_a_process_that_never_begins_is_an_infrastructure_failure(
    guest: Guest, monkeypatch
) -> None:
    monkeypatch.setattr(job, "START_SECONDS", 0.01)
    guest.job.begin("x")
    time.sleep(0.02)
    guest.job.lapse()
    assert guest.told_to_end()
    execution = guest.ends(-9)
    assert execution.outcome is Outcome.INFRASTRUCTURE
    assert "did not begin in time" in execution.error


def test_a_guest_that_does_not_end_it_is_given_up(guest: Guest, monkeypatch) -> None:
    monkeypatch.setattr(job, "GONE_SECONDS", 0.01)
    begun(guest)
    time.sleep(0.25)
    assert guest.job.lapse() == 0.01 and not guest.job.hung
    assert guest.job.lapse() == 0.01 and guest.job.hung  # now the guest is to be ended
    assert not guest.job.gone
    guest.job.lapse()
    assert guest.job.gone and guest.job.execution().outcome is Outcome.TIMEOUT


def test_a_process_that_could_not_be_made_says_why(guest: Guest) -> None:
    guest.job.begin("x")
    guest.status.send(wire.FAILED + b"OSError: clone: no memory")
    guest.close()
    guest.job.step()
    assert guest.job.lost
    assert guest.job.execution() == Execution(
        Outcome.INFRASTRUCTURE, "", "the program was not run: OSError: clone: no memory"
    )


def test_a_guest_that_dies_is_an_infrastructure_failure(guest: Guest) -> None:
    begun(guest)
    os.write(guest.stdout, b"half")
    guest.close()
    guest.job.step()
    assert guest.job.lost
    guest.job.fail("killed")
    execution = guest.job.execution()
    assert execution.outcome is Outcome.INFRASTRUCTURE and execution.error.endswith("killed")


def test_readiness_is_told(guest: Guest) -> None:
    assert guest.job.ready == 0
    guest.status.send(wire.READY)
    guest.job.step()
    assert guest.job.ready == 1 and guest.job.pid == os.getpid()
    guest.status.send(wire.WARM)
    guest.job.step()
    assert guest.job.ready == 2


# --- sessions


def test_blocks_of_a_session_follow_each_other() -> None:
    with Guest(session=True) as guest:
        for number in (1, 2, 3):
            guest.job.begin(f"block {number}")
            assert guest.read() == (False, f"block {number}", "")
            guest.job.step()
            assert not guest.job.finished
            guest.begins(number)
            os.write(guest.stdout, f"{number}".encode())
            now = time.monotonic()
            guest.says(number, now, now, b'["ok", "", ""]')
            guest.source.send(b"\n")
            guest.job.step()
            assert guest.job.finished and not guest.job.gone
            assert guest.job.execution() == Execution(Outcome.OK, f"{number}")


def test_an_end_that_comes_while_patience_is_asked_for_still_wakes_the_driver() -> None:
    with Guest(session=True) as guest:
        guest.job.begin("one")
        guest.job.step()
        now = time.monotonic()
        guest.begins()
        guest.says(1, now, now, b'["ok", "", ""]')
        guest.source.send(b"\n")
        assert guest.job.patience() > 0
        waiting = select.poll()
        for descriptor, events in guest.job.interests().items():
            waiting.register(descriptor, events)
        assert waiting.poll(0)
        guest.job.step()
        assert guest.job.finished


def test_the_end_of_one_block_is_not_that_of_the_next() -> None:
    with Guest(session=True) as guest:
        guest.job.begin("one")
        now = time.monotonic()
        guest.begins()
        guest.says(1, now, now, b'["ok", "", ""]')
        guest.source.send(b"\n")
        guest.job.step()
        assert guest.job.finished
        guest.job.begin("two")
        guest.source.send(b"\n" * 3)  # rung too early
        guest.job.step()
        assert not guest.job.finished
