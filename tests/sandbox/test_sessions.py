"""Sessions: blocks that share a process. Equal in both sandboxes."""

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.marks import Mark
from helpers.tree import descriptors, settled_descriptors

from retool_env.sandbox import Execution, Limits, NsjailSandbox, Outcome, Sandbox
from retool_env.sandbox.processes import Burden

SHORT = Limits(wall_seconds=0.5)
LOST = "the session was ended by that, its variables are lost"
NO_X = "NameError: name 'x' is not defined"
SLEEP = "import time\ntime.sleep(60)"


def prints(text: str) -> Execution:
    return Execution(Outcome.OK, f"{text}\n")


def test_names_imports_files_and_threads_last(either: Sandbox) -> None:
    with either.session() as session:
        assert session.run("x = 3\nimport math\ndef f(): return x * 2") == Execution(Outcome.OK, "")
        assert session.run("print(f(), math.tau > 6)") == prints("6 True")
        session.run("open('kept', 'w').write('text')\nx += 1")
        assert session.run("print(open('kept').read(), f())") == prints("text 8")
        session.run("import threading\ngo = threading.Event()\nsaid = []")
        session.run("threading.Thread(target=lambda: (go.wait(), said.append(1))).start()")
        assert session.run("import time\ngo.set(); time.sleep(0.1); print(said)") == prints("[1]")


def test_an_error_does_not_end_it(either: Sandbox) -> None:
    with either.session() as session:
        session.run("x = 1")
        for code, outcome, error in (
            ("x = 2\n1 / 0", Outcome.RUNTIME_ERROR, "ZeroDivisionError: division by zero"),
            ("x = = 3", Outcome.SYNTAX_ERROR, "SyntaxError: invalid syntax (line 1)"),
            ("import sys\nsys.exit(3)", Outcome.RUNTIME_ERROR, "SystemExit: 3"),
            (
                "bytes(2**40)",
                Outcome.MEMORY_LIMIT,
                "MemoryError: the program needed more than 1024 MiB",
            ),
        ):
            execution = session.run(code)
            assert (execution.outcome, execution.error) == (outcome, error)
        assert session.run("exit()") == Execution(Outcome.OK, "")
        assert session.run("print(x)") == prints("2")


def test_a_traceback_shows_the_lines_of_each_block(either: Sandbox) -> None:
    """A function's line comes from the block that defined the function, as in a notebook."""
    with either.session() as session:
        session.run("def f():\n    return 1 / 0\n")
        session.run("class C:\n    def g(self):\n        return f()\n")
        session.run("1 +")
        assert session.run("\n\nfunction = C().g\nfunction()").traceback == (
            "Traceback (most recent call last):\n"
            '  File "<block 4>", line 4, in <module>\n    function()\n'
            '  File "<block 2>", line 3, in g\n    return f()\n'
            '  File "<block 1>", line 2, in f\n    return 1 / 0\n'
            "ZeroDivisionError: division by zero"
        )
        assert session.run("x = (").traceback.startswith('  File "<block 5>", line 1\n')
        assert session.run("import inspect\nprint(inspect.getsource(f))") == prints(
            "def f():\n    return 1 / 0\n"
        )
        assert session.run("print(inspect.getsource(C.g))").stdout.endswith("return f()\n\n")


@pytest.mark.parametrize("leave", ["exit()", "quit()", "exit(0)", "import sys\nsys.exit()"])
def test_exit_ends_the_block_alone(either: Sandbox, leave: str) -> None:
    with either.session() as session:
        assert session.run(f"x = 5\n{leave}\nx = 6") == Execution(Outcome.OK, "")
        assert session.run("print(x, repr(__import__('sys').stdin.read()))") == prints("5 ''")
        assert session.run("exit(3)").error == "SystemExit: 3"
        assert session.run("print(x)") == prints("5")


