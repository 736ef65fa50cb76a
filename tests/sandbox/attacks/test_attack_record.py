"""Attacks on the record, in which a process reports the end of its program.

A program can write any text about itself, and no more: it cannot report a failure of the sandbox,
gain time, or send a text that the host fails on.
"""

import asyncio
import struct
import time

import pytest
from helpers.intruders import QUICK, RECORD

from retool_env.sandbox import Limits, NsjailSandbox, Outcome
from retool_env.sandbox.guest import wire

HALF_SECOND = Limits(wall_seconds=0.5)


def forge(text: str, then: str = "os._exit(0)") -> str:
    """A program that writes `text` to its record and ends."""
    return f"{RECORD}\nrecord.write(1, time.monotonic(), time.monotonic(), {text})\n{then}"


def pack(number: str, size: str, began: str, ended: str) -> str:
    """A program that writes this header to its record.

    Args:
        number: The number of the block.
        size: The number of bytes of text.
        began: The start.
        ended: The end.
    """
    header = (
        f"struct.pack_into({wire.RECORD!r}, record._memory, 0, {number}, {size}, {began}, {ended})"
    )
    return f"{RECORD}\nnan, inf = float('nan'), float('inf')\n{header}\n"


@pytest.mark.parametrize(
    "text",
    [
        "b''",
        "b'null'",
        "b'[]'",
        "b'[1, 2, 3]'",
        "b'[null, null, null]'",
        "b'[[], {}, true]'",
        "b'[\"ok\", 1, 2]'",
        'b\'[{"a": 1}, "", ""]\'',
        'b\'{"ok": 1, "b": 2, "c": 3}\'',
        "b'\"abc\"'",
        'b\'["no such outcome", "", ""]\'',
        "b'[' * 60_000",
        "b'[' * 30_000 + b']' * 30_000",
        "b'{\"a\":' * 10_000",
        "b'9' * 60_000",
        "b'[1e999, NaN, -Infinity]'",
        "b'\\xff\\xfe\\x00'",
        'b\'["ok", "\\\\ud800", ""]\'',
        'b\'["ok", "\\xed\\xa0\\x80", ""]\'',
        "bytes(65_000)",
    ],
)
def test_text_that_is_none(jail: NsjailSandbox, text: str) -> None:
    """The exit status then says how the program ended."""
    assert jail.run(forge(text), QUICK).outcome is Outcome.OK
    execution = jail.run(forge(text, "os._exit(1)"), QUICK)
    assert (execution.outcome, execution.error) == (Outcome.RUNTIME_ERROR, "exit status 1")


FAILURES = {
    "a status": ("os._exit(3)", Outcome.RUNTIME_ERROR, "exit status 3"),
    "the status of a failure": ("os._exit(1)", Outcome.RUNTIME_ERROR, "exit status 1"),
    "sys.exit, and no way back": (
        "import atexit, sys\natexit.register(os._exit, 5)\nsys.exit(3)",
        Outcome.RUNTIME_ERROR,
        "exit status 5",
    ),
    "a loop": (
        "while True: pass",
        Outcome.TIMEOUT,
        "time limit: the program ran for more than 0.5 s",
    ),
    "a sleep": (
        "time.sleep(60)",
        Outcome.TIMEOUT,
        "time limit: the program ran for more than 0.5 s",
    ),
    "a crash": ("import ctypes\nctypes.string_at(0)", Outcome.RUNTIME_ERROR, "ended by SIGSEGV"),
    "an abort": ("os.abort()", Outcome.RUNTIME_ERROR, None),
    "an error, the record written again and again": (
        "import threading\ndef lie():\n    while True: record.write(1, 1.0, time.monotonic(), OK)\n"
        "threading.Thread(target=lie, daemon=True).start()\ntime.sleep(0.1)\nraise ValueError",
        Outcome.RUNTIME_ERROR,
        None,
    ),
    "output without end": (
        "while True: print('x' * 1000)",
        Outcome.OUTPUT_LIMIT,
        "output limit: the program wrote more than 10000 bytes",
    ),
}


