"""The remote sandbox, with real servers on the loopback; `test_hosts.py` has the retries."""

import asyncio
import multiprocessing
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from helpers.services import Scripted, says, serving, sleeps, wait_until

from retool_env.interpreter import open_sandbox
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Limits, Outcome, Sandbox, SandboxUnavailable
from retool_env.sandbox.remote import RemoteSandbox
from retool_env.sandbox.server import create_app

OK = Execution(Outcome.OK, "42")


# --- one host -------------------------------------------------------------------------------------


def test_it_is_a_sandbox() -> None:
    with RemoteSandbox(["http://127.0.0.1:1"]) as sandbox:
        assert isinstance(sandbox, Sandbox)


@pytest.mark.parametrize("outcome", [each for each in Outcome if each != Outcome.INFRASTRUCTURE])
def test_an_execution_arrives_whole(outcome: Outcome) -> None:
    execution = Execution(outcome, "é\x00", "Error: é", "Trace\nback", 0.1 + 0.2)
    with serving(create_app(says(execution))) as url, RemoteSandbox([url]) as sandbox:
        arrived = sandbox.run("")
        assert arrived == execution and arrived.duration == execution.duration
        assert asyncio.run(sandbox.run_async("")) == execution


def test_wrong_addresses_are_noticed_at_the_start() -> None:
    asked = []

    async def answer(*arguments: Any) -> Execution:
        asked.append(arguments)
        return OK

    dead = "http://127.0.0.1:1"
    with serving(create_app(Scripted(answer))) as url:
        with RemoteSandbox([url]) as sandbox, warnings.catch_warnings():
            warnings.simplefilter("error")
            sandbox.check()
            sandbox.check()  # asks nothing
            assert len(asked) == 1
        with RemoteSandbox([url, dead]) as sandbox:
            with pytest.warns(UserWarning, match=rf"none can run at {dead}: ConnectError"):
                sandbox.check()
            assert sandbox.run("") == OK
        wrong = pytest.raises(SandboxUnavailable, match=f"at {url}/v1: HTTP 404")
        with RemoteSandbox([f"{url}/v1"]) as sandbox, wrong:
            sandbox.check()
    for _ in range(2):  # with the shared sandbox of a setting, and again after a failure
        with pytest.raises(SandboxUnavailable, match=rf"no program can run at {dead}: Connect"):
            open_sandbox(dead, Rules())
    assert open_sandbox(dead, Rules(interpreter=False)) is None