@pytest.mark.parametrize("status", [0, 3])
def test_a_block_that_ends_the_process_says_so(either: Sandbox, status: int) -> None:
    """Whatever the exit status, the variables are lost."""
    with either.session() as session:
        session.run("x = 1")
        lost = session.run(f"import os\nprint(x)\nos._exit({status})")
        error = f"exit status {status}; {LOST}"
        assert lost == Execution(Outcome.RUNTIME_ERROR, "1\n", error)


def test_a_signal_between_blocks_waits_for_the_next(either: Sandbox) -> None:
    """An error of the handler belongs to the next block, and the session goes on."""
    with either.session() as session:
        session.run(
            "import signal, time\ndef late(*_):\n    raise TimeoutError('late')\n"
            "signal.signal(signal.SIGALRM, late)\nsignal.setitimer(signal.ITIMER_REAL, 0.05)"
        )
        time.sleep(0.3)
        execution = session.run("time.sleep(2)\nprint('slept')")
        assert (execution.outcome, execution.error) == (Outcome.RUNTIME_ERROR, "TimeoutError: late")
        assert session.run("print(6 * 7)") == prints("42")


def test_a_signal_between_blocks_that_another_thread_takes_waits_too(either: Sandbox) -> None:
    for _ in range(4):
        with either.session() as session:
            session.run(
                "import signal, threading, time\n"
                "threading.Thread(target=time.sleep, args=[60], daemon=True).start()\n"
                "def late(*_):\n    raise TimeoutError('late')\n"
                "signal.signal(signal.SIGALRM, late)\n"
                "signal.setitimer(signal.ITIMER_REAL, 0.05)\nx = 1"
            )
            time.sleep(0.15)
            assert session.run("time.sleep(2)").error == "TimeoutError: late"
            assert session.run("print(x)") == prints("1")


def test_stopping_children_between_blocks_is_not_told_to_the_program(either: Sandbox) -> None:
    with either.session() as session:
        session.run(
            "import os, signal, time\nheard = []\ndef h(*_): heard.append(1)\n"
            "signal.signal(signal.SIGCHLD, h)\n"
            "if os.fork() == 0:\n    time.sleep(1)\n    os._exit(3)"
        )
        for _ in range(3):
            assert session.run("print(len(heard))") == prints("0")
        assert session.run("time.sleep(2)\nprint(len(heard), os.wait()[1] >> 8)") == prints("1 3")


def test_a_writer_that_nobody_reads_from_keeps_no_block(either: Sandbox) -> None:
    with either.session(SHORT) as session:
        fill = (
            "import os\nread, write = os.pipe()\nos.set_blocking(write, False)\n"
            "try:\n    while True: os.write(write, bytes(4096))\nexcept BlockingIOError: pass\n"
            "os.set_blocking(write, True)\nw = os.fdopen(write, 'wb')\nw.write(b'abc')\nprint('on')"
        )
        assert session.run(fill) == prints("on")
        assert session.run("print('and on')") == prints("and on")


LEFT_OVERS = {
    "threads": "import threading\ndef burn():\n    while True: sum(range(1000))\n"
    "for _ in range(3): threading.Thread(target=burn).start()",
    "processes": "import os\nfor _ in range(5):\n    if os.fork() == 0:\n        while True: pass",
    "a daemon": "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n"
    "    while True: pass",
    "a thread that wakes the others": "import os, signal, threading\npid = os.fork()\n"
    "if pid == 0:\n"
    "    while True: pass\ndef wake():\n    while True: os.kill(pid, signal.SIGCONT)\n"
    "threading.Thread(target=wake).start()",
}


@pytest.mark.parametrize("code", LEFT_OVERS.values(), ids=LEFT_OVERS)
def test_what_a_block_leaves_behind_stops_until_the_next(jail: Sandbox, code: str) -> None:
    with jail.session() as session:
        assert session.run(f"x = 5\n{code}").outcome is Outcome.OK
        pid = session.pid
        time.sleep(0.1)
        before = Burden(pid).seconds
        time.sleep(0.5)
        assert Burden(pid).seconds - before < 0.05
        assert session.run("print(x)") == prints("5")


