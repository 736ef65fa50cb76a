"""The worker process: its replies, its time limit and its end."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retool_env import grading

PROGRAM = "from worker.process import serve; serve(0.5, 1024)"


@pytest.fixture(scope="module")
def worker() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(grading.__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def ask(worker: "subprocess.Popen[bytes]", *question: list[str]) -> str:
    worker.stdin.write(json.dumps(question).encode() + b"\n")
    return worker.stdout.readline().decode().strip()


def test_the_reply_is_the_verdict(worker) -> None:
    assert ask(worker, [r"\sqrt{8}"], [r"2\sqrt{2}"]) == "1"
    assert ask(worker, [r"\sqrt{8}"], ["3"]) == "0"
    assert ask(worker, [r"\frac{"], ["3"]) == "0"
    assert ask(worker, [r"\sqrt{8}"]) == "1" and ask(worker, ["1 + "]) == "0"


def test_a_late_comparison_leaves_the_worker_alive(worker) -> None:
    assert ask(worker, ["(x+y+z)^{100}"], ["x+y"]) == "late"
    assert ask(worker, ["1+1"], ["2"]) == "1"


def test_the_worker_ends_with_its_input(worker) -> None:
    worker.stdin.close()
    assert worker.wait(30) == 0
