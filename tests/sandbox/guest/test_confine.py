"""Each restriction of a process by itself, in a fresh process."""

import os
import resource
import struct
import subprocess
import sys
import textwrap

import pytest

from retool_env.sandbox.guest import confine, wire


def alone(code: str) -> str:
    """The output of a fresh process that imports `confine` and runs `code`."""
    head = "import ctypes, errno, os, resource\n"
    head += "from retool_env.sandbox.guest import confine, syscalls, wire\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_address_space_is_what_the_kernel_counts() -> None:
    stdout = alone("""
        own = confine.address_space()
        pages = int(open("/proc/self/statm").read().split()[0])
        print(own - pages * os.sysconf("SC_PAGE_SIZE"), resource.getrlimit(resource.RLIMIT_AS))
    """)
    difference, limits = stdout.split(" ", 1)
    assert abs(int(difference)) < 1 << 20
    assert limits.strip() == str(resource.getrlimit(resource.RLIMIT_AS))


def test_limits_are_set_soft_and_hard() -> None:
    stdout = alone("""
        bounds = wire.Bounds(memory=1 << 28, cpu=7, processes=9, tmp=1 << 20)
        confine.limit_template()
        confine.limit(bounds, 1 << 30)
        for name in ("AS", "CPU", "NPROC", "FSIZE", "NOFILE", "CORE", "MSGQUEUE", "MEMLOCK"):
            print(name, *resource.getrlimit(getattr(resource, f"RLIMIT_{name}", 12)))
    """)
    found = {line.split()[0]: line.split()[1:] for line in stdout.splitlines()}
    memory = (1 << 30) + (1 << 28)
    expected = {"AS": memory, "CPU": 7, "NPROC": 9, "FSIZE": 1 << 20, "NOFILE": 128, "CORE": 0}
    room = str(memory + (16 << 20))  # for the end of the process
    assert found["AS"] == [str(expected.pop("AS")), room]
    assert {name: found[name] for name in expected} == {
        name: [str(value)] * 2 for name, value in expected.items()
    }
    assert found["MSGQUEUE"] == ["0", "0"]


def test_a_lower_hard_limit_is_kept() -> None:
    stdout = alone("""
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 50))
        confine.limit(wire.Bounds(1 << 28, 7, 9, 1 << 20), 1 << 30, processes=False)
        print(resource.getrlimit(resource.RLIMIT_NOFILE))
    """)
    assert stdout == "(50, 50)\n"


def test_memory_beyond_the_limit_is_refused() -> None:
    stdout = alone("""
        confine.limit(wire.Bounds(64 << 20, 7, 9, 1 << 20), confine.address_space())
        x = bytes(40 << 20)
        del x
        try:
            bytes(80 << 20)
        except MemoryError:
            print("refused")
    """)
    assert stdout == "refused\n"


def test_the_filter_holds_and_children_inherit_it() -> None:
    stdout = alone("""
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.unshare(0x40000))  # CLONE_SYSVSEM, which anyone may
        libc.prctl(38, 1, 0, 0, 0)  # no new privileges
        confine.install_filter(syscalls.program_filter())
        def call():
            print(libc.unshare(0x40000), errno.errorcode[ctypes.get_errno()], flush=True)
        call()
        if os.fork() == 0:
            call()
            os._exit(0)
        os.wait()
    """)
    assert stdout == "0\n" + "-1 EPERM\n" * 2


def test_a_hidden_process_is_not_dumpable() -> None:
    stdout = alone("""
        libc = ctypes.CDLL(None)
        print(libc.prctl(3, 0, 0, 0, 0))
        confine.hide()
        print(libc.prctl(3, 0, 0, 0, 0))
    """)
    assert stdout == "1\n0\n"


def test_huge_pages_lose_nothing() -> None:
    stdout = alone("""
        kept = [bytes([n % 251]) * 1_000_000 for n in range(40)]
        regions = confine.own_memory(open("/proc/self/maps").read())
        assert any(first <= id(kept) < end for first, end in regions)
        confine.use_huge_pages(regions)
        print(all(data == bytes([n % 251]) * 1_000_000 for n, data in enumerate(kept)))
    """)
    assert stdout == "True\n"


def test_a_failing_call_says_which_and_why() -> None:
    with pytest.raises(OSError, match="prctl: Invalid argument"):
        confine.install_filter(b"")


def test_what_is_recorded_can_be_read_by_the_host() -> None:
    descriptor = os.memfd_create("record")
    os.ftruncate(descriptor, wire.RECORD_BYTES)
    record = confine.Record(descriptor)
    record.write(3, 1.5)
    assert os.pread(descriptor, 24, 0) == struct.pack(wire.RECORD, 3, 0, 1.5, 0.0)
    record.write(4, 1.5, 2.5, b"said")
    assert os.pread(descriptor, 28, 0) == struct.pack(wire.RECORD, 4, 4, 1.5, 2.5) + b"said"
    record.write(5, 1.5, 2.5, b"x" * 2 * wire.RECORD_BYTES)
    room = wire.RECORD_BYTES - struct.calcsize(wire.RECORD)
    assert struct.unpack(wire.RECORD, os.pread(descriptor, 24, 0)) == (5, room, 1.5, 2.5)
    os.close(descriptor)
    record.write(6, 1.5)  # it needs no descriptor


def test_a_record_needs_memory_behind_it() -> None:
    with pytest.raises(OSError, match="record"):
        confine.Record(-1)
