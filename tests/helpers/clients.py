"""Clients for the tests of the service: whole requests, and raw connections."""

import contextlib
import socket
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from retool_env.sandbox import Execution, Outcome


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


SECRET = "s3cret"
BEARER = bearer(SECRET)
OK = Execution(Outcome.OK, "42", duration=0.02)


def ask(url: str, code: str = "", headers: dict = BEARER, **fields: Any) -> httpx.Response:
    """Sends a program to a server.

    Args:
        url: The server's URL.
        code: The program's text.
        headers: The headers of the request.
        **fields: Further fields of the request.
    """
    body = {"code": code, "language": "python"} | fields
    return httpx.post(f"{url}/run_code", json=body, headers=headers, timeout=60)


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


def counted(url: str) -> dict[tuple[str, str], float]:
    response = httpx.get(f"{url}/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    samples = (sample for family in families for sample in family.samples)
    return {(s.name, s.labels.get("outcome", s.labels.get("le", ""))): s.value for s in samples}
