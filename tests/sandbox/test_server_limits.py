"""A server's bounds on access, connections, headers, bodies and open files, with real sockets."""

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from helpers.services import command, says, serving, sleeps, wait_until

from retool_env import grading
from retool_env.cli import main
from retool_env.sandbox import Execution, Outcome, connections, make_sandbox, processes, server
from retool_env.sandbox.connections import Connections
from retool_env.sandbox.server import create_app, serve

SECRET = "s3cret"
BEARER = {"Authorization": f"Bearer {SECRET}"}
OK = Execution(Outcome.OK, "42", duration=0.02)


def ask(url: str, code: str = "1", timeout: float = 60, **headers: str) -> httpx.Response:
    """Sends a program to a server.

    Args:
        url: The server's URL.
        code: The program's text.
        timeout: Seconds until the client gives up.
        **headers: The headers of the request.
    """
    body = {"code": code, "language": "python"}
    return httpx.post(f"{url}/run_code", json=body, headers=BEARER | headers, timeout=timeout)


def connect(url: str, sent: bytes = b"") -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(sent)
    return connection


def head(token: str = SECRET, length: int = 1000, path: str = "/run_code") -> bytes:
    """The headers of a request.

    Args:
        token: The token.
        length: The announced bytes of the body.
        path: The path.
    """
    return (
        f"POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def received(connection: socket.socket) -> bytes:
    """All data until the other end closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def waits(connection: socket.socket) -> bool:
    """Whether the connection has brought neither an answer nor its end."""
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
        return False
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    finally:
        connection.setblocking(True)


@contextlib.contextmanager
def guarded(app: object, most: int, token: str | None = SECRET) -> Iterator[str]:
    """Serves with bounds on connections, as `serve` does.

    Args:
        app: The application.
        most: The largest number of connections.
        token: The token. `None`: no token.
    """
    with serving(app, http=Connections(most, token).protocol) as url:
        yield url


# --- who may ask ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/openapi.json", "/docs", "/redoc", "/metrics", "/", "/nothing", "/health/", "//health"],
)
def test_every_path_but_health_needs_the_token(path: str) -> None:
    with serving(create_app(says(OK), SECRET)) as url:
        for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Bearer"}):
            for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
                assert httpx.request(method, url + path, headers=headers).status_code == 401
        assert httpx.get(url + path, headers=BEARER).status_code != 401
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}


def test_health_says_why_only_to_those_with_the_token() -> None:
    box = says(Execution(Outcome.INFRASTRUCTURE, "", "no namespaces in /secret/path"))
    with serving(create_app(box, SECRET)) as url:
        told = httpx.get(f"{url}/health")
        assert (told.status_code, told.json()) == (503, {"status": "failing"})
        assert "/secret/path" in httpx.get(f"{url}/health", headers=BEARER).json()["reason"]


def test_without_the_token_no_body_is_read() -> None:
    with serving(create_app(says(OK), SECRET)) as url:
        connection = connect(url, head("wrong", 1 << 20) + b"{")
        answer = received(connection)  # at once, and closed, though the body has not come
    assert b" 401 " in answer and b"connection: close" in answer.lower()
    assert b" 100 " not in answer


def test_without_the_token_a_large_body_gets_its_401() -> None:
    with serving(create_app(says(OK), SECRET)) as url:
        answer = httpx.post(f"{url}/run_code", content=b"x" * (8 << 20))
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "token", ["", " ", "\t", "tök", " qz", "qz ", "qz\n", "q\nz", "q\x7f", "q" * 5000]
)
def test_a_token_that_no_client_can_send_is_refused(token: str, monkeypatch, capsys) -> None:
    with pytest.raises(ValueError, match="the token"):
        create_app(says(OK), token)
    with pytest.raises(ValueError, match="the token"):
        serve(lambda: says(OK), port=0, token=token)
    monkeypatch.setattr("retool_env.sandbox.make_sandbox", None)
    monkeypatch.setenv("RETOOL_SANDBOX_TOKEN", token)
    assert main(["serve", "--port", "0"]) == 1
    err = capsys.readouterr().err
    assert "the token" in err and "q" not in err.partition("retool serve:")[2].replace(
        "request", ""
    )


# --- connections and headers ----------------------------------------------------------------------


def test_slow_clients_do_not_keep_out_a_good_one() -> None:
    with command("--max-in-flight", "4", RETOOL_SANDBOX_TOKEN=SECRET) as (_, url):
        slow = [connect(url, b"POST /run_code HTTP/1.1\r\nHost:") for _ in range(200)]
        slow += [connect(url) for _ in range(200)]
        slow += [connect(url, head() + b"{") for _ in range(64)]
        for _ in range(3):
            began = time.monotonic()
            assert ask(url, "print(1)").json()["run_result"]["stdout"] == "1\n"
            assert time.monotonic() - began < 10
        for connection in slow:
            connection.close()


def test_more_connections_than_there_may_be_close_the_oldest_unknown_one() -> None:
    with (
        guarded(create_app(says(OK), SECRET), most=5) as url,
        httpx.Client(headers=BEARER) as known,
    ):
        assert known.get(f"{url}/metrics").is_success  # and its connection stays
        unknown = []
        for _ in range(4):
            unknown.append(connect(url, b"GET / HT"))
            time.sleep(0.01)
        assert all(map(waits, unknown))
        unknown.append(connect(url))
        wait_until(lambda: not waits(unknown[0]))
        assert all(map(waits, unknown[1:]))
        assert known.get(f"{url}/metrics").is_success


def test_the_peer_with_the_most_connections_makes_room() -> None:
    with guarded(create_app(says(OK), SECRET), most=6) as url:
        port = int(url.rpartition(":")[2])

        def from_(address: str) -> socket.socket:
            return socket.create_connection(("127.0.0.1", port), 30, (address, 0))

        other = from_("127.0.0.2")  # the oldest of all
        time.sleep(0.05)
        many = [from_("127.0.0.3") for _ in range(12)]
        wait_until(lambda: sum(map(waits, many)) == 5)
        assert waits(other)


def test_where_all_are_at_work_a_new_connection_is_asked_to_come_back() -> None:
    box = sleeps()
    with guarded(create_app(box, SECRET), most=2) as url, ThreadPoolExecutor(2) as pool:
        held = [pool.submit(ask, url, "2") for _ in range(2)]
        wait_until(lambda: box.running == 2)
        answer = httpx.get(f"{url}/health")
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
        assert [each.result().status_code for each in held] == [200, 200]
        assert httpx.get(f"{url}/health").status_code == 200


def test_headers_that_do_not_come_end_their_connection(monkeypatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with guarded(create_app(says(OK), SECRET), most=100) as url:
        silent, begun = connect(url), connect(url, b"GET /health HTTP/1.1\r\nX: ")
        dripping = connect(url, b"GET /health HTTP/1.1\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(50):  # a byte now and then wins no time
                dripping.sendall(b"x")
                time.sleep(0.1)
            raise AssertionError("it was let go on")
        assert received(silent) == received(begun) == b""
        # The same for a second request of a connection, the token known or not.
        again = connect(
            url, b"GET /metrics HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer s3cret\r\n\r\n"
        )
        wait_until(lambda: b" 200 " in again.recv(1 << 16))
        again.sendall(b"GET /metrics HTTP/1.1\r\nX:")
        assert b" 200 " not in received(again)


def test_a_program_that_takes_long_is_not_cut_by_those_bounds(monkeypatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 0.2)
    with guarded(create_app(sleeps(), SECRET), most=100) as url, httpx.Client() as client:
        for _ in range(2):  # the second on the same connection
            body = {"code": "1", "language": "python"}
            answer = client.post(f"{url}/run_code", json=body, headers=BEARER)
            assert answer.json()["run_result"]["stdout"] == "1"


def test_an_answer_that_nobody_takes_ends_its_connection(monkeypatch) -> None:
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 0.5)
    bounds = Connections(100, SECRET)
    app = create_app(says(Execution(Outcome.OK, "x" * (16 << 20))), SECRET)
    body = b'{"code": "", "language": "python"}'
    with serving(app, http=bounds.protocol) as url:
        connection = connect(url, head(length=len(body)) + body)
        wait_until(lambda: len(bounds.open) == 1)
        wait_until(lambda: len(bounds.open) == 0)
        connection.close()


# --- bodies ---------------------------------------------------------------------------------------


def test_a_body_on_its_way_takes_no_place() -> None:
    with serving(create_app(says(OK), SECRET, max_in_flight=1)) as url:
        slow = [connect(url, head() + b"{") for _ in range(5)]
        assert ask(url).status_code == 200
        for connection in slow:
            connection.close()


def test_of_too_many_bodies_the_slowest_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(server, "_BODIES", 3)
    with serving(create_app(says(OK), SECRET)) as url:
        slow = [connect(url, head(length=10_000) + b" " * n) for n in (500, 1, 900)]
        assert ask(url).status_code == 503  # for now: all have just begun
        time.sleep(1.2)
        assert ask(url).status_code == 200
        answer = received(slow[1])
        assert b" 503 " in answer and b"retry-after: 1" in answer.lower()
        assert waits(slow[0]) and waits(slow[2])
        slow[0].sendall(b'{"code": "", "language": "python"}'.ljust(9_500))
        wait_until(lambda: b" 200 " in slow[0].recv(1 << 16))


def test_bodies_are_bounded_in_bytes_all_together(monkeypatch) -> None:
    monkeypatch.setattr(server, "_BODIES_BYTES", 1 << 20)
    with serving(create_app(says(OK), SECRET)) as url:
        slow = [connect(url, head(length=1 << 20) + b" " * 400_000) for _ in range(2)]
        time.sleep(1.2)
        assert ask(url, "1" * 500_000).status_code == 200
        assert sum(map(waits, slow)) == 1


def test_a_body_that_says_that_it_is_too_large_is_refused_unread() -> None:
    with serving(create_app(says(OK), SECRET)) as url:
        assert b" 413 " in received(connect(url, head(length=33 << 20)))


def test_a_body_that_a_stop_cuts_off_is_answered() -> None:
    with serving(create_app(says(OK), SECRET)) as url:
        connection = connect(url, head() + b"{")
        assert httpx.get(f"{url}/health").status_code == 200
    answer = received(connection)
    assert b" 503 " in answer and b"the server stops" in answer


# --- open files -----------------------------------------------------------------------------------


def limited(files: int, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "retool_env.cli", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )


@pytest.mark.parametrize("files", [40, 64, 128, 256])
@pytest.mark.parametrize("arguments", [(), ("--max-in-flight", "32")])
def test_too_few_open_files_are_refused_at_the_start(files: int, arguments: tuple) -> None:
    process = limited(files, *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == ""
    assert f"may open {files} files" in err and "ulimit -n " in err


def test_as_many_open_files_as_it_asks_for_are_enough() -> None:
    _, err = limited(40, "--max-in-flight", "32").communicate(timeout=60)
    needed = int(err.partition("ulimit -n ")[2].partition("`")[0])
    assert limited(needed - 1, "--max-in-flight", "32").communicate(timeout=60)[0] == ""
    process = limited(needed, "--max-in-flight", "32")
    try:
        url = process.stdout.readline().strip()
        idle = [connect(url) for _ in range(needed)]
        with ThreadPoolExecutor(32) as pool:
            codes = ["import time\ntime.sleep(1)\nprint(7)"] * 32
            answers = list(pool.map(lambda code: ask(url, code).json(), codes))
        assert [each["run_result"]["stdout"] for each in answers] == ["7\n"] * 32
        for connection in idle:
            connection.close()
    finally:
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert err == ""


# --- where the token comes from -------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [("--token", "hunter2"), ("--token=hunter2",), ("--toke", "hunter2"), ("--tok=hunter2",)],
)
def test_a_token_on_the_command_line_is_refused_and_not_shown(given: tuple, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "0", *given])
    err = capsys.readouterr().err
    assert ended.value.code == 2 and "hunter2" not in err
    if given[0].startswith("--token"):
        assert "--token-file FILE, or RETOOL_SANDBOX_TOKEN" in err


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o644, True)])
def test_a_token_comes_from_a_file(mode: int, warned: bool, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-the-file\n")
    file.chmod(mode)
    with command("--token-file", str(file), RETOOL_SANDBOX_TOKEN="other") as (process, url):
        assert httpx.get(f"{url}/metrics", headers=BEARER).status_code == 401
        shown = {"Authorization": "Bearer from-the-file"}
        assert httpx.get(f"{url}/metrics", headers=shown).status_code == 200
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert ("chmod 600" in err) == warned and "from-the-file" not in err


def test_a_token_file_that_is_none_is_refused(tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"q" * 10_000)
    (tmp_path / "binary").write_bytes(b"q\xff")
    (tmp_path / "empty").write_bytes(b"\n")
    for name in ("fifo", "large", "binary", "empty", "missing", "."):
        assert main(["serve", "--port", "0", "--token-file", str(tmp_path / name)]) == 1
        err = capsys.readouterr().err
        assert "token" in err and "qq" not in err
    assert main(["serve", "--port", "0", "--token-file", "/dev/zero"]) == 1


def test_nsjail_inherits_no_secret(monkeypatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter2")
    monkeypatch.setenv("RETOOL_SANDBOX_TOKEN", SECRET)
    with make_sandbox("nsjail", guests=1) as box:
        for guest in box.pool.guests:
            below = [guest.process.pid, *processes.below(guest.process.pid)]
            for pid in below:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
                assert b"hunter2" not in environment and SECRET.encode() not in environment
            assert b"PATH=" in Path(f"/proc/{guest.process.pid}/environ").read_bytes()


def test_the_grading_process_inherits_no_secret(monkeypatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter2")
    worker = grading.grader._Worker(5.0, 1024)
    try:
        assert b"hunter2" not in Path(f"/proc/{worker.process.pid}/environ").read_bytes()
        assert worker.ask([["1/2"], ["0.5"]]) == b"1"
    finally:
        worker.kill()