def test_a_busy_host_or_a_token_is_no_wrong_address() -> None:
    async def busy(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"  # so that no lifespan is served
        headers = [(b"retry-after", b"1")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body"})

    with serving(busy) as url, RemoteSandbox([url]) as sandbox:
        sandbox.check()
    refused = pytest.raises(SandboxUnavailable, match="refuses the token")
    with serving(create_app(says(OK), "secret")) as url, RemoteSandbox([url]) as sandbox, refused:
        sandbox.check()


def test_all_that_a_program_is_given_arrives() -> None:
    seen = []

    async def answer(*arguments: Any) -> Execution:
        seen.append(arguments)
        return OK

    limits = Limits(wall_seconds=1.5, memory_mb=77, output_bytes=11, processes=2, tmp_mb=3)
    with serving(create_app(Scripted(answer))) as url, RemoteSandbox([url]) as sandbox:
        sandbox.run("code \ud800 é", limits, stdin="in", display=True)
        sandbox.run("")
    assert seen == [("code \ud800 é", limits, "in", True), ("", Limits(), "", False)]


def test_ten_megabytes_pass_both_ways() -> None:
    async def answer(code: str, *_: Any) -> Execution:
        return Execution(Outcome.OK, code)

    program = "print(1)\n" * 1_200_000
    with serving(create_app(Scripted(answer))) as url, RemoteSandbox([url]) as sandbox:
        assert sandbox.run(program, Limits(output_bytes=16 << 20)).stdout == program


def test_many_threads_and_event_loops_use_one_object() -> None:
    async def several(sandbox: RemoteSandbox, name: str) -> list[str]:
        running = (sandbox.run_async(f"0.{name}{i}") for i in range(8))
        return [execution.stdout for execution in await asyncio.gather(*running)]

    with serving(create_app(sleeps())) as url, RemoteSandbox([url]) as sandbox:

        def work(name: str) -> list[str]:
            return [sandbox.run(f"0.{name}9").stdout, *asyncio.run(several(sandbox, name))]

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(work, "0123"))
        assert sandbox.run("0.1").stdout == "0.1"
    assert found == [[f"0.{n}9", *(f"0.{n}{i}" for i in range(8))] for n in "0123"]
    assert [each for each in threading.enumerate() if each.name == "remote-sandbox"] == []


def test_cancelling_ends_the_program() -> None:
    box = sleeps()

    async def cancel(sandbox: RemoteSandbox) -> None:
        running = asyncio.create_task(sandbox.run_async("60"))
        while not box.running:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    with serving(create_app(box)) as url, RemoteSandbox([url]) as sandbox:
        asyncio.run(cancel(sandbox))
        wait_until(lambda: box.cancelled == 1)
        assert sandbox.run("0") == Execution(Outcome.OK, "0")


def test_closing_ends_what_runs() -> None:
    box = sleeps()
    with serving(create_app(box)) as url, ThreadPoolExecutor(1) as pool:
        sandbox = RemoteSandbox([url])
        running = pool.submit(sandbox.run, "60")
        wait_until(lambda: box.running == 1)
        sandbox.close()
        sandbox.close()
        assert running.result().outcome is Outcome.INFRASTRUCTURE
        wait_until(lambda: box.cancelled == 1)
        with pytest.raises(RuntimeError, match="closed"):
            sandbox.run("")


def test_a_forgotten_sandbox_leaves_no_thread() -> None:
    with serving(create_app(says(OK))) as url:
        assert RemoteSandbox([url]).run("") == OK
        names = [each.name for each in threading.enumerate()]
    assert "remote-sandbox" not in names


def test_a_pickled_copy_works() -> None:
    with serving(create_app(says(OK), "secret")) as url:
        with RemoteSandbox([url], "secret", attempts=2, patience=7) as sandbox:
            assert sandbox.run("") == OK
            copy = pickle.loads(data := pickle.dumps(sandbox))
        with copy:
            assert copy.run("") == OK
            assert copy.urls == (url,) and pickle.dumps(copy) == data


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_may_go_on_with_it() -> None:
    def child() -> None:
        assert sandbox.run("") == OK

    with serving(create_app(says(OK))) as url, RemoteSandbox([url]) as sandbox:
        assert sandbox.run("") == OK
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(20)
        process.kill()
        assert process.exitcode == 0
        assert sandbox.run("") == OK


def test_there_are_no_sessions() -> None:
    with (
        RemoteSandbox(["http://127.0.0.1:1"]) as sandbox,
        pytest.raises(SandboxUnavailable, match=r"no sessions.*local sandbox"),
    ):
        sandbox.session()


@pytest.mark.parametrize(
    "urls",
    [
        [],
        [""],
        ["localhost:8080"],
        ["ftp://a"],
        ["http://"],
        "http://a",
        ["http://a?b=c"],
        ["http://a:b"],
    ],
)
def test_what_is_no_url_is_said_at_once(urls: list[str]) -> None:
    with pytest.raises(ValueError, match=r"URL of (a sandbox|at least one host)"):
        RemoteSandbox(urls)


def test_a_token_that_can_not_be_sent_is_refused() -> None:
    with pytest.raises(ValueError, match="token contains"):
        RemoteSandbox(["http://a"], "secret\n")


@pytest.mark.parametrize(
    "wrong",
    [{"attempts": 0}, {"attempts": 2.5}, {"attempts": True}, {"attempts": "3"}]
    + [{"patience": each} for each in (0, -1, float("nan"), float("inf"), "3", None, True)],
)
def test_a_setting_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RemoteSandbox(["http://a"], **wrong)


@pytest.mark.parametrize("tail", ["", "/", "/run_code", "/run_code/"])
def test_the_path_may_be_there(tail: str) -> None:
    with serving(create_app(says(OK))) as url, RemoteSandbox([f" {url}{tail}"]) as sandbox:
        assert sandbox.urls == (url,)
        assert sandbox.run("") == OK


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_wrong_token_is_said_at_the_first_program(token: str | None) -> None:
    with serving(create_app(says(OK), "secret")) as url, RemoteSandbox([url], token) as sandbox:
        with pytest.raises(SandboxUnavailable, match=f"{url} refuses the token"):
            sandbox.run("")
        with pytest.raises(SandboxUnavailable, match="RETOOL_SANDBOX_TOKEN"):
            asyncio.run(sandbox.run_async(""))


# --- with the jail --------------------------------------------------------------------------------


NO_FILES = """
import os, resource
from retool_env.sandbox import RemoteSandbox, SandboxUnavailable

begun, new = (RemoteSandbox(["http://127.0.0.1:9"], attempts=2, patience=2.0) for _ in range(2))
begun.run("1")  # all that is imported and opened at the first program
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    print(begun.run("1").error)
    try:
        new.run("1")
    except SandboxUnavailable as error:
        print(error)
"""


def test_too_many_open_files_name_the_cure() -> None:
    """In a sandbox that has begun, and in a new sandbox."""
    done = subprocess.run([sys.executable, "-c", NO_FILES], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert "Too many open files" in line and "`ulimit -n`" in line


@pytest.fixture(scope="module")
def both(jail: Sandbox) -> Iterator[tuple[Sandbox, RemoteSandbox]]:
    """A jail, and the same jail through a server."""
    with serving(create_app(jail)) as url, RemoteSandbox([url]) as sandbox:
        yield jail, sandbox


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("print(6 * 7)", Outcome.OK),
        ("import sys\nprint(sys.stdin.read())", Outcome.OK),
        ("6 * 7", Outcome.OK),
        ("x x", Outcome.SYNTAX_ERROR),
        ("print('é')\n1 / 0", Outcome.RUNTIME_ERROR),
        ("print(1)\nimport time\ntime.sleep(60)", Outcome.TIMEOUT),
        ("x = ' ' * 10**10", Outcome.MEMORY_LIMIT),
        ("print('é' * 10_000)", Outcome.OUTPUT_LIMIT),
        ("open('/etc/passwd', 'w')", None),
        ("x = '\ud800'\nprint(1)", None),
    ],
)
def test_a_remote_sandbox_says_what_a_local_one_does(both, code, outcome) -> None:
    local, far = both
    limits = Limits(wall_seconds=1, output_bytes=1001)
    found = far.run(code, limits, stdin="in", display=True)
    assert found == local.run(code, limits, stdin="in", display=True)
    assert outcome is None or found.outcome is outcome
    assert found.duration < 10
