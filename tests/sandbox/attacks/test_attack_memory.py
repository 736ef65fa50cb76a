"""Attacks that fill memory, and the kernel's limits on memory."""

import pytest
from helpers.intruders import PATIENT, QUICK

from retool_env.sandbox import Limits, NsjailSandbox, Outcome


@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(2**30)",
        "x = []\nwhile True: x.append(bytes(2**20))",
        "x = 'a'\nwhile True: x += x",
        "x = 10 ** 10 ** 9",  # only computes, on and on
        "import numpy\nx = numpy.ones(2**28)",
        "x = [0]\nwhile True: x = [x, x] * len(x)",
    ],
)
def test_memory_bomb(jail: NsjailSandbox, code: str) -> None:
    execution = jail.run(code, Limits(wall_seconds=2, memory_mb=64))
    expected = Outcome.TIMEOUT if "10 **" in code else Outcome.MEMORY_LIMIT
    assert execution.outcome is expected


def test_memory_bomb_in_a_child(jail: NsjailSandbox) -> None:
    code = """
import os
if not os.fork():
    try: x = bytearray(2**30)
    except MemoryError: os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert jail.run(code, QUICK).stdout == "7\n"


def test_memory_behind_pipes(jail: NsjailSandbox) -> None:
    """A page of 2 MiB, in no address space, would live as long as 4 KiB of it wait in a pipe."""
    code = """
import ctypes, fcntl, os
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
large, kept = 2 << 20, 0
for _ in range(2):
    reader, writer = os.pipe()
    fcntl.fcntl(writer, 1031, 1 << 20)
    for _ in range(128):
        area = libc.mmap(None, ctypes.c_size_t(2 * large), 3, 0x22, -1, ctypes.c_long(0))
        start = (area + large - 1) // large * large
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(large), 14)
        ctypes.memset(start, 1, 4096)
        kept += libc.vmsplice(writer, ctypes.byref(Piece(start, 4096)), 1, 0) > 0
        libc.munmap(ctypes.c_void_p(area), ctypes.c_size_t(2 * large))
print(kept)
"""
    assert jail.run(code, PATIENT).stdout == "0\n"


def test_memory_behind_sockets(jail: NsjailSandbox) -> None:
    """Socket buffers are outside the address space: their number and size are bounded."""
    code = """
import socket
pairs = []
try:
    while True:
        pair = socket.socketpair()
        pairs.append(pair)
        for end in pair:
            try: end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
            except PermissionError: pass
            end.setblocking(False)
            try:
                while True: end.send(bytes(65536))
            except BlockingIOError: pass
except OSError:
    buffers = [end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for end in pair]
    print(len(pairs), sum(buffers) < 1 << 20)
"""
    shown = jail.run(code, PATIENT).stdout.split()
    assert int(shown[0]) < 64 and shown[1] == "True"


def test_deep_recursion(jail: NsjailSandbox) -> None:
    execution = jail.run("def f(): f()\nf()", QUICK)
    assert execution.outcome is Outcome.RUNTIME_ERROR
    assert execution.error.startswith("RecursionError")


def test_deep_recursion_in_c(jail: NsjailSandbox) -> None:
    """Recursion beyond the stack's end ends the process by a signal."""
    code = """
import sys
sys.setrecursionlimit(10**9)
class A:
    def __getattr__(self, name): return getattr(self, name + "x")
try:
    A().x
except RecursionError:
    import ctypes; ctypes.string_at(0)
"""
    execution = jail.run(code, PATIENT)
    assert execution.outcome in (Outcome.RUNTIME_ERROR, Outcome.MEMORY_LIMIT)


def test_crash(jail: NsjailSandbox) -> None:
    execution = jail.run("import ctypes\nctypes.string_at(0)", QUICK)
    assert (execution.outcome, execution.error) == (Outcome.RUNTIME_ERROR, "ended by SIGSEGV")


def test_nested_source(jail: NsjailSandbox) -> None:
    for code in ("(" * 5000, "x = " + "-" * 200_000 + "1", "[" * 150 + "]" * 150):
        assert jail.run(code, PATIENT).outcome in (
            Outcome.SYNTAX_ERROR,
            Outcome.RUNTIME_ERROR,
            Outcome.MEMORY_LIMIT,
            Outcome.OK,
        )


def test_source_of_ten_megabytes(jail: NsjailSandbox) -> None:
    code = f"x = '{'a' * 10_000_000}'\nprint(len(x))"
    assert jail.run(code, Limits(wall_seconds=10, memory_mb=512)).stdout == "10000000\n"
    # That it has no room for it is the program's own failure, however early.
    assert jail.run(code, Limits(wall_seconds=10, memory_mb=8)).outcome is Outcome.MEMORY_LIMIT


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CPU", 2),
        ("FSIZE", 2 << 20),
        ("NOFILE", 128),
        ("CORE", 0),
        ("MEMLOCK", 65_536),
        ("MSGQUEUE", 0),
        ("SIGPENDING", 1024),
        ("NPROC", 16),
    ],
)
def test_limit_of_the_kernel(jail: NsjailSandbox, name: str, value: int) -> None:
    """The limits are hard: a program cannot raise them."""
    numbers = {"CPU": 0, "FSIZE": 1, "CORE": 4, "NPROC": 6, "NOFILE": 7, "MEMLOCK": 8}
    number = numbers | {"SIGPENDING": 11, "MSGQUEUE": 12}
    code = f"""
import resource
print(*resource.getrlimit({number[name]}))
try:
    resource.setrlimit({number[name]}, ({value + 1}, {value + 1}))
except (ValueError, PermissionError):
    print("refused")
"""
    assert jail.run(code, QUICK).stdout == f"{value} {value}\nrefused\n"


def test_limit_of_address_space(jail: NsjailSandbox) -> None:
    code = """
import mmap, resource
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
taken, pieces = 0, []
try:
    while True:
        pieces.append(mmap.mmap(-1, 1 << 20))
        taken += 1
except OSError:
    print((hard - soft) >> 20, 48 <= taken <= 64)  # 16 MiB for the end of its process
"""
    assert jail.run(code, QUICK).stdout == "16 True\n"


def test_limit_of_processor_time(jail: NsjailSandbox) -> None:
    """The kernel's own limit works even without the host's clock."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
while True: pass
"""
    execution = jail.run(code, PATIENT)
    assert execution.outcome in (Outcome.TIMEOUT, Outcome.MEMORY_LIMIT)
    assert execution.duration < 8


def test_memory_while_the_guest_loads(jail: NsjailSandbox) -> None:
    """The limit bounds the memory that a program adds, however much its guest has loaded so far."""
    with NsjailSandbox(guests=1) as fresh:
        for _ in range(25):
            execution = fresh.run("import time\nx = bytearray(48 << 20)\ntime.sleep(0.05)", PATIENT)
            assert execution.outcome is Outcome.OK, execution