@pytest.mark.parametrize(("then", "outcome", "error"), FAILURES.values(), ids=FAILURES)
def test_failure_that_says_it_is_none(
    jail: NsjailSandbox, then: str, outcome: Outcome, error: str | None
) -> None:
    """The host's observations decide: the exit status, the signal, the clock."""
    code = forge("OK", then).replace("record.write", 'OK = b\'["ok", "", ""]\'\nrecord.write', 1)
    execution = jail.run(code, QUICK)
    assert execution.outcome is outcome
    assert error is None or execution.error == error


@pytest.mark.parametrize("name", ["memory_limit", "timeout", "blocked", "runtime_error"])
def test_success_that_says_it_is_none(jail: NsjailSandbox, name: str) -> None:
    assert jail.run(forge(f'b\'["{name}", "no", ""]\''), QUICK).outcome is Outcome.OK


@pytest.mark.parametrize("name", ["infrastructure_failure", "INFRASTRUCTURE", "lost"])
def test_failure_of_the_sandbox(jail: NsjailSandbox, name: str) -> None:
    execution = jail.run(forge(f'b\'["{name}", "the guest died", ""]\''), QUICK)
    assert execution.outcome is Outcome.OK


def test_text_of_its_own(jail: NsjailSandbox) -> None:
    """The program's own error is one short line."""
    text = "b'[\"runtime_error\", \"one\\\\ntwo\\\\r\\\\u2028three' + b'x' * 60_000 + b'\", \"t\"]'"
    execution = jail.run(forge(text, "os._exit(1)"), QUICK)
    assert execution.outcome is Outcome.RUNTIME_ERROR and execution.error.startswith("one two")
    assert len(execution.error) <= 5000
    assert len(execution.error.splitlines()) == 1


@pytest.mark.parametrize("size", ["0", "65512", "65536", "2**31", "2**32 - 1"])
def test_size_that_is_none(jail: NsjailSandbox, size: str) -> None:
    code = pack("1", size, "1.0", "time.monotonic()") + "os._exit(0)"
    assert jail.run(code, QUICK).outcome is Outcome.OK


@pytest.mark.parametrize("ended", ["0.0", "-1.0", "nan", "inf", "-inf", "1e300", "5e-324"])
@pytest.mark.parametrize("began", ["0.0", "nan", "inf", "-1.0"])
def test_times_that_are_none(jail: NsjailSandbox, began: str, ended: str) -> None:
    execution = jail.run(pack("1", "0", began, ended) + "os._exit(0)", QUICK)
    assert execution.outcome is Outcome.OK
    assert 0 <= execution.duration < 5


@pytest.mark.parametrize("number", ["0", "2", "2**32 - 1"])
@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_program_that_says_it_has_not_begun(
    jail: NsjailSandbox, number: str, asynchronously: bool
) -> None:
    code = pack(number, "0", "nan", "0.0") + "time.sleep(60)"
    began = time.monotonic()
    if asynchronously:
        execution = asyncio.run(jail.run_async(code, HALF_SECOND))
    else:
        execution = jail.run(code, HALF_SECOND)
    assert execution.outcome is Outcome.TIMEOUT
    assert time.monotonic() - began < 10
    assert jail.run(pack(number, "0", "nan", "0.0") + "os._exit(0)", QUICK).outcome is Outcome.OK


def test_a_program_that_begins_again_and_again(jail: NsjailSandbox) -> None:
    code = f"""{RECORD}
while True:
    record.write(1, time.monotonic())
"""
    began = time.monotonic()
    assert jail.run(code, HALF_SECOND).outcome is Outcome.TIMEOUT
    assert time.monotonic() - began < 0.95 * 20 * HALF_SECOND.wall_seconds


