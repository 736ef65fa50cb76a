"""Runs many programs, some hostile, in one sandbox; no result may be lost, and nothing may grow.

    python -m benchmarks.soak --programs 50000

Each ordinary program prints a number that no other program has, so a result of another program is
noticed. At the start, in the middle and at the end, while no program runs, the benchmark measures
the memory of the host and the guests, open descriptors and processes. The figures go to
`benchmarks/results/soak.json`. The exit status is 1 if a result or a figure is wrong.
"""

import argparse
import asyncio
import gc
import os
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.parts.machine import descendants, resident_mb, shared_out_mb
from benchmarks.parts.results import RESULTS, write_results
from retool_env.execution import Execution, Limits, Outcome
from retool_env.sandbox import NsjailSandbox

CONCURRENCY = 64
LIMITS = Limits(wall_seconds=10, memory_mb=256)
SHORT = Limits(wall_seconds=0.3, memory_mb=256)


@dataclass(frozen=True)
class Kind:
    """One kind of program, with its expected result."""

    name: str
    """The name of the kind."""

    weight: int
    """The relative frequency of the kind."""

    code: str
    """The program; `NONCE` stands for a number that no other program has."""

    expected: Callable[[Execution, str], bool]
    """Whether an execution is right, given the number of `NONCE`."""

    limits: Limits = LIMITS
    """The limits of the program."""

    block: str = ""
    """The second block of a session, whose result counts; empty: a program without a session."""


def prints(execution: Execution, nonce: str) -> bool:
    """Whether the program ended well and printed only its number."""
    return execution == Execution(Outcome.OK, f"{nonce}\n")


def ends(outcome: Outcome, *others: Outcome) -> Callable[[Execution, str], bool]:
    """Make a check: the program printed its number first, and had one of these outcomes.

    Args:
        outcome: An allowed outcome.
        *others: More allowed outcomes.
    """

    def expected(execution: Execution, nonce: str) -> bool:
        return execution.outcome in (outcome, *others) and execution.stdout.startswith(f"{nonce}\n")

    return expected


FORGERY = """
import os, sys, time
frame = sys._getframe()
while not hasattr(frame.f_locals.get("self"), "_record"):
    frame = frame.f_back
frame.f_locals["self"]._record.write(1, time.monotonic(), time.monotonic(), b'["ok", "", ""]')
"""
"""A program that tries to forge a successful end."""

RAISED, LATE = ends(Outcome.RUNTIME_ERROR), ends(Outcome.TIMEOUT)
ENDED = ends(Outcome.RUNTIME_ERROR, Outcome.TIMEOUT)
"""The checks that several kinds share."""

KINDS = [
    Kind("plain", 500, "print(NONCE)", prints),
    Kind("numpy", 100, "import numpy\nprint(int(numpy.array([NONCE])[0]))", prints),
    Kind("sympy", 100, "import sympy\nprint(sympy.Integer(NONCE) + sympy.Integer(0))", prints),
    Kind("file", 60, "open('f', 'w').write('NONCE')\nprint(open('f').read())", prints),
    Kind("child", 40, "import os\nif os.fork() == 0: os._exit(0)\nos.wait()\nprint(NONCE)", prints),
    Kind("raises", 60, "print(NONCE)\n1 / 0", RAISED),
    Kind("no syntax", 30, "print(NONCE", lambda e, _: e.outcome is Outcome.SYNTAX_ERROR),
    Kind("crash", 30, "print(NONCE)\nimport ctypes\nctypes.string_at(0)", RAISED),
    Kind("memory", 20, "print(NONCE)\nx = bytes(10**9)", ends(Outcome.MEMORY_LIMIT)),
    Kind("flood", 20, "print(NONCE)\nwhile True: print('x' * 10**5)", ends(Outcome.OUTPUT_LIMIT)),
    Kind("sleep", 15, "print(NONCE)\nimport time\ntime.sleep(60)", LATE, SHORT),
    Kind("fork bomb", 5, "print(NONCE)\nimport os\nwhile True: os.fork()", ENDED, SHORT),
    Kind(
        "left behind",
        10,
        "print(NONCE)\nimport os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)",
        prints,
    ),
    Kind(
        "burning",
        5,
        "print(NONCE)\nimport os\nfor _ in range(8): os.fork()\nwhile True: pass",
        ENDED,
        SHORT,
    ),
    Kind("forged", 10, f"print(NONCE)\n{FORGERY}\nos._exit(3)", RAISED),
    Kind("forged, then sleeps", 5, f"print(NONCE)\n{FORGERY}\ntime.sleep(60)", LATE, SHORT),
    Kind("not closed", 10, "import os\nw = os.fdopen(1, 'w')\nw.write('NONCE\\n')", prints),
    Kind(
        "too many threads",
        5,
        "print(NONCE)\nimport threading, time\n"
        "for _ in range(40): threading.Thread(target=time.sleep, args=[0.2]).start()",
        RAISED,
    ),
    Kind(
        "cache",
        5,
        "print(NONCE)\nimport os\nfile = os.open(os.__file__, os.O_RDONLY)\n"
        "os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)",
        ends(Outcome.BLOCKED),
    ),
    Kind("session", 20, "x = NONCE", prints, block="print(x)"),
    Kind(
        "session, left behind",
        5,
        "import os\nx = NONCE\nif os.fork() == 0:\n    while True: pass",
        prints,
        block="print(x)",
    ),
    Kind(
        "session, kept out",
        5,
        "import signal\ndef hang(*_):\n    while True: pass\n"
        "signal.signal(signal.SIGALRM, hang)\nsignal.setitimer(signal.ITIMER_REAL, 0.001)",
        lambda execution, _: execution.outcome is Outcome.TIMEOUT and "session" in execution.error,
        SHORT,
        block="import time\ntime.sleep(0.01)\nprint(NONCE)\ntime.sleep(60)",
    ),
    Kind("blocked", 10, "print(NONCE)\nopen('/x', 'w')", ends(Outcome.BLOCKED)),
]


