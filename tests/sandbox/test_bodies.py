"""Bounds on the request bodies that a server reads at once, with real sockets."""

import time

from helpers.clients import OK, SECRET, ask, connect, head, received, waits
from helpers.services import says, serving, wait_until

from retool_env.sandbox import server
from retool_env.sandbox.server import create_app


def test_a_body_on_its_way_takes_no_place() -> None:
    with serving(create_app(says(OK), SECRET, max_in_flight=1)) as url:
        slow = [connect(url, head() + b"{") for _ in range(5)]
        assert ask(url).status_code == 200
        for connection in slow:
            connection.close()


def test_of_too_many_bodies_the_slowest_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(server, "BODIES", 3)
    with serving(create_app(says(OK), SECRET)) as url:
        slow = [connect(url, head(length=10_000) + b" " * n) for n in (500, 1, 900)]
        assert ask(url).status_code == 503  # all bodies have just begun, so this one is refused
        time.sleep(1.2)
        assert ask(url).status_code == 200
        answer = received(slow[1])
        assert b" 503 " in answer and b"retry-after: 1" in answer.lower()
        assert waits(slow[0]) and waits(slow[2])
        slow[0].sendall(b'{"code": "", "language": "python"}'.ljust(9_500))
        wait_until(lambda: b" 200 " in slow[0].recv(1 << 16))


def test_bodies_are_bounded_in_bytes_all_together(monkeypatch) -> None:
    monkeypatch.setattr(server, "BODIES_BYTES", 1 << 20)
    with serving(create_app(says(OK), SECRET)) as url:
        slow = [connect(url, head(length=1 << 20) + b" " * 400_000) for _ in range(2)]
        time.sleep(1.2)
        assert ask(url, "1" * 500_000).status_code == 200
        assert sum(map(waits, slow)) == 1
