"""The choice of a host and the retries, with real servers on the loopback."""

import asyncio
import contextlib
import gzip
import itertools
import json
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from helpers.services import Scripted, says, serving, sleeps, wait_until
from prometheus_client.parser import text_string_to_metric_families

from retool_env.env import ReToolEnv
from retool_env.sandbox import Execution, Limits, Outcome, SandboxUnavailable
from retool_env.sandbox.fusion import request_of
from retool_env.sandbox.hosts import Hosts
from retool_env.sandbox.remote import RemoteSandbox
from retool_env.sandbox.server import create_app
from retool_env.servers import hosts
from retool_env.transcript import StopReason, write_transcripts

OK = Execution(Outcome.OK, "42")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the pauses before retries ten times shorter."""
    monkeypatch.setattr(hosts, "_FIRST_ASIDE", 0.05)


@pytest.fixture
def dead() -> str:
    """The URL of a host that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def alone(url: str, attempts: int) -> Iterator[tuple[Hosts, Callable[[], Execution]]]:
    """The state of the only host, and a function that runs a program there."""
    several = Hosts([url], None, attempts, patience=120.0)
    body = json.dumps(request_of("", QUICK, "", False)).encode()
    try:
        yield several, lambda: several.begin(body, QUICK, False).result()
    finally:
        several.stop()


Handler = Callable[[dict[str, Any]], Response]


def host(handler: Handler, asked: list[dict] | None = None) -> FastAPI:
    """A server of the protocol that answers as the handler says, and records the requests."""
    app = FastAPI()

    @app.post("/run_code")
    async def run_code(request: Request) -> Response:
        content = await request.json()
        if asked is not None:
            asked.append(content)
        return handler(content)

    return app


