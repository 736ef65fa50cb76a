"""Access to a server, and bounds on connections that uvicorn does not set.

uvicorn bounds the size of a request's headers and the idle time between two requests. This module
also bounds the seconds until the headers are complete, the seconds until the client has taken an
answer, and the number of connections.

When a new connection exceeds that number, the server closes an old one. Among the connections that
have not yet shown the token, it takes the peer with the most connections and closes the oldest of
them. If all have shown the token, it chooses among the idle connections in the same way. So a
client without the token keeps nobody out, and no peer crowds out another peer.
"""

import asyncio
import contextlib
import hmac
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
"""The longest time from the start of a connection, or the first byte of its next request, to the
end of the headers."""

ANSWER_SECONDS = 60.0
"""The longest time in which a client takes an answer, or the part of it that its connection
holds."""

LINGER_SECONDS = 5.0
"""The longest time in which the rest of a body is read and discarded after an early answer."""

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"Retry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)

Headers = Iterable[tuple[bytes, bytes]]


def shows_token(headers: Headers, token: str | None) -> bool:
    """Whether a request carries the token; always true for a server without a token.

    Args:
        headers: The request's headers; names are in lower case.
        token: The token that the request must carry as `Authorization: Bearer TOKEN`. `None`: the
            server has no token.
    """
    if token is None:
        return True
    carried = next((value for name, value in headers if name == b"authorization"), b"")
    return hmac.compare_digest(carried, b"Bearer " + token.encode())


class TokenRequired:
    """ASGI middleware that refuses requests without the token and does not read their bodies.

    Args:
        app: The application that gets the accepted requests.
        token: The token. `None`: every request is accepted.
        open_paths: The paths that need no token.
    """

    def __init__(self, app: ASGIApp, token: str | None, open_paths: Iterable[str]) -> None:
        self._app = app
        self._token = token
        self.open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers with 401 and closes the connection."""
        asks = scope["type"] == "http" and scope["path"] not in self.open_paths
        if not asks or shows_token(scope["headers"], self._token):
            await self._app(scope, receive, send)
            return
        detail = "this server needs its token, as the header 'Authorization: Bearer TOKEN'"
        headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
        content = json.dumps({"detail": detail})
        refused = Response(content, 401, headers, media_type="application/json")
        await refused(scope, receive, send)


class Lingering:
    """ASGI middleware that lets clients read an answer that comes before the end of their request.

    If a server closes a connection with unread data, the system resets the connection, and a client
    that still sends may lose the answer. After an early answer, this middleware therefore reads the
    rest of the body and discards it, for at most `LINGER_SECONDS`.

    Args:
        app: The application that answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and ends its answer when its body has ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body_ended = False

        async def read() -> Message:
            nonlocal body_ended
            message = await receive()
            body_ended = not message.get("more_body", False)
            return message

        async def answer(message: Message) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if last and not body_ended:
                await send({**message, "more_body": True})  # the client gets it now
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_SECONDS):
                        while not body_ended:
                            await read()
                message = {"type": "http.response.body"}
            await send(message)

        await self._app(scope, read, answer)


class Connections:
    """The open connections of a server.

    Args:
        most: The largest number of connections at once.
        token: The server's token; a connection that has shown it is known. `None`: every connection
            with a request is known.
    """

    def __init__(self, most: int, token: str | None) -> None:
        self.token = token
        self._most = most
        self.open: dict[Connection, None] = {}
        """The open connections, oldest first."""

    def protocol(self, **given: Any) -> "Connection":
        """Makes the protocol of one connection, for `uvicorn.Config(http=...)`.

        Args:
            **given: The arguments that uvicorn passes.
        """
        return Connection(self, **given)

    def begin(self, connection: "Connection") -> bool:
        """Admits a new connection, and closes an old connection if there are too many.

        Returns:
            Whether the connection is admitted. It is not if every connection is answering a client
            that has shown the token.
        """
        if len(self.open) >= self._most:
            victim = self._victim()
            if victim is None:
                return False
            self.end(victim)
            victim.transport.abort()
        self.open[connection] = None
        return True

    def end(self, connection: "Connection") -> None:
        """Forgets a connection that has ended. May be called again."""
        self.open.pop(connection, None)

    def _victim(self) -> "Connection | None":
        unknown = [connection for connection in self.open if not connection.known]
        candidates = unknown or [connection for connection in self.open if not connection.at_work]
        peers = Counter(connection.peer for connection in candidates)
        most = max(peers.values(), default=0)
        return next((one for one in candidates if peers[one.peer] == most), None)


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, with bounds on the time of headers and answers.

    Args:
        connections: The connections of the server, to which this one belongs.
        **given: The arguments that uvicorn passes.
    """

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self.known = False
        """Whether a request on this connection has shown the token."""
        self._all = connections
        self._timer: Any = None
        self._awaits_headers = False

    @property
    def peer(self) -> str | None:
        """The client's address, without the port."""
        return self.client and self.client[0]

    @property
    def at_work(self) -> bool:
        """Whether a request is not yet answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        """Asks for admission, and starts the time limit for headers."""
        super().connection_made(transport)
        if self._all.begin(self):
            self._await_headers()
        else:
            transport.write(_BUSY)
            transport.close()
            self._limit(ANSWER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Makes room for another connection."""
        self._all.end(self)
        self._limit(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads data; the first data after an answer starts the next request's time limit."""
        super().data_received(data)
        if not self.at_work and not self._awaits_headers and not self.transport.is_closing():
            self._await_headers()

    def handle_events(self) -> None:
        """Starts the requests whose headers are complete."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._limit(None)
            self.known = self.known or shows_token(self.headers, self._all.token)

    def on_response_complete(self) -> None:
        """Starts the time limit for taking the answer; uvicorn itself bounds the idle time."""
        self._limit(ANSWER_SECONDS)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Starts the time limit in which the client has to take more of an answer."""
        super().pause_writing()
        self._limit(ANSWER_SECONDS)

    def resume_writing(self) -> None:
        """Ends that time limit, unless the answer is complete and its rest waits."""
        super().resume_writing()
        if self.at_work:
            self._limit(None)

    def _await_headers(self) -> None:
        self._limit(HEADER_SECONDS)
        self._awaits_headers = True

    def _limit(self, seconds: float | None) -> None:
        """Ends the connection after these seconds; replaces the limit before. `None`: no limit."""
        if self._timer is not None:
            self._timer.cancel()
        self._awaits_headers = False
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        self.transport.abort()  # `close` would wait for the client to take what is written
