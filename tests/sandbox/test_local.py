"""Many programs: limits, concurrency, cancellation, threads, event loops; in both sandboxes."""

import asyncio
import gc
import multiprocessing
import os
import pickle
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.marks import Mark
from helpers.tree import children, descendants, descriptors, left_of, settled_descriptors

from retool_env.sandbox import Execution, Limits, NsjailSandbox, Outcome, Sandbox, UnsafeSandbox

SHORT = Limits(wall_seconds=0.5)
LONG = Limits(wall_seconds=60)
TIME_IS_UP = "time limit: the program ran for more than 0.5 s"
SLEEP = "import time\ntime.sleep(60)"


def prints(number: int) -> Execution:
    return Execution(Outcome.OK, f"{number}\n")


# --- limits


@pytest.mark.some(5)
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        SLEEP,
        f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SLEEP}",
        "9 ** 9 ** 9",
        "import os\nos.close(1)\nos.close(2)\nwhile True: pass",
        "import threading, time\nthreading.Thread(target=time.sleep, args=[60]).start()",
        "import atexit, time\natexit.register(time.sleep, 60)",
    ],
)
def test_timeout_keeps_what_was_printed(either: Sandbox, code: str) -> None:
    execution = either.run(f"print('a\\nb', end='')\n{code}", SHORT)
    assert execution == Execution(Outcome.TIMEOUT, "a\nb", TIME_IS_UP)
    assert 0.5 <= execution.duration < 10


def test_processor_time_of_threads_counts(sandbox: Sandbox) -> None:
    """Children that use processors together end with the program, by either of two clocks."""
    mark = Mark()
    code = f"{mark.code}import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    assert sandbox.run(code, SHORT).outcome is Outcome.TIMEOUT
    assert mark.find() == []


def test_children_end_with_the_program(either: Sandbox) -> None:
    mark = Mark()
    code = f"{mark.code}import os\nos.fork()\nos.fork()\n{SLEEP}"
    assert either.run(code, SHORT).outcome is Outcome.TIMEOUT
    assert mark.wait_for(0) == []
    code = f"{mark.code}import os, time\nif os.fork() == 0:\n    time.sleep(60)\ntime.sleep(0.1)"
    assert either.run(code, SHORT).outcome is Outcome.OK
    assert mark.wait_for(0) == []


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 180_000, 1_048_576])
def test_output_of_any_size_is_drained(either: Sandbox, size: int) -> None:
    execution = either.run(f"import sys\nsys.stdout.write('x' * {size})")
    assert execution == Execution(Outcome.OK, "x" * size)


def test_a_megabyte_of_output_is_drained_while_it_runs(either: Sandbox) -> None:
    code = "for _ in range(1024): print('x' * 1023)\nprint('end', end='')"
    limits = Limits(output_bytes=1024 * 1024 + 3)
    assert either.run(code, limits) == Execution(Outcome.OK, ("x" * 1023 + "\n") * 1024 + "end")


@pytest.mark.parametrize("code", ["print('x' * 10_000_000)", "while True: print('x' * 100)"])
def test_output_limit_ends_the_program(either: Sandbox, code: str) -> None:
    execution = either.run(code)
    assert execution.outcome is Outcome.OUTPUT_LIMIT
    assert execution.error == "output limit: the program wrote more than 1048576 bytes"
    assert len(execution.stdout) == 1_048_576
    assert execution.stdout[:100] == "x" * 100


def test_output_limit_drops_a_character_cut_in_two(either: Sandbox) -> None:
    execution = either.run("print('π' * 10)", Limits(output_bytes=5))
    assert (execution.outcome, execution.stdout) == (Outcome.OUTPUT_LIMIT, "ππ")


def test_long_program(either: Sandbox) -> None:
    code = f"text = '''{'x' * 3_000_000}'''\nprint(len(text))"
    assert either.run(code) == Execution(Outcome.OK, "3000000\n")


def test_each_has_its_own_limits(either: Sandbox) -> None:
    """A spare process has an earlier program's limits, and serves no program with other limits."""
    code = "try: print(len(bytes(10**8)))\nexcept MemoryError: print('no')"
    little, much = Limits(memory_mb=50), Limits(memory_mb=200)
    for _ in range(6):
        assert either.run(code, little).stdout == "no\n"
        assert either.run(code, much).stdout == "100000000\n"
        assert either.run(SLEEP, Limits(wall_seconds=0.05)).outcome is Outcome.TIMEOUT


def test_durations_are_the_programs_own(either: Sandbox) -> None:
    assert either.run("").duration < 5
    assert 0.3 <= either.run("import time\ntime.sleep(0.3)").duration < 10


# --- many at once