def test_a_process_that_a_block_leaves_behind_goes_on_in_the_next(either: Sandbox) -> None:
    with either.session() as session:
        session.run(
            "import os, time\nread, write = os.pipe()\nif os.fork() == 0:\n    time.sleep(0.2)\n"
            "    os.write(write, b'sent')\n    os._exit(7)"
        )
        time.sleep(0.4)
        assert session.run("print(os.read(read, 9), os.waitstatus_to_exitcode(os.wait()[1]))") == (
            prints("b'sent' 7")
        )


def test_display(either: Sandbox) -> None:
    with either.session(display=True) as session:
        assert session.run("x = 6\nx * 7") == prints("42")
        assert session.run("_ + 1") == prints("43")
        assert session.run("None") == Execution(Outcome.OK, "")
    with either.session() as session:
        assert session.run("6 * 7") == Execution(Outcome.OK, "")


@pytest.mark.parametrize(
    ("code", "outcome", "error"),
    [
        (SLEEP, Outcome.TIMEOUT, "time limit: the program ran for more than 0.5 s"),
        ("import os\nos._exit(3)", Outcome.RUNTIME_ERROR, "exit status 3"),
        ("import ctypes\nctypes.string_at(0)", Outcome.RUNTIME_ERROR, "ended by SIGSEGV"),
        (
            "print('x' * 10**7)",
            Outcome.OUTPUT_LIMIT,
            "output limit: the program wrote more than 1048576 bytes",
        ),
    ],
)
def test_what_ends_it_says_so(either: Sandbox, code: str, outcome: Outcome, error: str) -> None:
    with either.session(SHORT) as session:
        session.run("x = 1")
        execution = session.run(code)
        assert (execution.outcome, execution.error) == (outcome, f"{error}; {LOST}")
        assert session.run("x").error == NO_X
        assert session.run("x = 5\nprint(x)") == prints("5")
        assert session.run("print(x)") == prints("5")


def test_each_block_has_its_time_and_output(either: Sandbox) -> None:
    with either.session(Limits(wall_seconds=0.5, output_bytes=100)) as session:
        for _ in range(4):
            execution = session.run("import time\ntime.sleep(0.2)\nprint('x' * 90)")
            assert execution == prints("x" * 90)
            assert 0.2 <= execution.duration < 5


def test_output_of_any_size(either: Sandbox) -> None:
    with either.session() as session:
        for size in (180_000, 3, 500_000):
            assert session.run(f"print('x' * {size})") == prints("x" * size)


def test_output_after_a_block_is_not_lost_to_the_host(either: Sandbox) -> None:
    """The next block shows the output of a thread between blocks, and nothing hangs."""
    with either.session() as session:
        session.run(
            "import threading, time\n"
            "threading.Thread(target=lambda: (time.sleep(0.1), print('later', flush=True))).start()"
        )
        time.sleep(0.4)
        assert session.run("print('now')\ntime.sleep(0.5)").stdout in (
            "later\nnow\n",
            "now\nlater\n",
        )


def test_two_sessions_do_not_see_each_other(either: Sandbox) -> None:
    with either.session() as one, either.session() as two:
        one.run("x = 1\nopen('file', 'w').write('1')")
        assert two.run("import os\nprint(os.listdir('.'))") == prints("[]")
        assert two.run("x").error == NO_X
        assert one.run("print(x)") == prints("1")
    assert either.run("x").error == NO_X


def test_many_sessions_take_turns() -> None:
    """More sessions than slots: a block holds a slot, a session does not."""

    async def count(sandbox: Sandbox, start: int) -> list[str]:
        with sandbox.session() as session:
            await session.run_async(f"x = {start}")
            runs = [await session.run_async("x += 1\nprint(x)") for _ in range(4)]
        return [execution.stdout for execution in runs]

    async def ten(sandbox: Sandbox) -> list[list[str]]:
        return await asyncio.gather(*(count(sandbox, 10 * n) for n in range(10)))

    with NsjailSandbox(concurrency=2, guests=1) as sandbox:
        assert asyncio.run(asyncio.wait_for(ten(sandbox), 60)) == [
            [f"{10 * n + k}\n" for k in (1, 2, 3, 4)] for n in range(10)
        ]