def test_a_program_that_says_it_is_over(jail: NsjailSandbox) -> None:
    """A program is over when its process is gone."""
    code = f"""{RECORD}
record.write(1, time.monotonic(), time.monotonic(), b'["ok", "", ""]')
while True: pass
"""
    execution = jail.run(code, HALF_SECOND)
    assert execution.outcome is Outcome.TIMEOUT
    assert execution.duration < 5


def test_record_of_a_child(jail: NsjailSandbox) -> None:
    """Children share the memory, but the program writes last."""
    code = f"""{RECORD}
if not os.fork():
    record.write(1, 1.0, time.monotonic(), b'["memory_limit", "", ""]')
    os._exit(0)
os.wait()
raise ValueError("the truth")
"""
    assert jail.run(code, QUICK).error == "ValueError: the truth"


def test_record_is_zeroed_elsewhere(jail: NsjailSandbox) -> None:
    """Unmapping the record only ends the program with a signal."""
    code = f"""{RECORD}
import ctypes
view = (ctypes.c_char * {wire.RECORD_BYTES}).from_buffer(record._memory)
address = ctypes.c_void_p(ctypes.addressof(view))
ctypes.CDLL(None).munmap(address, ctypes.c_size_t({wire.RECORD_BYTES}))
"""
    execution = jail.run(code, QUICK)
    assert execution.outcome is Outcome.RUNTIME_ERROR
    assert execution.error == "ended by SIGSEGV"


def test_header_fits_what_is_forged_here() -> None:
    """If the record's format changes, these forgeries must follow."""
    assert struct.calcsize(wire.RECORD) == 24
    assert wire.RECORD_BYTES == 1 << 16


# --- sessions, whose programs hold the socket on which their blocks come


SOCKETS = """
import os, socket, stat
def sockets():
    for number in range(3, 4096):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode): yield number
        except OSError: pass
"""


@pytest.mark.parametrize(
    "attack",
    [
        "for n in sockets(): os.close(n)\ntime.sleep(60)",
        "for n in sockets(): socket.socket(fileno=n).shutdown(2)\nwhile True: time.sleep(1)",
        "for n in sockets():\n  while True: os.write(n, bytes(65536))",
        "for _ in range(3): os.fork()\nfor n in sockets():\n  while True: os.write(n, b'\\0')",
        "for n in sockets():\n  while True: os.read(n, 65536)",
    ],
)
@pytest.mark.parametrize("asynchronously", [False, True])
def test_socket_of_a_session(jail: NsjailSandbox, attack: str, asynchronously: bool) -> None:
    code = f"import time\n{SOCKETS}\n{attack}"
    began, busy = time.monotonic(), time.process_time()
    with jail.session(HALF_SECOND) as session:
        assert session.run("x = 5").outcome is Outcome.OK
        execution = asyncio.run(session.run_async(code)) if asynchronously else session.run(code)
        assert execution.outcome is Outcome.TIMEOUT
        assert time.monotonic() - began < 15
        if "close" in attack or "shutdown" in attack:  # the host has not waited in a busy loop
            assert time.process_time() - busy < 0.4
        again = session.run("print(6 * 7)")
        assert (again.outcome, again.stdout) == (Outcome.OK, "42\n")


def test_session_that_says_it_is_over(jail: NsjailSandbox) -> None:
    """A block that lies about its end disturbs only its own session."""
    code = f"import time\n{SOCKETS}\n{RECORD}\nrecord.write(1, 1.0, 2.0, b'')\n"
    code += "for n in sockets(): os.write(n, b'\\n')\ntime.sleep(60)"
    with jail.session(HALF_SECOND) as liar, jail.session(HALF_SECOND) as other:
        liar.run(code)
        assert other.run("print(6 * 7)").stdout == "42\n"
        assert liar.run("print(1)").outcome is Outcome.TIMEOUT
        assert liar.run("print(6 * 7)").stdout == "42\n"


