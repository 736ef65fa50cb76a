"""The worker processes: none hangs, a bomb delays no other answer, a death changes no verdict."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from retool_env.grading import Grader, GraderUnavailable


@pytest.fixture
def impatient():
    grader = Grader(seconds=1.0, memory_mb=512, workers=1)
    yield grader
    grader.close()


def test_plain_integers_need_no_process():
    grader = Grader()
    assert grader.is_equivalent("042", "42") and not grader.is_equivalent("43", "42")
    assert not grader.processes


BOMBS = [
    "9^{9^{9^9}}",
    r"\boxed{10^{10^{10}}}",
    "(10^9)!",
    "(x+y+z)^{100}",
    r"\sum_{i=1}^{10^9} i^i",
    "(" * 300 + "1" + ")" * 300,
    "{" * 900 + "1" + "}" * 900,
    "2" * 100_000 + "+x",
]


@pytest.mark.some(3)
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_wrong_and_the_next_answer_is_graded(impatient, bomb):
    assert not impatient.is_equivalent(bomb, "42")
    assert impatient.is_equivalent(r"\sqrt{4}", "2")


def test_memory_is_bounded(impatient):
    assert impatient.is_equivalent(r"\sqrt{4}", "2")
    (worker,) = impatient.processes
    limits = Path(f"/proc/{worker.pid}/limits").read_text()
    assert f"{512 << 20}" in next(x for x in limits.splitlines() if "address space" in x)


def test_a_worker_that_has_grown_is_replaced_without_a_wrong_verdict():
    grader = Grader(memory_mb=115, workers=1)  # a new worker already uses more than half of it
    processes = set()
    for i in range(1, 4):
        assert grader.is_equivalent(rf"\sqrt{{{i}}}", rf"\frac{{\sqrt{{{4 * i}}}}}{{2}}")
        processes |= {worker.pid for worker in grader.processes}
    assert len(processes) == 3
    grader.close()


def test_a_killed_worker_is_replaced(impatient):
    assert impatient.is_equivalent(r"\sqrt{4}", "2")
    (worker,) = impatient.processes
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert impatient.is_equivalent(r"\sqrt{4}", "2")
    assert worker not in impatient.processes


def test_threads_share_workers():
    grader = Grader(workers=2)
    verdicts = {}

    def grade(i):
        verdicts[i] = [
            grader.is_equivalent(rf"\frac{{{i}\pi}}{{7}}", rf"\pi\frac{{{j}}}{{7}}")
            for j in range(6)
        ]

    threads = [threading.Thread(target=grade, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {i: [i == j for j in range(6)] for i in range(6)}
    assert len(grader.processes) <= 2 * 2  # two lanes of two workers
    grader.close()


def test_close_ends_the_processes_and_a_fork_starts_its_own(impatient):
    assert impatient.is_equivalent(r"\sqrt{4}", "2")
    (worker,) = impatient.processes
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            foreign = worker in impatient.processes
            right = impatient.is_equivalent(r"\sqrt{4}", "2") and not impatient.is_equivalent(
                "1", "x"
            )
            own = next(iter(impatient.processes)).pid != worker.pid
            impatient.close()
            os.write(write, b"ok" if right and own and not foreign else b"no")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    assert os.read(read, 10) == b"ok"
    os.close(read)
    assert worker.poll() is None  # the child did not end its parent's worker
    assert impatient.is_equivalent(r"\sqrt{9}", "3") and impatient.processes == {worker}
    impatient.close()
    assert worker.poll() is not None


def test_a_worker_below_a_large_process_lives_on():
    """A trainer uses gigabytes, and a child process inherits its parent's peak of memory."""
    program = (
        "ballast = b'x' * (700 << 20)\n"
        "from retool_env.grading import Grader\n"
        "grader = Grader(memory_mb=1024, workers=1)\n"
        "assert grader.is_equivalent(r'\\sqrt{9}', '3')\n"
        "(first,) = grader.processes\n"
        "assert grader.is_equivalent(r'\\sqrt{4}', '2') and grader.processes == {first}\n"
        "assert first.poll() is None\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_broken_installation_is_an_error_and_not_a_wrong_answer(monkeypatch, tmp_path):
    Path(tmp_path, "math_verify.py").write_text("raise ImportError('no math_verify')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(GraderUnavailable, match="no math_verify"):
        Grader().is_equivalent(r"\sqrt{4}", "2")


@pytest.mark.slow
def test_bombs_do_not_delay_plain_answers_or_algebra() -> None:
    grader = Grader(seconds=1.0, memory_mb=1024, workers=1)
    ended: list[str] = []

    async def grade(name: str, answer: str, gold: str) -> bool:
        right = await grader.is_equivalent_async(answer, gold)
        ended.append(name)
        return right

    async def all_of_them() -> None:
        bombs = [
            asyncio.create_task(grade("bomb", f"(x+y+z)^{{{90 + i}}}", "x+y")) for i in range(4)
        ]
        await asyncio.sleep(0)  # the bombs are submitted now
        assert await grade("plain", "042", "42")
        assert await grade("algebra", r"\sqrt{8}", r"2\sqrt{2}")
        assert not any(await asyncio.gather(*bombs))

    asyncio.run(all_of_them())
    grader.close()
    assert ended[0] == "plain"
    # With one worker for all comparisons, the algebra would end last.
    assert "bomb" in ended[ended.index("algebra") :]


def test_time_is_counted_in_processor_time_so_that_a_busy_machine_changes_no_verdict(
    impatient,
) -> None:
    assert impatient.is_equivalent(r"\sqrt{4}", "2")
    (worker,) = impatient.processes
    os.kill(worker.pid, signal.SIGSTOP)
    resume = threading.Timer(1.5, os.kill, (worker.pid, signal.SIGCONT))
    resume.start()
    assert impatient.is_equivalent(r"\sqrt{9}", "3")
    resume.join()
    assert impatient.processes == {worker}
