"""The kernel's limits of a program, and the names of signals."""

import signal

import pytest

from retool_env.execution import Limits
from retool_env.sandbox.kernel import bounds, signal_name


@pytest.mark.parametrize(("seconds", "cpu"), [(0.2, 2), (5, 6), (5.5, 7)])
def test_the_wall_clock_strikes_before_the_kernels_limit_of_one_thread(seconds, cpu):
    assert bounds(Limits(wall_seconds=seconds), session=False).cpu == cpu
    assert bounds(Limits(wall_seconds=seconds), session=True).cpu == 64 * cpu


def test_sizes_are_in_bytes_for_memory_and_in_mebibytes_for_tmp():
    bound = bounds(Limits(memory_mb=3, tmp_mb=4, processes=5), session=False)
    assert (bound.memory, bound.tmp, bound.processes) == (3 << 20, 4 << 20, 5)


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGKILL, "SIGKILL"), (40, "signal 40")],
)
def test_a_signal_without_a_name_is_told_by_its_number(number, name):
    assert signal_name(number) == name
