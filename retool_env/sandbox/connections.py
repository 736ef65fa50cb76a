"""Who may ask a server, and how long its connections may take: what uvicorn itself does not bound.

uvicorn bounds the size of a request's headers and the time that a connection is idle between two
requests. Here are bounded besides: the seconds in which headers must be complete, and those in
which an answer must be taken; and the connections. Where a new one comes and there are as many as
there may be, room is made for it: of the connections that have not yet shown the token, those of
the peer that has the most of them, the oldest is closed; if there are none, one that is idle. So
nobody without the token keeps others out, and no peer keeps out another one.
"""

import hmac
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
"""From a connection's beginning, or the first byte of its next request, to the end of the headers."""

ANSWER_SECONDS = 60.0
"""In which a client must take an answer, or what its connection holds of it."""

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"Retry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)

Headers = Iterable[tuple[bytes, bytes]]


def shows_token(headers: Headers, token: str | None) -> bool:
    """Whether a request carries the token; always, where there is none.

    Args:
        headers: The request's headers, their names in lower case.
        token: What the request must carry as `Authorization: Bearer TOKEN`.
    """
    if token is None:
        return True
    carried = next((value for name, value in headers if name == b"authorization"), b"")
    return hmac.compare_digest(carried, b"Bearer " + token.encode())


class TokenRequired:
    """Lets only requests with the token pass, whatever they ask for; the others are refused unread.

    Args:
        app: Gets the requests that pass.
        token: What they must carry.
        open_paths: The paths for which nothing is asked.
    """

    def __init__(self, app: ASGIApp, token: str | None, open_paths: Iterable[str]) -> None:
        self._app = app
        self._token = token
        self.open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with 401 and closes its connection."""
        asks = scope["type"] == "http" and scope["path"] not in self.open_paths
        if not asks or shows_token(scope["headers"], self._token):
            await self._app(scope, receive, send)
            return
        detail = "this server needs its token, as the header 'Authorization: Bearer TOKEN'"
        headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
        content = json.dumps({"detail": detail})
        refused = Response(content, 401, headers, media_type="application/json")
        await refused(scope, receive, send)


class Connections:
    """The open connections of a server.

    Args:
        most: How many there may be.
        token: What makes a connection known, see `shows_token`.
    """

    def __init__(self, most: int, token: str | None) -> None:
        self.token = token
        self._most = most
        self.open: dict[Connection, None] = {}
        """Those that have not ended, the oldest first."""

    def protocol(self, **given: Any) -> "Connection":
        """Makes the protocol of one connection, for `uvicorn.Config(http=...)`."""
        return Connection(self, **given)

    def begin(self, connection: "Connection") -> bool:
        """Takes a new connection in, another one being closed where there are too many.

        Returns:
            Whether there is room; there is none where each is at work for somebody with the token.
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
        unknown = [each for each in self.open if not each.known]
        idle = [each for each in self.open if not each.at_work]
        peers = Counter(each.peer for each in unknown or idle)
        most = max(peers.values(), default=0)
        return next((each for each in unknown or idle if peers[each.peer] == most), None)


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, with bounds on the time of headers and answers.

    Args:
        connections: It is one of these.
        **given: By uvicorn.
    """

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self.known = False
        """Whether a request that came here had the token."""
        self._all = connections
        self._timer: Any = None
        self._awaits_headers = False

    @property
    def peer(self) -> str | None:
        """The address that it comes from, without the port."""
        return self.client and self.client[0]

    @property
    def at_work(self) -> bool:
        """Whether a request here is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        """Asks whether there is room, and begins to wait for headers."""
        super().connection_made(transport)
        if self._all.begin(self):
            self._await_headers()
        else:
            transport.write(_BUSY)
            transport.close()
            self._limit(ANSWER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Makes room."""
        self._all.end(self)
        self._limit(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads on; where no request is at work, this is the beginning of the next one."""
        super().data_received(data)
        if not self.at_work and not self._awaits_headers and not self.transport.is_closing():
            self._await_headers()

    def handle_events(self) -> None:
        """Begins the requests whose headers are complete."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._limit(None)
            self.known = self.known or shows_token(self.headers, self._all.token)

    def on_response_complete(self) -> None:
        """Begins to wait until the answer is taken; uvicorn itself bounds how long it is idle."""
        self._limit(ANSWER_SECONDS)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begins to wait until the client takes more of an answer."""
        super().pause_writing()
        self._limit(ANSWER_SECONDS)

    def resume_writing(self) -> None:
        """Ends that, unless the answer is complete and its rest waits."""
        super().resume_writing()
        if self.at_work:
            self._limit(None)

    def _await_headers(self) -> None:
        self._limit(HEADER_SECONDS)
        self._awaits_headers = True

    def _limit(self, seconds: float | None) -> None:
        """Ends the connection in so many seconds, in place of what was said before; `None`: not."""
        if self._timer is not None:
            self._timer.cancel()
        self._awaits_headers = False
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        self.transport.abort()  # `close` would wait for the client to take what is written
