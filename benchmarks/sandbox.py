"""Measures the speed of the sandbox against other ways to run a program.

    python -m benchmarks.sandbox

The benchmark compares `python -c`; a new nsjail with the same jail for each program; a lower bound;
and the pool. The lower bound is the fork of a process with the same packages, which exits at once.
The candidates take turns in rounds, so that other work on the machine slows all down alike. A
program has ended when all its processes are gone. The figures go to
`benchmarks/results/sandbox.json`.
"""

import argparse
import asyncio
import itertools
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.parts.machine import descendants, shared_out_mb
from benchmarks.parts.results import RESULTS, write_results
from retool_env.execution import Execution, Limits, Outcome
from retool_env.sandbox import NsjailSandbox
from retool_env.sandbox.command import INTERPRETER_OPTIONS, PACKAGES
from retool_env.sandbox.nsjail import jail_config
from retool_env.sandbox.survey import PACKAGES_FOLDER, survey

PRINT = "print(1)"
SOLVE = "from sympy import *\nx = symbols('x')\nprint(solve(x**2 - 5*x + 6, x))"
PROGRAMS = {"print(1)": (PRINT, "1\n"), "sympy.solve": (SOLVE, "[2, 3]\n")}

FLOOR = """
import os, sys, time
import numpy, sympy
for line in sys.stdin:
    began = time.perf_counter()
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    print(time.perf_counter() - began, flush=True)
"""

SLEEPERS, SLEEP = 256, 0.05
PAUSE = 0.02


def bare_python(code: str) -> str:
    """Run a program with `python -c`, without a jail, and return its output."""
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextmanager
def one_shot_jail(binary: str) -> Iterator[Callable[[str], str]]:
    """Start nsjail for each program, with the jail of the pool's guests.

    Args:
        binary: The path of nsjail.

    Yields:
        A function that runs a program and returns its output.
    """
    host = survey(list(PACKAGES))
    proc = os.open("/proc", os.O_RDONLY)
    config = os.memfd_create("nsjail-config")
    os.write(config, jail_config(host, PACKAGES, proc).encode())
    python = [str(host["executable"]), *INTERPRETER_OPTIONS, "-c"]
    command = [binary, "--config", f"/proc/self/fd/{config}", "--", *python]

    def run(code: str) -> str:
        start = f"import sys; sys.path.append({PACKAGES_FOLDER!r}); exec({code!r}, {{}})"
        done = subprocess.run(
            [*command, start], capture_output=True, text=True, pass_fds=(proc, config)
        )
        if done.returncode:
            raise RuntimeError(f"one-shot nsjail: {done.stderr[-500:]}")
        return done.stdout

    try:
        yield run
    finally:
        os.close(proc)
        os.close(config)


def _printed(execution: Execution) -> str:
    if execution.outcome is not Outcome.OK:
        raise RuntimeError(f"a program failed: {execution}")
    return execution.stdout


def quantiles(seconds: list[float]) -> dict[str, float]:
    """The median and 99th percentile (nearest rank) in milliseconds, and the number of values."""
    ordered = sorted(seconds)

    def rank(share: float) -> float:
        return round(1000 * ordered[math.ceil(share * len(ordered)) - 1], 2)

    return {"p50_ms": rank(0.5), "p99_ms": rank(0.99), "n": len(ordered)}


