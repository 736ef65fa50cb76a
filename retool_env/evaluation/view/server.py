"""The page's server: HTTP on this machine alone, for whoever knows the token in the address.

| request                         | answer                                                         |
|---------------------------------|----------------------------------------------------------------|
| `GET /TOKEN/`, `GET /TOKEN/x.js`| a file of the page, if the page's folder holds its name        |
| `GET /TOKEN/api/…`              | JSON; see `retool_env.evaluation.view.api`                     |
| `POST /TOKEN/api/run`           | JSON; only with the `Origin` of the page                       |
| any other                       | status 404                                                     |

A page of another site can neither read nor ask anything: it does not know the token, a foreign name
for this machine (DNS rebinding) fails at the `Host` header, and a foreign form at the `Origin`. The
page itself may load its own files only (Content-Security-Policy). An error is JSON with one line.
"""

from __future__ import annotations

import json
import secrets
import sys
import traceback
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from retool_env.errors import RetoolError, SandboxUnavailable, SettingsError
from retool_env.evaluation.view.api import Api, Busy
from retool_env.evaluation.view.rows import to_json
from retool_env.evaluation.view.static import page_files

HOST = "127.0.0.1"
"""The only address that the server listens on."""

MOST_BODY = 1 << 16
"""The largest size of a request's body, in bytes."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_JSON = "application/json"


class ViewServer(ThreadingHTTPServer):
    """The server of one viewer. It listens as soon as it is made.

    Args:
        api: The API.
        port: The port; 0: a free port.

    Raises:
        SettingsError: The port is in use, or this user may not use it.
    """

    daemon_threads = True

    def __init__(self, api: Api, port: int = 0) -> None:
        self.api = api
        self.token = secrets.token_urlsafe(24)
        """The first part of every path."""
        self.page = page_files()
        """The files of the page by name."""
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise SettingsError(f"port {port} can't be used ({error}): name another port") from None

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    @property
    def hosts(self) -> tuple[str, str]:
        """The values of `Host` that mean this server."""
        return f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stays silent if a browser closes its connection; other errors are shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: The status.
        message: The fault, in one line.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "retool", ""
    timeout = 60

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, request: Callable[[str, dict[str, str]], tuple[str, bytes]]) -> None:
        """Sends the answer of a request, or its error."""
        try:
            self._send(HTTPStatus.OK, *request(*self._place()))
        except _Refused as refused:
            self._send_error(refused.status, str(refused))
        except Busy as error:
            self._send_error(HTTPStatus.CONFLICT, str(error))
        except SettingsError as error:
            self._send_error(HTTPStatus.BAD_REQUEST, str(error))
        except SandboxUnavailable as error:
            self._send_error(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except ConnectionError:
            raise
        except (RetoolError, OSError) as error:
            self._send_error(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        except Exception:  # a bug: its trace is for the terminal, not for the page
            traceback.print_exc()
            message = "an error of the viewer; its trace is in the terminal"
            self._send_error(HTTPStatus.INTERNAL_SERVER_ERROR, message)

    def _place(self) -> tuple[str, dict[str, str]]:
        """The path below the token, and the query.

        Raises:
            _Refused: The request is not for this server.
        """
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            raise _Refused(
                HTTPStatus.FORBIDDEN,
                f"the Host header must be {' or '.join(self.server.hosts)}: open the address as it "
                "was printed; to forward the port, use the same number on both machines",
            )
        try:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=16))
        except ValueError:
            raise _Refused(HTTPStatus.BAD_REQUEST, "the address can't be read") from None
        token, slash, below = parts.path.removeprefix("/").partition("/")
        known = secrets.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())
        if not known or not slash:
            raise _Refused(HTTPStatus.NOT_FOUND, "not found: open the address as it was printed")
        return below, query

    def _get(self, below: str, query: Mapping[str, str]) -> tuple[str, bytes]:
        """The type and the content of an answer."""
        name = below or "index.html"
        if (content := self.server.page.get(name)) is not None:
            return _TYPES[name[name.rindex(".") :]], content
        request = self.server.api.requests.get(below.removeprefix("api/"))
        if request is None or not below.startswith("api/"):
            raise _Refused(HTTPStatus.NOT_FOUND, "not found")
        return _JSON, to_json(request(query)).encode()

    def _post(self, below: str, query: Mapping[str, str]) -> tuple[str, bytes]:
        """The same, of the one request that starts a program."""
        if self.headers["Origin"] not in [f"http://{host}" for host in self.server.hosts]:
            raise _Refused(HTTPStatus.FORBIDDEN, "the Origin header is not this server's page")
        if below != "api/run":
            raise _Refused(HTTPStatus.NOT_FOUND, "not found")
        length = self.headers["Content-Length"] or ""
        if not (length.isascii() and length.isdigit()):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the Content-Length header is missing")
        if len(length) > 9 or int(length) > MOST_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large")
        if self.headers.get_content_type() != _JSON:
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body must be {_JSON}")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
        return _JSON, to_json(self.server.api.run(body)).encode()

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if status != HTTPStatus.OK:  # the rest of the request was perhaps not read
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_error(self, status: HTTPStatus, message: str) -> None:
        line = " ".join(message.split())
        self._send(status, _JSON, to_json({"error": line}).encode())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers a request that can't be parsed, in JSON like any other error."""
        status = HTTPStatus(code)
        self.close_connection = True
        self._send_error(status, status.phrase)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Writes no log."""
