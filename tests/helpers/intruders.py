"""Shared parts of the attack tests: how attacks run, and how the host observes them."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from retool_env.sandbox import Execution, Limits, NsjailSandbox

QUICK = Limits(wall_seconds=0.5, memory_mb=64, output_bytes=10_000, tmp_mb=2)
"""Limits that an attack reaches soon."""

PATIENT = Limits(wall_seconds=10, memory_mb=64, output_bytes=10_000, tmp_mb=2)
"""Limits of programs that end by themselves."""

CHECK = """
import os, sympy
print(6 * 7, sympy.factorint(360), os.listdir("/tmp"), os.get_blocking(0))
"""
"""The program after each attack. It checks arithmetic, the preloaded package, the folder, and the
shared descriptor."""

CALL = """
import ctypes, errno, os, platform
libc = ctypes.CDLL(None, use_errno=True)
def call(x86_64, aarch64, *arguments):
    number = x86_64 if platform.machine() == "x86_64" else aarch64
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *wide)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else result
"""
"""Defines `call`: a system call by number, which returns its result or the name of its error."""

RECORD = """
import os, struct, sys, time
frame = sys._getframe()
while not hasattr(frame.f_locals.get("self"), "_record"):
    frame = frame.f_back
record = frame.f_locals["self"]._record
"""
"""Finds the record through which a process reports the result of its program."""

_SETTLE_SECONDS = 10


def descendants(pid: int) -> list[int]:
    """The process ids, on the host, of the living descendants of `pid`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if state not in "ZX":
            children.setdefault(int(parent), []).append(int(entry.name))
    found, look = [], [pid]
    while look:
        below = children.get(look.pop(), [])
        found += below
        look += below
    return found


def status(pid: int, field: str) -> list[str]:
    """The words after the name of a field in `/proc/PID/status`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{field}:")).split()[1:]


def guest_processes(jail: NsjailSandbox) -> tuple[int, int]:
    """The ids, on the host, of the supervisor and the template of the guest without packages.

    They are its two oldest processes.
    """
    ages = {}
    for pid in descendants(jail.pool.guests[0].process.pid):
        with suppress(OSError):  # a spare process has ended meanwhile
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ages[pid] = int(fields[19])
    supervisor, template, *_ = sorted(ages, key=lambda pid: ages[pid])
    return supervisor, template


def inside(pid: int) -> str:
    """The id of a process in its innermost PID namespace; empty if it has ended."""
    try:
        return status(pid, "NSpid")[-1]
    except OSError:
        return ""


def left_behind(jail: NsjailSandbox) -> list[int]:
    """The processes of the guests that belong to no program, after all programs have ended."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        # A guest has these two processes and its spare processes.
        expected = 2 * len(jail.pool.guests) + len(jail.pool.spares)
        found = [pid for guest in jail.pool.guests for pid in descendants(guest.process.pid)]
        if len(found) <= expected or time.monotonic() > deadline:
            return found[expected:]
        time.sleep(0.02)


def together(jail: NsjailSandbox, *programs: str, limits: Limits = PATIENT) -> list[Execution]:
    """Run programs at the same time, each started a little later than the program before it.

    Args:
        jail: The sandbox.
        *programs: The texts of the programs.
        limits: The limits of each program.
    """
    with ThreadPoolExecutor(len(programs)) as threads:
        futures = []
        for program in programs:
            futures.append(threads.submit(jail.run, program, limits))
            time.sleep(0.2)
        return [future.result() for future in futures]