def timed(call: Callable[[], object]) -> float:
    """Time a call, in seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def latencies(sandbox: NsjailSandbox, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Time programs one after the other, with and without pauses.

    Args:
        sandbox: The sandbox of the pool.
        rounds: The number of rounds.

    Returns:
        The quantiles by program and pause, then by candidate.
    """
    times: dict[str, dict[str, list[float]]] = {}
    command = [sys.executable, "-I", "-c", FLOOR]
    pipe = subprocess.PIPE
    with (
        one_shot_jail(sandbox.binary) as jailed,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as floor,
    ):
        systems: dict[str, tuple[Callable[[str], str], int]] = {
            "python -c": (bare_python, 2),
            "one-shot nsjail": (jailed, 2),
            "the pool": (lambda code: _printed(sandbox.run(code)), 20),
        }
        assert floor.stdin and floor.stdout
        requests, answers = floor.stdin, floor.stdout

        def fork() -> float:
            requests.write("\n")
            requests.flush()
            return float(answers.readline())

        for number in range(rounds):
            for pause in (PAUSE, 0.0):
                how = f"{1000 * pause:.0f} ms pauses" if pause else "back to back"
                for name, (code, expected) in PROGRAMS.items():
                    row = times.setdefault(f"{name}, {how}", {})
                    for label, (run, repeats) in systems.items():
                        for _ in range(repeats):
                            time.sleep(pause)
                            began = time.perf_counter()
                            printed = run(code)
                            row.setdefault(label, []).append(time.perf_counter() - began)
                            if printed != expected:
                                raise RuntimeError(f"{label} printed {printed!r}")
                row = times.setdefault(f"nothing, {how}", {})
                for _ in range(20):
                    time.sleep(pause)
                    row.setdefault("fork and exit", []).append(fork())
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        requests.close()
    return {name: {who: quantiles(s) for who, s in row.items()} for name, row in times.items()}


async def throughput(sandbox: NsjailSandbox, code: str, programs: int, at_once: int) -> float:
    """Measure programs per second from one event loop.

    Args:
        sandbox: The sandbox.
        code: The program.
        programs: The number of programs.
        at_once: The number of programs at once.
    """
    left = [code] * programs

    async def work() -> None:
        while left:
            _printed(await sandbox.run_async(left.pop()))

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return round(programs / (time.perf_counter() - began), 1)


async def sleepers(sandbox: NsjailSandbox) -> tuple[float, float]:
    """Run many sleeping programs at once.

    Returns:
        The seconds until all have ended, and the longest time in milliseconds that the event loop
        was blocked.
    """
    code = f"import time; time.sleep({SLEEP})"
    longest, last = 0.0, time.perf_counter()

    async def heart() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last - 0.001), now

    beating = asyncio.create_task(heart())
    began = time.perf_counter()
    for execution in await asyncio.gather(*(sandbox.run_async(code) for _ in range(SLEEPERS))):
        _printed(execution)
    seconds = time.perf_counter() - began
    beating.cancel()
    return round(seconds, 3), round(1000 * longest, 1)


async def memory(sandbox: NsjailSandbox) -> float:
    """The memory of the guests and their programs in megabytes, with many programs in flight."""
    code = "import sympy, time; sympy.Integer(3) + 4; time.sleep(8)"
    limits = Limits(wall_seconds=30)
    tasks = [asyncio.create_task(sandbox.run_async(code, limits)) for _ in range(SLEEPERS)]
    await asyncio.sleep(5)
    megabytes = await asyncio.to_thread(lambda: shared_out_mb(descendants()))
    for task in tasks:
        _printed(await task)
    return megabytes


BOMBS = {
    "a program that burns": "while True: pass",
    "a fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "children that burn": "import os\nfor _ in range(14):\n    if os.fork() == 0: break\n"
    "while True: pass",
    "threads that burn": "import threading\ndef burn():\n    while True: sum(range(1000))\n"
    "for _ in range(14): threading.Thread(target=burn).start()\nburn()",
}
BOMB_SECONDS = 2.0


def bombs(sandbox: NsjailSandbox) -> dict[str, float]:
    """The seconds until endless programs are gone, on an otherwise idle machine."""
    limits, seconds = Limits(wall_seconds=BOMB_SECONDS), {}
    for name, code in BOMBS.items():
        began = time.perf_counter()
        execution = sandbox.run(code, limits)
        seconds[name] = round(time.perf_counter() - began, 2)
        if execution.outcome is not Outcome.TIMEOUT:
            raise RuntimeError(f"{name} did not end with a timeout: {execution}")
    return seconds


def blocks(sandbox: NsjailSandbox, number: int) -> dict[str, float]:
    """The quantiles of `print(1)` blocks in one session, one after the other."""
    with sandbox.session() as session:
        return quantiles([timed(lambda: _printed(session.run(PRINT))) for _ in range(number)])