def answers(*responses: Response) -> Handler:
    """Returns one response after another, and repeats the last response."""
    left = list(responses)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def foreign(stdout: str = "42", status: str = "Success", return_code: int = 0) -> Response:
    """An answer of another implementation, without the object `retool`.

    Args:
        stdout: The program's output.
        status: The status of the response.
        return_code: The program's exit code.
    """
    run = {"status": "Finished", "execution_time": 0.1, "return_code": return_code}
    content = {"status": status, "message": "broken", "run_result": run | {"stdout": stdout}}
    return Response(json.dumps(content), media_type="application/json")


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.some(5)
@pytest.mark.parametrize(
    "failure",
    [
        Response("bad gateway", 502),
        Response("overloaded", 503),
        Response("too late", 504),
        Response("oops", 500),
        Response("pong"),
        Response("[]"),
        Response("{}"),
        Response(status_code=307, headers={"Location": "/elsewhere"}),
        foreign(status="SandboxError"),
        Response("busy", 503, {"Retry-After": "0.1"}),
        Response("busy", 429),
        Response("busy", 503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    ],
    ids=lambda response: f"{response.status_code}",
)
def test_what_passes_is_tried_again(failure: Response) -> None:
    asked: list[dict] = []
    app = host(answers(failure, failure, foreign()), asked)
    with serving(app) as url, RemoteSandbox([url]) as sandbox:
        assert sandbox.run("print(42)") == OK
    assert [each["code"] for each in asked] == ["print(42)"] * 3


def test_retry_after_is_honoured() -> None:
    times: list[float] = []

    def handler(_: dict) -> Response:
        times.append(time.monotonic())
        return foreign() if len(times) > 1 else Response("", 503, {"Retry-After": "0.7"})

    with serving(host(handler)) as url, RemoteSandbox([url]) as sandbox:
        assert sandbox.run("") == OK
    assert times[1] - times[0] >= 0.69


def test_after_the_last_attempt_the_hosts_are_named(dead: str) -> None:
    asked: list[dict] = []
    app = host(answers(Response("out of\norder", 502)), asked)
    with serving(app) as url, RemoteSandbox([dead, url], attempts=4) as sandbox:
        execution = sandbox.run("")
        assert execution.outcome is Outcome.INFRASTRUCTURE and execution.stdout == ""
        assert f"{dead}: ConnectError" in execution.error
        assert f"{url}: HTTP 502 out of order" in execution.error
        assert 1 <= len(asked) <= 3
        assert asyncio.run(sandbox.run_async("")).outcome is Outcome.INFRASTRUCTURE


def test_each_failure_in_a_row_sets_the_host_aside_for_longer() -> None:
    times: list[float] = []

    def handler(_: dict) -> Response:
        times.append(time.monotonic())
        return Response("", 502)

    with serving(host(handler)) as url, RemoteSandbox([url], attempts=5) as sandbox:
        sandbox.run("")
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert len(waits) == 4
    for wait, shortest in zip(waits, (0.05, 0.1, 0.2, 0.4), strict=True):
        assert wait >= 0.75 * shortest


def test_a_request_that_is_refused_is_not_repeated() -> None:
    box = says(OK)
    with (
        serving(create_app(box, maximum=Limits(wall_seconds=2))) as url,
        RemoteSandbox([url]) as sandbox,
    ):
        execution = sandbox.run("", Limits(wall_seconds=3))
        assert execution.outcome is Outcome.INFRASTRUCTURE
        assert "HTTP 422" in execution.error and "wall_seconds of 3.0" in execution.error
        assert url in execution.error
    assert box.started == 0


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refusal_counts_for_all_attempts(status: int) -> None:
    asked: list[dict] = []
    app = host(answers(Response("no", status)), asked)
    with serving(app) as url, RemoteSandbox([url]) as sandbox:
        assert f"{url}: HTTP {status} no" in sandbox.run("").error
    assert len(asked) == 1


def test_a_host_that_does_not_answer_is_given_up() -> None:
    async def hangs(*_: Any) -> Execution:
        await asyncio.sleep(60)
        return OK

    box = Scripted(hangs)
    with (
        serving(create_app(box)) as url,
        RemoteSandbox([url], attempts=2, patience=0.3) as sandbox,
    ):
        execution = sandbox.run("", Limits(wall_seconds=0.2))
        assert execution.outcome is Outcome.INFRASTRUCTURE
        assert f"{url}: no whole answer in" in execution.error
        assert box.started == 2


def test_patience_ends_when_nothing_is_finished() -> None:
    busy = answers(Response("", 503, {"Retry-After": "0.05"}))
    with serving(host(busy)) as url, RemoteSandbox([url], patience=0.5) as sandbox:
        started = time.monotonic()
        execution = sandbox.run("", Limits(wall_seconds=0.5))
        assert time.monotonic() - started >= 1.0
    assert execution.outcome is Outcome.INFRASTRUCTURE
    assert f"{url}: busy" in execution.error and "in 1 s" in execution.error


def test_patience_lasts_as_long_as_others_are_finished() -> None:
    box = sleeps()
    with (
        serving(create_app(box, max_in_flight=1)) as url,
        RemoteSandbox([url], patience=1.5) as sandbox,
    ):
        limits = Limits(wall_seconds=0.1)

        async def many() -> list[Execution]:
            return await asyncio.gather(*(sandbox.run_async("0.3", limits) for _ in range(10)))

        assert asyncio.run(many()) == [Execution(Outcome.OK, "0.3")] * 10  # 3 s at least


# --- several hosts --------------------------------------------------------------------------------


def test_a_dead_host_is_left_out(dead: str) -> None:
    with serving(create_app(sleeps())) as url, RemoteSandbox([dead, url]) as sandbox:
        for _ in range(20):
            assert sandbox.run("0") == Execution(Outcome.OK, "0")


def test_the_least_loaded_host_is_asked() -> None:
    boxes = [sleeps(), sleeps()]

    async def one_after_another(sandbox: RemoteSandbox) -> None:
        running = []
        for number in range(1, 15):
            running.append(asyncio.create_task(sandbox.run_async("60")))
            while boxes[0].started + boxes[1].started < number:
                await asyncio.sleep(0.01)
            assert abs(boxes[0].started - boxes[1].started) <= 1
        for each in running:
            each.cancel()

    with (
        serving(create_app(boxes[0])) as a,
        serving(create_app(boxes[1])) as b,
        RemoteSandbox([a, b]) as sandbox,
    ):
        asyncio.run(one_after_another(sandbox))


def test_a_host_whose_sandbox_is_broken_does_not_draw_the_programs() -> None:
    broken, sound = says(Execution(Outcome.INFRASTRUCTURE, "", "no namespaces")), sleeps()

    async def many(sandbox: RemoteSandbox) -> list[Execution]:
        return await asyncio.gather(*(sandbox.run_async("0.3") for _ in range(30)))

    with (
        serving(create_app(broken)) as a,
        serving(create_app(sound, max_in_flight=100)) as b,
        RemoteSandbox([a, b]) as sandbox,
    ):
        assert asyncio.run(many(sandbox)) == [Execution(Outcome.OK, "0.3")] * 30
        assert sound.started == 30
        before = broken.started
        for _ in range(20):
            sandbox.run("0")
    assert broken.started - before < 20


def test_a_busy_host_hands_over_to_the_other_at_once() -> None:
    busy = host(answers(Response("", 503, {"Retry-After": "30"})))
    with (
        serving(busy) as a,
        serving(create_app(says(OK))) as b,
        RemoteSandbox([a, b], patience=5) as sandbox,
    ):
        assert [sandbox.run("") for _ in range(4)] == [OK] * 4


def refused(url: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return families["retool_sandbox_busy"].samples[0].value


def test_more_programs_than_the_hosts_take_all_run() -> None:
    boxes = [sleeps(), sleeps()]

    async def many(sandbox: RemoteSandbox) -> list[Execution]:
        return await asyncio.gather(*(sandbox.run_async("0.1") for _ in range(150)))

    with (
        serving(create_app(boxes[0], max_in_flight=3)) as a,
        serving(create_app(boxes[1], max_in_flight=5)) as b,
        RemoteSandbox([a, b]) as sandbox,
    ):
        assert asyncio.run(many(sandbox)) == [Execution(Outcome.OK, "0.1")] * 150
        assert (
            sum(refused(url) for url in (a, b)) < 100
        )  # the client learns how many programs the hosts take
    assert sum(box.started for box in boxes) == 150


def test_programs_of_a_host_that_dies_go_to_the_other() -> None:
    boxes = [sleeps(), sleeps()]
    with (
        serving(create_app(boxes[1])) as b,
        ThreadPoolExecutor(8) as pool,
    ):
        with serving(create_app(boxes[0])) as a:
            sandbox = RemoteSandbox([a, b])
            running = [pool.submit(sandbox.run, "2.5") for _ in range(8)]
            wait_until(lambda: boxes[0].running == 4 and boxes[1].running == 4)
        # Its grace is one second: the four programs were cut off.
        assert [each.result() for each in running] == [Execution(Outcome.OK, "2.5")] * 8
        assert boxes[0].cancelled == 4 and boxes[1].started == 8
        sandbox.close()


def test_a_host_that_comes_back_is_used_again(dead: str) -> None:
    box = says(OK)
    with alone(dead, attempts=2) as (several, run):
        assert run().outcome is Outcome.INFRASTRUCTURE and several.known[0].failures == 2
        with serving(create_app(box), port=int(dead.rpartition(":")[2])):
            assert run() == OK
        assert several.known[0].failures == 0  # the next one is its first in a row


# --- servers that are not ours --------------------------------------------------------------------


def test_another_server_of_the_protocol_is_understood() -> None:
    asked: list[dict] = []
    app = host(answers(foreign("42"), foreign("", "Failed", 3)), asked)
    with serving(app) as url, RemoteSandbox([url]) as sandbox:
        limits = Limits(wall_seconds=3, memory_mb=99)
        execution = sandbox.run("print(42)", limits, stdin="in")
        assert execution == OK and execution.duration == 0.1
        expected = Execution(Outcome.RUNTIME_ERROR, "", "exit status 3")
        assert sandbox.run("import sys; sys.exit(3)") == expected
    assert asked[0]["language"] == "python" and asked[0]["stdin"] == "in"
    assert asked[0]["run_timeout"] == 3 and asked[0]["memory_limit_MB"] == 99


def test_another_server_cannot_display() -> None:
    with (
        serving(host(answers(foreign("")))) as url,
        RemoteSandbox([url]) as sandbox,
        pytest.raises(SandboxUnavailable, match=r"retool serve"),
    ):
        sandbox.run("42", display=True)


# --- servers that misbehave -----------------------------------------------------------------------


QUICK = Limits(wall_seconds=0.1, output_bytes=1000)


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.contextmanager
def speaking(talk: Talk) -> Iterator[tuple[str, list[float]]]:
    """A server that reads each request and answers with any bytes: its URL, and the times."""
    asked: list[float] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"accept-encoding: identity" in head.lower()
            length = re.search(rb"content-length: (\d+)", head.lower())
            await reader.readexactly(int(length[1]))
            asked.append(time.monotonic())
            await talk(reader, writer)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port.set_result(server.sockets[0].getsockname()[1])
        await stop.wait()
        server.close()
        talks = asyncio.all_tasks() - {asyncio.current_task()}
        for each in talks:
            each.cancel()
        await asyncio.gather(*talks, return_exceptions=True)

    loop, port, stop = asyncio.new_event_loop(), Future(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        yield f"http://127.0.0.1:{port.result(10)}", asked
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def says_once(status: str, headers: str = "", body: bytes = b"") -> Talk:
    """Sends one answer.

    Args:
        status: The status line, without the version.
        headers: Lines of headers.
        body: The body.
    """

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        writer.write(head.encode("latin-1") + body)
        await writer.drain()

    return talk


@pytest.mark.parametrize(
    ("status", "seconds"),
    [("503 Busy", "0"), ("429 Busy", "-1"), ("503 Busy", "nan"), ("429 Busy", "0.0000001")],
)
def test_a_host_that_is_busy_for_no_time_is_asked_seldom_and_given_up(
    status: str, seconds: str
) -> None:
    with (
        speaking(says_once(status, f"Retry-After: {seconds}\r\n")) as (url, asked),
        RemoteSandbox([url], patience=1) as sandbox,
    ):
        began = time.monotonic()
        execution = sandbox.run("1", QUICK)
        assert execution.outcome is Outcome.INFRASTRUCTURE
        assert "none finished a program in 1.1 s" in execution.error and "busy" in execution.error
        assert time.monotonic() - began < 16
        assert 2 <= len(asked) <= 6


@pytest.mark.parametrize(
    "seconds", ["inf", "1e999", "9" * 400, "Wed, 21 Oct 2099 07:28:00 GMT", ""]
)
def test_a_host_that_is_busy_for_ever_is_given_up_in_time(seconds: str) -> None:
    with (
        speaking(says_once("503 Busy", f"Retry-After: {seconds}\r\n")) as (url, _),
        RemoteSandbox([url], patience=0.5) as sandbox,
    ):
        began = time.monotonic()
        assert sandbox.run("1", QUICK).outcome is Outcome.INFRASTRUCTURE
        assert time.monotonic() - began < 6


def test_busy_and_failing_by_turns_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_MOST_DOUBLINGS", 0)
    monkeypatch.setattr(hosts, "_MOST_REFUSALS", 0)
    kinds = itertools.cycle([says_once("503 Busy", "Retry-After: 0\r\n"), says_once("500 No")])

    async def talk(*streams: Any) -> None:
        await next(kinds)(*streams)

    with speaking(talk) as (url, asked), RemoteSandbox([url], patience=1, attempts=99) as sandbox:
        began = time.monotonic()
        assert "none finished a program in 1.1 s" in sandbox.run("1", QUICK).error
        assert time.monotonic() - began < 11
        assert 2 <= len(asked) <= 12


def test_each_refusal_in_a_row_makes_the_wait_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_SHORTEST_RETRY_AFTER", 0.05)
    busy = says_once("503 Busy", "Retry-After: 0.06\r\n")
    talks = iter([busy, busy, busy, busy, says_once("200 OK", body=wrong())])

    async def talk(*streams: Any) -> None:
        await next(talks)(*streams)

    with speaking(talk) as (url, asked), alone(url, attempts=6) as (several, run):
        assert run() == OK
        assert several.known[0].refusals == 0  # the next one is its first in a row
    waits = [after - before for before, after in itertools.pairwise(asked)]
    for wait, shortest in zip(waits, (0.06, 0.1, 0.2, 0.4), strict=True):
        assert wait >= 0.95 * shortest  # the client's clock began before the server's


def test_many_programs_ask_a_busy_host_no_oftener_than_one() -> None:
    async def many(sandbox: RemoteSandbox) -> list[Execution]:
        return await asyncio.gather(*(sandbox.run_async("1", QUICK) for _ in range(100)))

    with (
        speaking(says_once("503 Busy", "Retry-After: 0\r\n")) as (url, asked),
        RemoteSandbox([url], patience=1.5) as sandbox,
    ):
        for execution in asyncio.run(many(sandbox)):  # also programs that were never sent
            assert f"{url}: busy" in execution.error
    assert 2 <= len(asked) <= 16 + 6  # a slow machine knows early that the host is busy


def test_a_server_that_floods_with_hints_is_given_up() -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 1000)
            await writer.drain()

    with speaking(talk) as (url, _), RemoteSandbox([url], patience=0.5, attempts=1) as sandbox:
        began = time.monotonic()
        assert "no whole answer in 0.6 s" in sandbox.run("1", QUICK).error
        assert time.monotonic() - began < 6


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"HTTP/1.1 20",
        HEAD,
        HEAD + b"Content-Length: 99\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    ],
    ids=["nothing", "status", "headers", "body", "chunks"],
)
@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_is_closed_in_the_middle_is_a_failure(half: bytes, reset: bool) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(half)
        await writer.drain()
        if reset:
            writer.transport.abort()

    with speaking(talk) as (url, asked), RemoteSandbox([url], attempts=2) as sandbox:
        execution = sandbox.run("1", QUICK)
    assert execution.outcome is Outcome.INFRASTRUCTURE and f"{url}: Re" in execution.error
    assert len(asked) == 2


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 9\r\n\r\n",
        HEAD + b"Content-Length: 9\r\nContent-Encoding: gzip\r\n\r\n",
        HEAD + b"Content-Length: 99999999\r\n\r\n" + bytes(5 << 20),
        b"HTTP/1.1 what",
    ],
    ids=["late", "encoded", "large", "wrong"],
)
def test_the_connection_to_a_host_that_is_given_up_is_closed(answer: bytes) -> None:
    ended = threading.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        try:
            await reader.read(1)  # the end, or a reset
        finally:
            ended.set()

    with speaking(talk) as (url, _), RemoteSandbox([url], patience=0.5, attempts=1) as sandbox:
        assert sandbox.run("1", QUICK).outcome is Outcome.INFRASTRUCTURE
        assert ended.wait(10)


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (HEAD + b"Content-Length: 99999\r\n\r\n", b"x"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (HEAD, b"a: b\r\n"),
        (b"HTTP/1.1 ", b"2"),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"", b""),
    ],
    ids=["body", "chunks", "headers", "status", "hints", "nothing"],
)
def test_a_server_that_drips_is_given_up(head: bytes, drop: bytes) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0.05)

    with speaking(talk) as (url, _), RemoteSandbox([url], patience=0.5, attempts=1) as sandbox:
        began = time.monotonic()
        execution = sandbox.run("1", QUICK)
        assert execution.outcome is Outcome.INFRASTRUCTURE and execution.duration == 0
        assert time.monotonic() - began < 6


