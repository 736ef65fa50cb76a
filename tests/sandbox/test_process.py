"""Supervision: limits, concurrency, cancellation, event loops. The same in both sandboxes."""

import asyncio
import multiprocessing
import pickle
import time
from pathlib import Path

import pytest
from marks import Mark

from retool_env.sandbox import Execution, Limits, NsjailSandbox, Outcome, Sandbox

SHORT = Limits(wall_seconds=0.5)
TIME_IS_UP = "time limit: the program ran for more than 0.5 s"
MANY = 32


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)",
        "9 ** 9 ** 9",
        "import os\nos.close(1)\nos.close(2)\nwhile True: pass",
        "import threading, time\nthreading.Thread(target=time.sleep, args=[60]).start()",
    ],
)
def test_timeout_keeps_what_was_printed(sandbox: Sandbox, code: str) -> None:
    execution = sandbox.run(f"print('a\\nb', end='')\n{code}", SHORT)
    assert execution == Execution(Outcome.TIMEOUT, "a\nb", TIME_IS_UP)
    assert 0.5 <= execution.duration < 5


def test_children_end_with_the_program(sandbox: Sandbox) -> None:
    mark = Mark()
    code = mark.code + "import os, time\nos.fork()\nos.fork()\ntime.sleep(60)"
    assert sandbox.run(code, SHORT).outcome is Outcome.TIMEOUT
    assert mark.wait_for(0) == []
    code = mark.code + "import os, time\nif os.fork() == 0:\n    time.sleep(60)\ntime.sleep(0.2)"
    sandbox.run(code, SHORT)
    assert mark.wait_for(0) == []


def test_a_megabyte_of_output_is_drained_while_it_runs(sandbox: Sandbox) -> None:
    code = "for _ in range(1024): print('x' * 1023)\nprint('end', end='')"
    limits = Limits(output_bytes=1024 * 1024 + 3)
    assert sandbox.run(code, limits) == Execution(Outcome.OK, ("x" * 1023 + "\n") * 1024 + "end")


@pytest.mark.parametrize("code", ["print('x' * 10_000_000)", "while True: print('x' * 100)"])
def test_output_limit_ends_the_program(sandbox: Sandbox, code: str) -> None:
    execution = sandbox.run(code)
    assert execution.outcome is Outcome.OUTPUT_LIMIT
    assert execution.error == "output limit: the program wrote more than 1048576 bytes"
    assert len(execution.stdout) == 1_048_576
    assert execution.stdout[:100] == "x" * 100


def test_output_limit_drops_a_character_cut_in_two(sandbox: Sandbox) -> None:
    execution = sandbox.run("print('π' * 10)", Limits(output_bytes=5))
    assert (execution.outcome, execution.stdout) == (Outcome.OUTPUT_LIMIT, "ππ")


def test_long_program(sandbox: Sandbox) -> None:
    code = f"text = '''{'x' * 3_000_000}'''\nprint(len(text))"
    assert sandbox.run(code) == Execution(Outcome.OK, "3000000\n")


def test_many_at_once_on_one_loop_after_another(sandbox: Sandbox) -> None:
    async def many() -> list[Execution]:
        runs = (sandbox.run_async(f"print({number})") for number in range(MANY))
        return await asyncio.gather(*runs)

    expected = [Execution(Outcome.OK, f"{number}\n") for number in range(MANY)]
    assert asyncio.run(many()) == expected
    assert asyncio.run(many()) == expected


def test_concurrency_is_bounded() -> None:
    mark = Mark()
    code = mark.code + "import time\ntime.sleep(0.3)"

    async def most_at_once(sandbox: Sandbox) -> int:
        runs = asyncio.gather(*(sandbox.run_async(code) for _ in range(4)))
        most = 0
        while not runs.done():
            most = max(most, len(mark.find()))
            await asyncio.sleep(0.01)
        assert {execution.outcome for execution in runs.result()} == {Outcome.OK}
        return most

    with NsjailSandbox(concurrency=1) as one, NsjailSandbox(concurrency=4) as four:
        assert asyncio.run(most_at_once(one)) == 1
        assert asyncio.run(most_at_once(four)) > 1


def test_the_loop_runs_on_meanwhile(sandbox: Sandbox) -> None:
    async def ticks() -> int:
        run = asyncio.create_task(sandbox.run_async("import time\ntime.sleep(0.5)"))
        count = 0
        while not run.done():
            await asyncio.sleep(0.01)
            count += 1
        return count

    assert asyncio.run(ticks()) > 5


def test_run_inside_a_running_loop(sandbox: Sandbox) -> None:
    async def inside() -> Execution:
        return sandbox.run("print(1)")

    assert asyncio.run(inside()) == Execution(Outcome.OK, "1\n")


def test_cancelled_run_ends_its_program(sandbox: Sandbox) -> None:
    mark = Mark()

    async def cancel() -> None:
        run = asyncio.create_task(sandbox.run_async(mark.code + "import time\ntime.sleep(60)"))
        while not mark.find():
            await asyncio.sleep(0.01)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert mark.find() == []

    asyncio.run(asyncio.wait_for(cancel(), 20))


def test_cancelled_at_any_moment_of_its_start(jail: NsjailSandbox) -> None:
    mark = Mark()

    async def cancel(after: float) -> None:
        run = asyncio.create_task(jail.run_async(mark.code + "import time\ntime.sleep(60)"))
        await asyncio.wait({run}, timeout=after)
        run.cancel()
        await asyncio.wait({run})

    async def sweep() -> None:
        for step in range(40):
            await cancel(step * 0.001)

    asyncio.run(sweep())
    time.sleep(0.3)  # a program that got away would have its name by now
    assert mark.find() == []


def test_closed_sandbox_refuses() -> None:
    sandbox = NsjailSandbox()
    sandbox.close()
    sandbox.close()
    with pytest.raises(RuntimeError, match="closed"):
        sandbox.run("print(1)")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_pickled_sandbox_works(sandbox: Sandbox) -> None:
    with pickle.loads(pickle.dumps(sandbox)) as other:
        assert type(other) is type(sandbox)
        assert other.run("print(1)") == Execution(Outcome.OK, "1\n")


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_works_in_a_child_process(jail: NsjailSandbox, method: str) -> None:
    jail.run("print(1)")
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = pool.map(jail.run, ["print(0)", "print(1)", "print(2)"])
    assert [execution.stdout for execution in results] == ["0\n", "1\n", "2\n"]


def test_infrastructure_failure_is_retried_then_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = NsjailSandbox()
    count = tmp_path / "count"
    script = tmp_path / "nsjail"
    script.write_text(f"#!/bin/sh\necho x >> {count}\necho 'no room for a jail' >&2\nexit 255\n")
    script.chmod(0o755)
    monkeypatch.setattr(sandbox, "binary", str(script))
    execution = sandbox.run("print(1)")
    assert execution.outcome is Outcome.INFRASTRUCTURE
    assert "no room for a jail" in execution.error
    assert count.read_text() == "x\n" * 3
    assert execution.stdout == ""


def test_infrastructure_failure_once_is_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = NsjailSandbox()
    script = tmp_path / "nsjail"
    flag = tmp_path / "failed"
    script.write_text(
        f'#!/bin/sh\n[ -e {flag} ] && exec {sandbox.binary} "$@"\ntouch {flag}\nexit 255\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sandbox, "binary", str(script))
    assert sandbox.run("print(1)") == Execution(Outcome.OK, "1\n")
    assert flag.exists()
