"""The description of the machine, and the measurement of processes and memory."""

from __future__ import annotations

import os
import subprocess
import sys

from helpers import ROOT

from benchmarks.parts import machine
from retool_env import REVISION
from retool_env.evaluation.identity import commit


def test_a_result_names_date_device_versions_revision_and_commit() -> None:
    head = machine.circumstances()
    assert list(head) == ["date", "device", "versions", "revision", "commit"]
    assert head["device"].startswith(f"{len(os.sched_getaffinity(0))} processors (")
    assert head["revision"] == REVISION and "python" in head["versions"]
    assert head["commit"] == commit()


def test_descendants_are_children_and_their_children() -> None:
    code = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '60']); "
        "print(child.pid, flush=True); sys.stdin.read(); child.kill(); child.wait()"
    )
    before = machine.descendants()
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as child:
        grandchild = int(child.stdout.readline())
        assert machine.descendants() - before >= {child.pid, grandchild}
        assert machine.shared_out_mb({child.pid, grandchild}) > 1
        child.stdin.close()
    assert not machine.descendants() & {child.pid, grandchild}
    assert machine.shared_out_mb({child.pid}) == 0  # the process has ended


def test_the_peak_remembers_memory_that_is_freed() -> None:
    """In a process of its own: this one may hold freed memory that the block would be made of."""
    code = """
import os
from benchmarks.parts import machine
machine.reset_peak()
before = machine.resident_mb()
block = bytearray(os.urandom(1)) * (64 << 20)
del block
assert machine.resident_mb(peak=True) >= before + 60 > machine.resident_mb()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