def test_an_answer_without_end_is_cut() -> None:
    sent = 0

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(HEAD + b"Connection: close\r\n\r\n")
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()
            sent += 1 << 16

    with speaking(talk) as (url, _), RemoteSandbox([url], attempts=1) as sandbox:
        execution = sandbox.run("1", QUICK)
    assert "larger than 4200304 bytes" in execution.error
    assert sent < 32 << 20


def test_an_answer_of_many_small_values_is_not_read() -> None:
    for body in (b"[" + b"[]," * 1_000_000 + b"0]", wrong(stderr={f"{n}": n for n in range(9999)})):
        with (
            speaking(says_once("200 OK", body=body)) as (url, _),
            RemoteSandbox([url], attempts=1) as sandbox,
        ):
            tracemalloc.start()
            execution = sandbox.run("1", QUICK)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert "bytes of lists, objects and numbers" in execution.error
        assert peak < 32 << 20


@pytest.mark.parametrize("sign", ["x", "[", '"', "\\", "\n", "é", "\ud83d"])
def test_output_of_another_server_that_is_above_the_limit_is_the_programs(sign: str) -> None:
    body = wrong(stdout=sign * (1 << 19))
    with (
        speaking(says_once("200 OK", body=body)) as (url, _),
        RemoteSandbox([url], attempts=1) as sandbox,
    ):
        execution = sandbox.run("1", QUICK)
    assert execution.outcome is Outcome.OUTPUT_LIMIT and len(execution.stdout.encode()) <= 1000


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP, gzip", "x"])
def test_an_answer_that_is_compressed_is_not_opened(encoding: str) -> None:
    bomb = gzip.compress(bytes(1 << 26), compresslevel=1)
    talk = says_once("200 OK", f"Content-Encoding: {encoding}\r\n", bomb)
    with speaking(talk) as (url, _), RemoteSandbox([url], attempts=1) as sandbox:
        tracemalloc.start()
        execution = sandbox.run("1", QUICK)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (
        execution.outcome is Outcome.INFRASTRUCTURE and "the answer is encoded" in execution.error
    )
    assert peak < 16 << 20