def test_blocks_at_once_are_refused(either: Sandbox) -> None:
    mark = Mark()
    with either.session() as session:
        worker = threading.Thread(
            target=session.run, args=[mark.code + "import time\ntime.sleep(1)"]
        )
        worker.start()
        assert len(mark.wait_for(1)) == 1
        with pytest.raises(RuntimeError, match="take turns"):
            session.run("print(1)")
        with pytest.raises(RuntimeError, match="take turns"):
            asyncio.run(session.run_async("print(1)"))
        worker.join()
        assert session.run("print(2)") == prints("2")


def test_synchronous_and_asynchronous_blocks_mix(either: Sandbox) -> None:
    with either.session() as session:
        session.run("x = 1")
        assert asyncio.run(session.run_async("x += 1\nprint(x)")) == prints("2")
        assert asyncio.run(session.run_async("x += 1\nprint(x)")) == prints("3")
        assert session.run("print(x)") == prints("3")


def test_cancelling_a_block_ends_the_process(either: Sandbox) -> None:
    mark = Mark()

    async def cancel() -> None:
        with either.session(Limits(wall_seconds=60)) as session:
            await session.run_async("x = 1")
            block = asyncio.create_task(session.run_async(mark.code + SLEEP))
            while not mark.find():
                await asyncio.sleep(0.01)
            block.cancel()
            with pytest.raises(asyncio.CancelledError):
                await block
            assert mark.find() == []
            assert (await session.run_async("x")).error == NO_X

    asyncio.run(asyncio.wait_for(cancel(), 30))
    assert either.pool.slots.free == either.concurrency


def test_closed_session_refuses(either: Sandbox) -> None:
    mark = Mark()
    session = either.session()
    session.run(mark.code)
    assert len(mark.find()) == 1
    session.close()
    session.close()
    assert mark.wait_for(0) == []
    with pytest.raises(RuntimeError, match="closed"):
        session.run("1")
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(session.run_async("1"))


CLOSED = "the program was lost while it ran: the session was closed"


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.sleep(60)",
        "while True: pass",
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass",
        "import os, time\nos.fork()\ntime.sleep(60)",
        "while True: print('x', flush=True)",
    ],
)
def test_closing_during_a_block_ends_it_with_a_typed_outcome(either: Sandbox, code: str) -> None:
    """From another thread, from another task, and from a thread while a task waits."""
    mark = Mark()
    either.run("1")
    before = descriptors()
    limits = Limits(wall_seconds=60, output_bytes=1 << 30)

    def threads() -> Execution:
        with ThreadPoolExecutor(1) as pool, either.session(limits) as session:
            session.run("x = 1")
            block = pool.submit(session.run, mark.code + code)
            assert mark.wait_for(1 + ("fork" in code))
            session.close()
            session.close()
            execution = block.result(20)
            with pytest.raises(RuntimeError, match="closed"):
                session.run("x")
            return execution

    async def tasks(in_thread: bool) -> Execution:
        session = either.session(limits)
        await session.run_async("x = 1")
        block = asyncio.create_task(session.run_async(mark.code + code))
        while not mark.find():
            await asyncio.sleep(0.01)
        await asyncio.to_thread(session.close) if in_thread else session.close()
        return await asyncio.wait_for(block, 20)

    for execution in (threads(), asyncio.run(tasks(True)), asyncio.run(tasks(False))):
        assert (execution.outcome, execution.error) == (Outcome.INFRASTRUCTURE, CLOSED)
        assert set(execution.stdout) <= {"x", "\n"}  # earlier output is kept
    assert mark.wait_for(0) == []
    assert settled_descriptors(before + 8) <= before + 8
    assert either.pool.slots.free == either.concurrency