def test_block_that_says_the_next_one_is_over(jail: NsjailSandbox) -> None:
    """A thread rings the next block's bell and keeps that block waiting; the record is older."""
    ring = "def ring():\n  time.sleep(1)\n  for n in sockets(): os.write(n, bytes(9))\n"
    ring += "  x = 9\n  x ** x ** x"

    code = f"import threading, time\n{SOCKETS}\n{ring}\nthreading.Thread(target=ring).start()"
    with jail.session(HALF_SECOND) as session:
        assert session.run(code).outcome is Outcome.OK
        time.sleep(1.3)  # its thread is stopped; it goes on with the next block
        execution = session.run("print(1)")
        # On a busy machine the block can be faster than the thread; then it has really run.
        assert execution.outcome is Outcome.TIMEOUT or execution.stdout == "1\n"
        assert session.run("print(6 * 7)").stdout in ("42\n", "")


def test_session_that_ends_between_blocks(jail: NsjailSandbox) -> None:
    """That end cannot pass for a failure of the sandbox."""
    code = "import os, threading\nthreading.Timer(0.2, os._exit, (0,)).start()"
    with jail.session(HALF_SECOND) as session:
        assert session.run(code).outcome is Outcome.OK
        time.sleep(0.5)
        lost = session.run("import time\ntime.sleep(0.4)")
        assert lost.outcome is Outcome.RUNTIME_ERROR and "the session was ended" in lost.error
        assert session.run("print(6 * 7)").stdout == "42\n"


OUT_OF_BLOCKS = {
    "a thread that keeps Python's lock": (
        "import threading\ndef f():\n    time.sleep(0.1)\n    x = 9\n    x ** x ** x\n"
        "threading.Thread(target=f).start()"
    ),
    "a handler that hangs": (
        "import signal\ndef h(*_):\n    while True: pass\n"
        "signal.signal(signal.SIGALRM, h)\nsignal.setitimer(signal.ITIMER_REAL, 0.1)"
    ),
    "a handler in a thread's time": (
        "import signal, threading\ndef h(*_): time.sleep(60)\nsignal.signal(signal.SIGALRM, h)\n"
        "late = lambda: (time.sleep(0.1), signal.raise_signal(signal.SIGALRM))\n"
        "threading.Thread(target=late).start()"
    ),
}


@pytest.mark.some(6)
@pytest.mark.parametrize("verdict", ["", "\nraise ValueError('one')"], ids=["ok", "error"])
@pytest.mark.parametrize("asynchronously", [False, True])
@pytest.mark.parametrize("code", OUT_OF_BLOCKS.values(), ids=OUT_OF_BLOCKS)
def test_block_that_keeps_the_next_one_out(
    jail: NsjailSandbox, code: str, asynchronously: bool, verdict: str
) -> None:
    """The next block has timed out, whatever the earlier block wrote."""
    with jail.session(HALF_SECOND) as session:
        first = session.run(f"import time\nprint('one')\n{code}{verdict}")
        assert first.stdout == "one\n"
        assert first.outcome is (Outcome.RUNTIME_ERROR if verdict else Outcome.OK)
        time.sleep(0.2)
        second = "import time\ntime.sleep(0.3)\nprint('two')"
        lost = asyncio.run(session.run_async(second)) if asynchronously else session.run(second)
        assert (lost.outcome, lost.stdout, lost.traceback) == (Outcome.TIMEOUT, "", "")
        assert lost.error == (
            "time limit: the program ran for more than 0.5 s; "
            "the session was ended by that, its variables are lost"
        )
        assert session.run("print('three')").stdout == "three\n"


@pytest.mark.parametrize("status", [0, 3])
def test_block_that_forges_its_record_and_ends_the_process(
    jail: NsjailSandbox, status: int
) -> None:
    """The host notices the end, and tells the model that the variables are lost."""
    with jail.session(HALF_SECOND) as session:
        lost = session.run(forge('b\'["ok", "", ""]\'', f"os._exit({status})"))
        assert lost.outcome is Outcome.RUNTIME_ERROR
        assert lost.error.startswith(f"exit status {status}; the session was ended")