def test_many_at_once_on_one_loop_after_another(either: Sandbox) -> None:
    async def many() -> list[Execution]:
        return await asyncio.gather(*(either.run_async(f"print({n})") for n in range(32)))

    for _ in range(3):
        assert asyncio.run(many()) == [prints(n) for n in range(32)]


def test_threads_and_loops_at_once(sandbox: Sandbox) -> None:
    """No result is lost, doubled or returned to the wrong caller."""

    def thread(start: int) -> list[Execution]:
        return [sandbox.run(f"print({n})") for n in range(start, start + 20)]

    def loop(start: int) -> list[Execution]:
        async def many() -> list[Execution]:
            runs = (sandbox.run_async(f"print({n})") for n in range(start, start + 20))
            return await asyncio.gather(*runs)

        return asyncio.run(many())

    with ThreadPoolExecutor(6) as pool:
        found = [pool.submit([thread, loop][k % 2], 100 * k) for k in range(6)]
        for k, future in enumerate(found):
            assert future.result(60) == [prints(100 * k + n) for n in range(20)]


def test_no_more_than_may_run_at_once() -> None:
    """Fifty programs and two slots: the others wait, and start in the order of their requests."""
    mark = Mark()
    code = mark.code + "import time\ntime.sleep(0.03)"

    async def fifty(sandbox: Sandbox) -> tuple[int, list[int]]:
        most, order = 0, []

        async def one(number: int) -> None:
            assert (await sandbox.run_async(code)).outcome is Outcome.OK
            order.append(number)

        runs = asyncio.gather(*(one(n) for n in range(50)))
        while not runs.done():
            most = max(most, len(mark.find()))
            await asyncio.sleep(0.01)
        await runs
        return most, order

    with NsjailSandbox(concurrency=2, guests=1) as sandbox:
        most, order = asyncio.run(fifty(sandbox))
    assert 1 <= most <= 2
    assert sorted(order) == list(range(50))
    assert max(abs(number - place) for place, number in enumerate(order)) <= 2


def test_the_loop_runs_on_meanwhile(either: Sandbox) -> None:
    async def ticks() -> int:
        run = asyncio.create_task(either.run_async("import time\ntime.sleep(0.5)"))
        count = 0
        while not run.done():
            await asyncio.sleep(0.01)
            count += 1
        return count

    assert asyncio.run(ticks()) > 5


def test_run_inside_a_running_loop(either: Sandbox) -> None:
    async def inside() -> Execution:
        return either.run("print(1)")

    assert asyncio.run(inside()) == prints(1)


def test_numbers_below_one_are_refused() -> None:
    for settings in ({"concurrency": 0}, {"guests": 0}, {"concurrency": -1}):
        with pytest.raises(ValueError, match=r"must be a whole number (of at least|from) 1"):
            NsjailSandbox(**settings)


# --- cancellation


def test_cancelled_run_ends_its_program(either: Sandbox) -> None:
    mark = Mark()

    async def cancel() -> None:
        run = asyncio.create_task(either.run_async(mark.code + SLEEP, LONG))
        while not mark.find():
            await asyncio.sleep(0.01)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert mark.find() == []

    asyncio.run(asyncio.wait_for(cancel(), 20))


def test_cancelled_at_any_moment(either: Sandbox) -> None:
    """Also before a program has a slot or a process; slots, processes and descriptors come back."""
    mark, chance = Mark(), random.Random(0)
    before = descriptors()

    async def cancel(after: float) -> None:
        run = asyncio.create_task(either.run_async(mark.code + SLEEP, LONG))
        await asyncio.wait({run}, timeout=after)
        run.cancel()
        await asyncio.wait({run})
        assert run.cancelled()

    async def sweep() -> None:
        for step in range(30):
            await cancel(step * 0.0005)
        await asyncio.gather(*(cancel(chance.random() * 0.05) for _ in range(60)))

    asyncio.run(asyncio.wait_for(sweep(), 60))
    time.sleep(0.3)  # a program that got away would have its name by now
    assert mark.find() == []
    assert either.pool.slots.free == either.concurrency and len(either.pool.slots) == 0
    assert settled_descriptors(before + 40) <= before + 40  # processes kept ready
    assert either.run("print(1)") == prints(1)


def test_descriptors_and_processes_come_and_go(either: Sandbox) -> None:
    for _ in range(5):
        either.run("1")
    before = descriptors()
    programs = ["print(1)", "1 / 0", "x x", "import os\nos._exit(3)", "print('x' * 10**7)"]
    for _ in range(10):
        for code in programs:
            either.run(code)
    assert settled_descriptors(before + 8) <= before + 8
    # Each guest has two processes and a few spare processes.
    for guest in either.pool.guests:
        top = guest.process.pid if isinstance(either, UnsafeSandbox) else None
        supervisor = top or children(guest.process.pid)[0].pid
        assert len(children(supervisor)) <= 1 + 8