@dataclass(frozen=True)
class Figures:
    """The resources that the sandbox uses while no program runs."""

    programs: int
    """The number of programs so far."""
    host_mb: float
    """The resident memory of this process."""
    guests_mb: float
    """The memory of all descendants of this process; shared memory counts once."""
    descriptors: int
    """The number of open file descriptors of this process."""
    processes: int
    """The number of descendants of this process."""


def measure(programs: int) -> Figures:
    """Measure the resources.

    Args:
        programs: The number of programs so far.
    """
    gc.collect()
    guests = descendants()
    descriptors = len(os.listdir("/proc/self/fd"))
    return Figures(programs, resident_mb(), shared_out_mb(guests), descriptors, len(guests))


async def soak(sandbox: NsjailSandbox, programs: int, seed: int) -> dict:
    """Run the programs in two halves, and measure before, between and after.

    Args:
        sandbox: The sandbox.
        programs: The number of programs.
        seed: The seed of the order of kinds.

    Returns:
        `counts`: programs by kind and outcome. `wrong`: descriptions of wrong results. `figures`:
        the measurements. `seconds`: the time of the programs.
    """
    chance = random.Random(seed)
    kinds = chance.choices(KINDS, [kind.weight for kind in KINDS], k=programs)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    seconds, done, reported = 0.0, 0, time.monotonic()
    first = secrets.randbelow(10**9) + 10**9

    async def work(numbers: list[int]) -> None:
        nonlocal done, reported
        while numbers:
            number = numbers.pop()
            kind, nonce = kinds[number], str(first + number)
            code, block = (text.replace("NONCE", nonce) for text in (kind.code, kind.block))
            if block:
                with sandbox.session(kind.limits) as session:
                    await session.run_async(code)
                    execution = await session.run_async(block)
            else:
                execution = await sandbox.run_async(code, kind.limits)
            counts[f"{kind.name}: {execution.outcome}"] += 1
            if not kind.expected(execution, nonce):
                wrong.append(f"{kind.name}, {nonce}: {str(execution)[:300]}")
            done += 1
            if time.monotonic() - reported > 10:
                reported = time.monotonic()
                print(f"{done:>8} of {programs}, {len(wrong)} wrong", file=sys.stderr, flush=True)

    figures = [measure(0)]
    for half in (range(programs // 2), range(programs // 2, programs)):
        began = time.monotonic()
        numbers = [*half]
        await asyncio.gather(*(work(numbers) for _ in range(CONCURRENCY)))
        seconds += time.monotonic() - began
        await asyncio.sleep(2)  # until spare processes are ready
        figures.append(measure(done))
    return {"counts": counts, "wrong": wrong, "figures": figures, "seconds": seconds}


def grown(start: Figures, middle: Figures, end: Figures) -> list[str]:
    """Describe the resources that grew.

    Args:
        start: The figures at the start.
        middle: The figures after half of the programs.
        end: The figures at the end.
    """
    growth = []
    if end.host_mb > middle.host_mb * 1.1 + 5:
        growth.append(f"the host's memory grew from {middle.host_mb} to {end.host_mb} MB")
    if end.guests_mb > middle.guests_mb * 1.2 + 20:
        growth.append(f"the guests' memory grew from {middle.guests_mb} to {end.guests_mb} MB")
    if end.descriptors > start.descriptors + 20:
        growth.append(f"{end.descriptors - start.descriptors} more descriptors are open")
    if end.processes > start.processes + 4:
        growth.append(f"{end.processes - start.processes} more processes exist")
    return growth


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=50_000, metavar="N", help="(50000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of kinds (0)")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json", help="JSON file")
    options = parser.parse_args(arguments)
    if options.programs < 2:
        parser.error("--programs must be at least 2")
    before = measure(0)
    with NsjailSandbox(concurrency=CONCURRENCY) as sandbox:
        for _ in range(50):
            sandbox.run("import numpy, sympy")
        time.sleep(2)
        result = asyncio.run(soak(sandbox, options.programs, options.seed))
    left = measure(options.programs)
    ran = sum(result["counts"].values())
    problems = [*result["wrong"][:20], *grown(*result["figures"])]
    if ran != options.programs:
        problems.append(f"{options.programs - ran} programs are lost")
    if extra := left.processes - before.processes:
        problems.append(f"{extra} processes are left after the sandbox was closed")
    report = {
        "settings": {
            "programs": options.programs,
            "seed": options.seed,
            "concurrency": CONCURRENCY,
            "guests": sandbox.number_of_guests,
        },
        "programs_per_second": round(ran / result["seconds"], 1),
        "wrong": len(result["wrong"]),
        "problems": problems,
        "outcomes": dict(sorted(result["counts"].items())),
        "figures": [asdict(figures) for figures in (*result["figures"], left)],
    }
    write_results(options.out, report)
    print(f"{ran} programs, {report['programs_per_second']} a second, {report['wrong']} wrong")
    print("programs  host MB  guests MB  descriptors  processes")
    for figures in result["figures"]:
        print(
            f"{figures.programs:>8}  {figures.host_mb:>7}  {figures.guests_mb:>9}"
            f"  {figures.descriptors:>11}  {figures.processes:>9}"
        )
    for problem in problems:
        print(f"problem: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
