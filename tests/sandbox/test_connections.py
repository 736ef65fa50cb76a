"""Access to a server, and bounds on its connections, with real sockets."""

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from helpers.clients import BEARER, OK, SECRET, ask, connect, head, received, waits
from helpers.services import command, says, serving, sleeps, wait_until

from retool_env.sandbox import Execution, Outcome, connections
from retool_env.sandbox.connections import Connections
from retool_env.sandbox.server import create_app


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


def test_without_the_token_no_body_is_asked_for_or_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.2)
    with serving(create_app(says(OK), SECRET)) as url:
        connection = connect(url, head("wrong", 1 << 20) + b"{")
        answer = received(connection)  # without the rest of the body
    assert b" 401 " in answer and b"connection: close" in answer.lower()
    assert b" 100 " not in answer


@pytest.mark.parametrize(
    ("token", "status", "length"), [("wrong", b" 401 ", 8 << 20), (SECRET, b" 413 ", 33 << 20)]
)
def test_a_client_that_still_sends_its_body_gets_an_early_answer_and_no_reset(
    token: str, status: bytes, length: int
) -> None:
    with serving(create_app(says(OK), SECRET)) as url:
        connection = connect(url, head(token, length))
        answer = b""
        while b"detail" not in answer:  # at once: the client has sent no body
            answer += connection.recv(65536)
        assert status in answer
        connection.sendall(b"x" * length)  # a closed connection would refuse it
        while part := connection.recv(65536):
            answer += part
    assert answer.endswith(b'"}')


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