def test_a_cancelled_waiter_gives_its_turn_to_the_next() -> None:
    async def play(sandbox: Sandbox) -> Execution:
        first = asyncio.create_task(sandbox.run_async("import time\ntime.sleep(0.3)"))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(sandbox.run_async(SLEEP))
        third = asyncio.create_task(sandbox.run_async("print(3)"))
        await asyncio.sleep(0)
        second.cancel()
        await first
        return await third

    with NsjailSandbox(concurrency=1, guests=1) as sandbox:
        assert asyncio.run(asyncio.wait_for(play(sandbox), 30)) == prints(3)
        assert sandbox.run("print(4)") == prints(4)


# --- its life


def test_closed_sandbox_refuses() -> None:
    sandbox = NsjailSandbox(guests=1)
    guests = children(sandbox.pool.guests[0].process.pid)
    sandbox.close()
    sandbox.close()
    assert left_of(guests) == []
    with pytest.raises(RuntimeError, match="closed"):
        sandbox.run("print(1)")
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(sandbox.run_async("print(1)"))
    with pytest.raises(RuntimeError, match="closed"):
        sandbox.session()


def test_making_and_closing_leaves_no_descriptor() -> None:
    NsjailSandbox(guests=1).close()
    before = descriptors()
    for _ in range(3):
        with NsjailSandbox(guests=2) as sandbox:
            sandbox.run("print(1)")
    assert settled_descriptors(before) == before


def test_a_dropped_sandbox_ends_what_it_has(recwarn: pytest.WarningsRecorder) -> None:
    """With and without an open session, and also if only a cycle of references holds it."""
    NsjailSandbox(guests=1).close()
    before, threads = descriptors(), threading.active_count()
    others = children(os.getpid())
    mark = Mark()
    dropped = []
    for number in range(4):
        sandbox = NsjailSandbox(guests=1)
        sandbox.run("print(1)")
        dropped += [
            each for guest in sandbox.pool.guests for each in descendants(guest.process.pid)
        ]
        if number % 2:
            session = sandbox.session()
            session.run(mark.code)
            sandbox.itself = sandbox
            del session
        del sandbox
    gc.collect()
    assert len(dropped) >= 4 * 2 and left_of(dropped) == []
    assert settled_descriptors(before) <= before
    assert mark.find() == [] and children(os.getpid()) == others
    while threading.active_count() > threads:  # the threads that wait for the guests' ends
        time.sleep(0.01)
    assert not [str(each.message) for each in recwarn]  # of a child that nobody waited for


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_pickled_sandbox_works(either: Sandbox) -> None:
    with pickle.loads(pickle.dumps(either)) as other:
        assert type(other) is type(either)
        assert (other.concurrency, other.packages) == (either.concurrency, either.packages)
        assert other.run("print(1)") == prints(1)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_works_in_a_child_process(method: str) -> None:
    with NsjailSandbox(guests=1) as sandbox:
        sandbox.run("print(1)")
        with multiprocessing.get_context(method).Pool(2) as pool:
            results = pool.map(sandbox.run, ["print(0)", "print(1)", "print(2)"])
            pool.close()
            pool.join()
        assert results == [prints(0), prints(1), prints(2)]
        assert sandbox.run("print(3)") == prints(3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_copy_neither_holds_nor_disturbs_the_guests() -> None:
    """A fork while programs run: the copy lives on, and guests end with the original sandbox."""
    sandbox = NsjailSandbox(guests=1)
    stop, results = threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            results.append(sandbox.run("print(1)"))

    worker = threading.Thread(target=work)
    worker.start()
    copies = []
    try:
        for _ in range(5):
            time.sleep(0.02)
            if (pid := os.fork()) == 0:
                time.sleep(60)
                os._exit(0)
            copies.append(pid)
        deadline = time.monotonic() + 20
        while len(results) < 10 and time.monotonic() < deadline:
            time.sleep(0.02)
        stop.set()
        worker.join(20)
        assert not worker.is_alive() and len(results) >= 10
        assert results == [prints(1)] * len(results)
        guests = children(sandbox.pool.guests[0].process.pid)
        sandbox.pool.guests[
            0
        ].control.close()  # as when the original is gone: nobody asks them to end
        assert left_of(guests) == []
    finally:
        sandbox.close()
        for pid in copies:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def test_a_forked_copy_that_ends_leaves_the_guests_alone() -> None:
    with NsjailSandbox(guests=1) as sandbox:
        before = [guest.process.pid for guest in sandbox.pool.guests]
        sandbox.run("1")
        copy = multiprocessing.get_context("fork").Process(target=sandbox.close)
        copy.start()
        copy.join(20)
        assert copy.exitcode == 0
        for number in range(5):
            assert sandbox.run(f"print({number})") == prints(number)
        assert [guest.process.pid for guest in sandbox.pool.guests] == before
