"""The kernel's terms of a program: the limits that it enforces, and the signals that end it."""

import math
import signal

from retool_env.execution import Limits
from retool_env.sandbox.guest import wire

_SESSION_BLOCKS = 64  # a session may use as much processor time as this number of blocks


def bounds(limits: Limits, session: bool) -> wire.Bounds:
    """The limits that the kernel enforces on a process.

    Args:
        limits: The limits of the program.
        session: Whether the process runs more than one block.
    """
    # The wall clock strikes first, unless several threads run.
    cpu = math.ceil(limits.wall_seconds) + 1
    return wire.Bounds(
        memory=limits.memory_mb << 20,
        cpu=cpu * _SESSION_BLOCKS if session else cpu,
        processes=limits.processes,
        tmp=limits.tmp_mb << 20,
    )


def signal_name(number: int) -> str:
    """The name of a signal, such as `SIGSEGV`."""
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"