def start() -> dict[str, float]:
    """The seconds from the start of a sandbox to its first result, and to a sympy result."""
    began = time.perf_counter()
    with NsjailSandbox() as sandbox:
        _printed(sandbox.run(PRINT))
        first = time.perf_counter() - began
        _printed(sandbox.run(SOLVE))
        return {"print(1)": round(first, 3), "sympy.solve": round(time.perf_counter() - began, 3)}


def table(latency: dict[str, dict[str, dict[str, float]]]) -> str:
    """The latencies as text."""
    candidates = ["python -c", "one-shot nsjail", "fork and exit", "the pool"]
    lines = [f"{'milliseconds, p50 / p99':<28}" + "".join(f"{who:>19}" for who in candidates)]
    for program, row in sorted(latency.items()):
        cells = [
            f"{row[who]['p50_ms']:.2f} / {row[who]['p99_ms']:.2f}" if who in row else ""
            for who in candidates
        ]
        lines.append(f"{program:<28}" + "".join(f"{cell:>19}" for cell in cells))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="rounds of latencies (10)")
    parser.add_argument("--programs", type=int, default=2000, help="for the throughput (2000)")
    parser.add_argument("--out", type=Path, default=RESULTS / "sandbox.json", help="JSON file")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.programs < 1:
        parser.error("--rounds and --programs must be at least 1")
    starts = [start() for _ in range(3)]
    with NsjailSandbox(guests=1) as sandbox:
        sandbox.run(SOLVE)
        time.sleep(3)
        one_guest = shared_out_mb(descendants())
    with NsjailSandbox() as sandbox:
        for _ in range(50):
            sandbox.run(SOLVE)
        time.sleep(2)
        latency = latencies(sandbox, options.rounds)
        rates = {}
        for (name, (code, _)), at_once in itertools.product(PROGRAMS.items(), (8, 64)):
            measuring = throughput(sandbox, code, options.programs, at_once)
            rates[f"{name}, {at_once} at once"] = asyncio.run(measuring)
        slept, blocked = asyncio.run(sleepers(sandbox))
        in_flight = asyncio.run(memory(sandbox))
        of_blocks = blocks(sandbox, 500)
        bombed = bombs(sandbox)
    report: dict[str, Any] = {
        "settings": {"rounds": options.rounds, "programs": options.programs, "pause_s": PAUSE},
        "latency": latency,
        "programs_per_second": rates,
        "sleepers": {
            "programs": SLEEPERS,
            "each_s": SLEEP,
            "all_s": slept,
            "loop_blocked_ms": blocked,
        },
        "memory_mb": {"one guest": one_guest, f"{SLEEPERS} in flight": in_flight},
        "session_block": of_blocks,
        "bombs": {"limit_s": BOMB_SECONDS, "ended_after_s": bombed},
        "start_s": {name: sorted(s[name] for s in starts)[1] for name in starts[0]},
    }
    write_results(options.out, report)
    print(table(latency))
    for name, rate in rates.items():
        print(f"{rate:>9.1f}  programs a second: {name}")
    print(
        f"{slept:>9.3f}  s for {SLEEPERS} programs that sleep {SLEEP} s; the event loop was "
        f"blocked for at most {blocked} ms"
    )
    print(
        f"{in_flight - one_guest:>9.0f}  MB with {SLEEPERS} programs in flight, beyond the "
        f"{one_guest:.0f} MB of one guest"
    )
    p50, p99 = of_blocks["p50_ms"], of_blocks["p99_ms"]
    print(f"{p50:>9.2f}  ms per block of a session with print(1) ({p99} p99)")
    for name, seconds in bombed.items():
        print(f"{seconds:>9.2f}  s until {name} is gone, with a limit of {BOMB_SECONDS:g} s")
    for name, seconds in report["start_s"].items():
        print(f"{seconds:>9.3f}  s from the start of a sandbox to the result of {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
