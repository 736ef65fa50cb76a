"""/proc's information about real processes that the tests start."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from retool_env.sandbox import processes
from retool_env.sandbox.processes import Burden, below, go_on, stop

TREE = """
import os, sys, time
children = []
for _ in range(2):
    if os.fork() == 0:
        if os.fork() == 0:
            {leaf}
        time.sleep(60)
print("ready", flush=True)
{root}
"""


@pytest.fixture
def tree(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A process with two children and two grandchildren; `param`: the code of leaves and root."""
    leaf, root = request.param
    process = subprocess.Popen(
        [sys.executable, "-c", TREE.format(leaf=leaf, root=root)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 30
    while len(below(process.pid)) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    yield process
    os.killpg(process.pid, 9)
    process.wait()
    process.stdout.close()


SLEEP, SPIN = "time.sleep(60)", "while True: pass"


@pytest.mark.parametrize("tree", [(SLEEP, SLEEP)], indirect=True)
def test_all_below_are_found(tree: subprocess.Popen[str]) -> None:
    found = below(tree.pid)
    assert len(found) == len(set(found)) == 4
    children = [pid for pid in found if len(below(pid)) == 1]
    assert len(children) == 2 and below(1 << 22) == []


@pytest.mark.parametrize("tree", [(SPIN, SLEEP)], indirect=True)
def test_what_others_take_is_counted(tree: subprocess.Popen[str]) -> None:
    before = Burden(tree.pid)
    time.sleep(0.5)
    after = Burden(tree.pid)
    assert before.running and after.running
    assert after.seconds - before.seconds > 0.05


@pytest.mark.parametrize("tree", [(SLEEP, SPIN)], indirect=True)
def test_what_the_first_thread_takes_is_not(tree: subprocess.Popen[str]) -> None:
    time.sleep(0.1)
    before = Burden(tree.pid)
    time.sleep(0.5)
    after = Burden(tree.pid)
    assert not before.running and not after.running
    assert abs(after.seconds - before.seconds) < 0.05


def test_what_children_took_that_have_ended_is_counted() -> None:
    before = Burden(os.getpid()).seconds
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert Burden(os.getpid()).seconds - before > 0.25


def test_a_process_that_is_gone_takes_nothing() -> None:
    assert (Burden(1 << 22).seconds, Burden(1 << 22).running) == (0.0, False)


@pytest.mark.parametrize("tree", [(SPIN, SLEEP)], indirect=True)
def test_all_below_are_stopped_and_go_on(tree: subprocess.Popen[str]) -> None:
    assert stop(tree.pid)
    time.sleep(0.2)
    stopped = Burden(tree.pid)
    time.sleep(0.3)
    assert Burden(tree.pid).seconds - stopped.seconds < 0.05 and not stopped.running
    go_on(tree.pid)
    deadline = time.monotonic() + 30
    while not Burden(tree.pid).running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Burden(tree.pid).running


def test_those_that_escape_again_and_again_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(1 << 22, 1 << 23))
    monkeypatch.setattr(processes, "below", lambda pid: [next(numbers)])
    assert not stop(os.getpid())