def test_closing_at_any_moment_of_a_block(either: Sandbox) -> None:
    """Before the block has a process, while it begins, and while it ends."""
    seen = set()
    with ThreadPoolExecutor(1) as pool:
        for step in range(60):
            session = either.session()
            block = pool.submit(session.run, "print(1)")
            time.sleep(step * 0.0002)
            session.close()
            try:
                execution = block.result(20)
            except RuntimeError as error:  # closed before it was asked
                assert "closed" in str(error)
                continue
            seen.add(execution.outcome)
            if execution.outcome is Outcome.OK:
                assert execution.stdout == "1\n"
            else:
                assert execution.outcome is Outcome.INFRASTRUCTURE
                assert execution.error.endswith("the session was closed")
            assert session.pid is None
    assert Outcome.OK in seen or Outcome.INFRASTRUCTURE in seen
    assert either.pool.slots.free == either.concurrency


def test_a_block_that_waits_for_a_place_when_its_session_is_closed_does_not_run() -> None:
    mark = Mark()

    async def play(sandbox: Sandbox) -> Execution:
        first = asyncio.create_task(sandbox.run_async("import time\ntime.sleep(0.3)"))
        await asyncio.sleep(0.05)
        session = sandbox.session()
        block = asyncio.create_task(session.run_async(mark.code + SLEEP))
        await asyncio.sleep(0.05)
        session.close()
        await first
        return await asyncio.wait_for(block, 20)

    with NsjailSandbox(concurrency=1, guests=1) as sandbox:
        assert asyncio.run(play(sandbox)) == Execution(
            Outcome.INFRASTRUCTURE, "", "the program was not run: the session was closed"
        )
        assert sandbox.run("print(4)") == prints("4")


def test_a_dropped_session_ends_its_process(either: Sandbox) -> None:
    mark = Mark()
    either.run("1")
    before = descriptors()
    for _ in range(5):
        either.session().run(mark.code + "import os\nos.fork()")
        kept = either.session()
        kept.itself = kept  # as a failed test's frame, say, may keep it
        kept.run(mark.code)
        del kept
    gc.collect()
    assert mark.wait_for(0) == []
    assert settled_descriptors(before + 8) <= before + 8
    assert either.run("print(1)") == prints("1")


def test_sessions_leave_nothing_behind(either: Sandbox) -> None:
    mark = Mark()
    either.run("1")
    before = descriptors()
    for _ in range(5):
        with either.session(SHORT) as session:
            session.run(mark.code + "import os\nos.fork()")
            session.run("import os\nos._exit(0)")
            session.run(mark.code)
    assert mark.wait_for(0) == []
    assert settled_descriptors(before + 8) <= before + 8


def test_a_session_of_a_closed_sandbox() -> None:
    with NsjailSandbox(guests=1) as sandbox:
        session = sandbox.session()
        session.run("x = 1")
    with pytest.raises(RuntimeError, match="closed"):
        session.run("x")
    session.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_guest_that_dies_costs_the_first_block_nothing_and_a_later_one_the_session(
    asynchronous: bool,
) -> None:
    def run(code: str) -> Execution:
        return asyncio.run(session.run_async(code)) if asynchronous else session.run(code)

    with NsjailSandbox(guests=1) as sandbox, sandbox.session() as session:
        sandbox.pool.guests[1].process.kill()  # that with the packages
        assert run("x = 1\nprint(x)") == prints("1")
        sandbox.pool.guests[1].process.kill()  # that with the packages
        time.sleep(0.5)
        assert run("print(x)").outcome is Outcome.INFRASTRUCTURE
        assert NO_X in run("print(x)").error


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_process_that_ends_between_two_blocks(jail: Sandbox, asynchronous: bool) -> None:
    def run(code: str) -> Execution:
        return asyncio.run(session.run_async(code)) if asynchronous else session.run(code)

    with jail.session() as session:
        run("x = 1\nimport os, threading\nthreading.Timer(0.05, lambda: os._exit(3)).start()")
        time.sleep(0.3)
        lost = run("print(x)\nimport time\ntime.sleep(5)")  # until it is over
        assert lost.outcome is Outcome.RUNTIME_ERROR
        assert lost.error in (
            f"exit status 3; {LOST}",
            f"the session's process ended before the block began; {LOST}",
        )
        assert NO_X in run("print(x)").error
