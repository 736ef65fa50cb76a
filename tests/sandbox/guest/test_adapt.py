"""What a program sees of the limits: numbers, and errors that name the limit."""

import os

import pytest

from retool_env.sandbox import Limits, Outcome, Sandbox


@pytest.mark.parametrize("processes", [1, 3, 16])
def test_processors_are_those_that_the_limits_allow(either: Sandbox, processes: int) -> None:
    code = (
        "import multiprocessing, os\n"
        "print(os.cpu_count(), multiprocessing.cpu_count(), len(os.sched_getaffinity(0)),"
        " getattr(os, 'process_cpu_count', os.cpu_count)())"
    )
    number = min(4, processes, len(os.sched_getaffinity(0)))
    execution = either.run(code, Limits(processes=processes))
    assert execution.stdout == f"{number} {number} {number} {number}\n"


FULL = {
    "threads": (
        "import threading, time\n"
        "for _ in range(40): threading.Thread(target=time.sleep, args=[0.2]).start()",
        "RuntimeError: can't start new thread",
    ),
    "a pool of threads": (
        "from concurrent.futures import ThreadPoolExecutor\nimport time\n"
        "with ThreadPoolExecutor(40) as pool: list(pool.map(time.sleep, [0.05] * 99))",
        "RuntimeError: can't start new thread",
    ),
    "forks": (
        "import os, time\nfor _ in range(40):\n    if os.fork() == 0: time.sleep(9)",
        "BlockingIOError: [Errno 11] Resource temporarily unavailable",
    ),
    "a pool of processes": (
        "import multiprocessing\nmultiprocessing.Pool(40)",
        "BlockingIOError: [Errno 11] Resource temporarily unavailable",
    ),
    "subprocesses": (
        "import subprocess, sys\n"
        "command = [sys.executable, '-S', '-c', 'import time; time.sleep(9)']\n"
        "for _ in range(40): subprocess.Popen(command)",
        "BlockingIOError: [Errno 11] Resource temporarily unavailable",
    ),
}


@pytest.mark.parametrize(("code", "error"), FULL.values(), ids=FULL)
def test_the_limit_on_processes_is_named(jail: Sandbox, code: str, error: str) -> None:
    execution = jail.run(code)
    assert execution.outcome is Outcome.RUNTIME_ERROR
    assert execution.error == f"{error}: the sandbox allows 16 processes and threads at once"


def test_a_thread_without_memory_is_told_of_memory(jail: Sandbox) -> None:
    code = (
        "import threading, time\nthreading.stack_size(1 << 28)\n"
        "for _ in range(9): threading.Thread(target=time.sleep, args=[0.1]).start()"
    )
    execution = jail.run(code, Limits(memory_mb=600))
    error = "RuntimeError: can't start new thread: the sandbox allows 600 MiB to each process"
    assert execution.error == error


def test_an_ordinary_lack_of_data_is_not_told_of_processes(jail: Sandbox) -> None:
    code = "import os\nread, _ = os.pipe()\nos.set_blocking(read, False)\nos.read(read, 1)"
    assert jail.run(code).error == "BlockingIOError: [Errno 11] Resource temporarily unavailable"


METHODS = {
    "spawn": "m.get_context('spawn').Process(target=print).start()",
    "forkserver": "m.get_context('forkserver').Process(target=print).start()",
    "a pool": "m.set_start_method('spawn')\nm.Pool(2)",
    "an executor": (
        "from concurrent.futures import ProcessPoolExecutor as P\n"
        "with P(2, mp_context=m.get_context('spawn')) as p: p.submit(abs, 1).result()"
    ),
}


@pytest.mark.parametrize("code", METHODS.values(), ids=METHODS)
def test_start_methods_that_cannot_work_are_refused_at_once(either: Sandbox, code: str) -> None:
    execution = either.run(f"import multiprocessing as m\n{code}")
    assert execution.outcome is Outcome.BLOCKED
    assert "start processes by the method 'fork': multiprocessing.get_context('fork')" in (
        execution.error
    )


def test_a_manager_is_refused_at_once(either: Sandbox) -> None:
    execution = either.run("import multiprocessing\nmultiprocessing.Manager()")
    assert execution.outcome is Outcome.BLOCKED
    assert "a manager listens on a socket: share by" in execution.error