RIGHT = {
    "status": "Success",
    "message": "",
    "run_result": {"status": "Finished", "execution_time": 0.1, "return_code": 0, "stdout": "42"},
}


OWN = {"outcome": "ok", "error": "", "traceback": ""}


def wrong(with_own: bool = False, **fields: Any) -> bytes:
    """A right answer with changed fields: of the answer, its result, or the object `retool`."""
    answer: dict[str, Any] = json.loads(json.dumps(RIGHT))
    if with_own:
        answer["retool"] = dict(OWN)
    for name, value in fields.items():
        at = answer if name in answer else answer["run_result"]
        at = answer["retool"] if with_own and name in OWN else at
        at[name] = value
    return json.dumps(answer).encode()


WRONG = {
    "nothing": b"",
    "no JSON": b"<html>",
    "half": wrong()[:-5],
    "bytes": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "deep": b"[" * 200_000 + b"]" * 200_000,
    "a deep field": wrong().replace(b'"42"', b"[" * 200_000 + b"]" * 200_000),
    "many digits": wrong().replace(b"0.1", b"1" * 5000),
    "many digits elsewhere": wrong(message="x").replace(b'"x"', b"1" * 5000),
    "more than a float": wrong().replace(b"0.1", b"1" + b"0" * 400),
    "an endless time": wrong(execution_time=1e300),
    "an infinite time": wrong().replace(b"0.1", b"1e999"),
    **{f"{name} time": wrong().replace(b"0.1", name.encode()) for name in ("NaN", "Infinity")},
    **{f"time {value!r}": wrong(execution_time=value) for value in (-1, True, "1", [], {"a": 1})},
    **{f"output {value!r}": wrong(stdout=value) for value in (3, ["a"], {"a": 1}, True)},
    **{f"status {value!r}": wrong(return_code=value) for value in ("0", 0.5, True, [0], None)},
    **{f"result {value!r}": wrong(run_result=value) for value in (3, [], "x", [1], None)},
    **{f"errors {value!r}": wrong(stderr=value, return_code=1) for value in (3, ["a"], True)},
    **{f"our outcome {value!r}": wrong(True, outcome=value) for value in ("new", 3, None, [], "")},
    **{f"our error {value!r}": wrong(True, error=value) for value in (3, ["a"], {"a": "b"}, True)},
    **{f"our trace {value!r}": wrong(True, traceback=value) for value in (3, ["a"])},
    **{f"our object {value!r}": wrong(True, retool=value) for value in (3, [], "x", {})},
    "our output beyond the limit": wrong(True, stdout="x" * 1001),
    "NaN elsewhere": wrong(extra=float("nan")),
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_an_answer_that_is_wrong_is_one_failure_of_that_host(body: bytes) -> None:
    with (
        speaking(says_once("200 OK", body=body)) as (url, _),
        RemoteSandbox([url], attempts=1) as sandbox,
    ):
        execution = sandbox.run("1", QUICK)
    assert (execution.outcome, execution.stdout) == (Outcome.INFRASTRUCTURE, "")
    assert execution.error.startswith(f"no host ran the program: {url}: ")
    assert len(execution.error) < 500 and execution.duration == 0


def test_the_right_answer_is_right() -> None:
    for body in (wrong(), wrong(True)):
        with (
            speaking(says_once("200 OK", body=body)) as (url, _),
            RemoteSandbox([url], attempts=1) as sandbox,
        ):
            assert sandbox.run("1", QUICK) == OK


def test_lone_surrogates_do_not_arrive() -> None:
    body = wrong(
        True, outcome="runtime_error", stdout="\ud800", error="a\udfff\nb", traceback="\ud800"
    )
    with (
        speaking(says_once("200 OK", body=body)) as (url, _),
        RemoteSandbox([url], attempts=1) as sandbox,
    ):
        execution = sandbox.run("1", QUICK)
    expected = ("\\ud800", "a\\udfff b", "\\ud800")
    assert (execution.stdout, execution.error, execution.traceback) == expected


@pytest.mark.parametrize(
    "head",
    [
        "302 Found\r\nLocation: http://127.0.0.1:1/",
        "301 Moved\r\nLocation: /run_code",
        "204 No Content",
        "500 No",
        "999 What",
    ],
)
def test_other_statuses_are_named_and_not_followed(head: str) -> None:
    with (
        speaking(says_once(head, body=b"")) as (url, asked),
        RemoteSandbox([url], attempts=2) as sandbox,
    ):
        execution = sandbox.run("1", QUICK)
    assert execution.outcome is Outcome.INFRASTRUCTURE and f"HTTP {head[:3]}" in execution.error
    assert len(asked) == 2


def test_a_redirection_is_named_and_not_followed() -> None:
    with speaking(says_once("200 OK", body=wrong())) as (there, asked):
        talk = says_once("307 Moved", f"Location: {there}/run_code\r\n")
        with speaking(talk) as (url, _), RemoteSandbox([url], attempts=1) as sandbox:
            execution = sandbox.run("1", QUICK)
    assert f"{url}: HTTP 307 leads to {there}/run_code" in execution.error and asked == []


def test_what_a_host_says_holds_no_control_characters() -> None:
    own = wrong(True, outcome="infrastructure_failure", error="a\x1b[31m\u202e" * 100)
    for talk in (says_once("500 No", body=b"a\x1b[31m\0\xff"), says_once("200 OK", body=own)):
        with speaking(talk) as (url, _), RemoteSandbox([url], attempts=1) as sandbox:
            error = sandbox.run("1", QUICK).error
        assert "a\ufffd[31m\ufffd" in error and error.isprintable() and len(error) < 500


def test_a_host_sets_no_cookies() -> None:
    carried = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for cookie in ("a", "b"):
            head = f"HTTP/1.1 200 OK\r\nSet-Cookie: {cookie}=1; Path=/\r\n"
            writer.write(f"{head}Content-Length: {len(wrong())}\r\n\r\n".encode() + wrong())
            carried.append(b"\r\ncookie:" in (await reader.readuntil(b"\r\n\r\n")).lower())
            await reader.readuntil(b"}")

    with speaking(talk) as (url, _), RemoteSandbox([url], attempts=1) as sandbox:
        assert [sandbox.run("1", QUICK) for _ in range(2)] == [OK] * 2
        wait_until(lambda: len(carried) == 1)
    assert carried == [False]


def test_a_token_that_a_server_repeats_is_not_shown() -> None:
    for status in ("500 No", "422 No"):
        talk = says_once(status, body=b"Authorization: Bearer s3cret-t0ken is wrong")
        with (
            speaking(talk) as (url, _),
            RemoteSandbox([url], token="s3cret-t0ken", attempts=1) as sandbox,
        ):
            execution = sandbox.run("1", QUICK)
        assert "Bearer [redacted] is wrong" in execution.error


def test_an_episode_ends_unscored_and_its_record_is_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        speaking(says_once("200 OK", body=WRONG["NaN time"])) as (url, _),
        RemoteSandbox([url], attempts=1) as sandbox,
    ):
        monkeypatch.setattr(sandbox, "check", lambda: None)  # it worked at the start
        env = ReToolEnv("arithmetic", difficulty=1, sandbox=sandbox)
        env.reset(seed=0)
        *_, truncated, info = env.step("<code>print(1)</code>")
    assert truncated and info["stop_reason"] is StopReason.INFRASTRUCTURE
    write_transcripts(tmp_path / "transcripts.jsonl", [info["transcript"]])
    assert "NaN" not in (tmp_path / "transcripts.jsonl").read_text()
