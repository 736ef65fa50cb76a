"""Requests to `vllm serve`, and what its answers mean: done, busy, failed (another attempt may do better), or refused."""

from __future__ import annotations

import functools
import logging
import math
import random
import time
from typing import TYPE_CHECKING, Any

from retool_env.errors import MissingPackage, RetoolError
from retool_env.rollout.vllm.routing import Server
from retool_env.servers.address import check_key, check_url, redact
from retool_env.servers.bounded import MOST_BYTES, bounded_client

if TYPE_CHECKING:
    import httpx

_CONNECT_SECONDS = 10.0
_ANSWER_BYTES, _TOKEN_BYTES = 1 << 20, 512  # of an answer, and more for each of its tokens
_ANSWER_SECONDS = 30.0  # to all but turns and new weights
_KEEP_ALIVE_SECONDS = 2.0  # shorter than the servers' own, which would close it while we send
_SHORTEST_RETRY_AFTER, _LONGEST_RETRY_AFTER = 0.25, 30.0
_ERROR_CHARACTERS = 300
_FIRST_ASIDE = 0.5
_MOST_DOUBLINGS = 6  # 32 s

_log = logging.getLogger(__name__)


class Busy(RetoolError):
    """The server takes no more at the moment."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("busy")
        self.retry_after = retry_after
        """Seconds after which it may."""


class Failure(RetoolError):
    """The server did not do what it was asked for; another attempt may."""


class Client:
    """Sends requests. Belongs to one event loop.

    Args:
        token: What the servers were started with as `--api-key`.

    Raises:
        ImportError: If the package httpx is missing.
        ValueError: If the token can't be sent.
    """

    def __init__(self, token: str | None) -> None:
        check_key(token, "token")
        self._token = token
        try:
            import httpx
        except ImportError as error:
            raise MissingPackage(f"{error}: pip install 'retool-env[remote]'") from error
        self._failures = httpx.HTTPError
        self._closed = httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError
        self._http = bounded_client(
            httpx.AsyncClient,
            _ANSWER_BYTES,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            limits=httpx.Limits(keepalive_expiry=_KEEP_ALIVE_SECONDS),
        )
        self._timeout = functools.partial(httpx.Timeout, connect=_CONNECT_SECONDS, pool=None)

    async def send(
        self,
        server: Server,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        seconds: float | None = None,
        tokens: int = 0,
    ) -> Any:
        """The values of the answer to a request.

        Args:
            server: Whom to ask.
            method: `"GET"` or `"POST"`.
            path: What, with its parameters.
            body: Sent as JSON.
            seconds: That the answer may take, where it is not one that comes at once.
            tokens: That the answer may hold.

        Raises:
            Busy: If the server takes no more at the moment.
            Failure: If it did not answer, or failed.
            PermissionError: If it refuses the token.
            RuntimeError: If it was not started so that it takes new weights.
            ValueError: If it refuses the request.
        """
        timeout = self._timeout(seconds or _ANSWER_SECONDS)
        request = functools.partial(
            self._http.request,
            method,
            server.url + path,
            json=body,
            timeout=timeout,
            extensions={MOST_BYTES: _ANSWER_BYTES + _TOKEN_BYTES * tokens},
        )
        try:
            try:
                response = await request()
            except self._closed:
                if method != "GET":
                    raise
                # A server closes the connection on which it told of an error; we may have been on our way already.
                response = await request()
        except self._failures as error:
            told = redact(
                f"{type(error).__name__} {error}".strip(), self._token, most=_ERROR_CHARACTERS
            )
            raise Failure(told) from None
        server.heard = time.monotonic()
        return _content(server.url, path, response, self._token)

    async def close(self) -> None:
        """End the connections."""
        await self._http.aclose()


def base_url(url: str) -> str:
    """A server's URL without a slash, or a path `/v1`, at its end.

    Raises:
        ValueError: If it is none.
    """
    base = url.strip().rstrip("/").removesuffix("/v1")
    check_url(base, "a server", "http://host:8000")
    return base


def set_aside(server: Server, sent: float, failure: Exception) -> None:
    """Ask a server nothing for a while, twice as long each time in a row.

    Args:
        server: Which failed.
        sent: The time when it got what it failed at.
        failure: How.
    """
    if sent < server.aside_until:
        return  # sent together with one that has failed before
    if not server.failures:
        _log.warning("%s is set aside: %s", server.url, failure)
    aside = _FIRST_ASIDE * 2 ** min(server.failures, _MOST_DOUBLINGS)
    server.failures += 1
    server.failure = str(failure)
    server.aside_until = time.monotonic() + aside * random.uniform(0.75, 1.25)
    server.weights = None
    server.blocks.clear()


def field[T](answer: Any, name: str, *kinds: type[T]) -> T:
    """A field of an answer.

    Raises:
        Failure: If it is missing, or of none of these types.
    """
    value = answer.get(name) if isinstance(answer, dict) else None
    if not _is(value, kinds):
        shown = redact(repr(value), most=100)
        raise Failure(f"an answer without {name}, {shown} instead: is it vllm serve, 0.31?")
    return value


def fields[T](answer: Any, name: str, *kinds: type[T]) -> list[T]:
    """A field of an answer that is a list.

    Raises:
        Failure: If it is missing or no list, or one of its items is of none of these types.
    """
    values = field(answer, name, list)
    for value in values:
        if not _is(value, kinds):
            shown = redact(repr(value), most=100)
            raise Failure(f"an answer with {shown} in {name}: is it vllm serve, 0.31?")
    return values


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    # Not by `isinstance`: a truth value is no number. Nor is what JSON's readers take for infinite.
    return type(value) in kinds and (type(value) is not float or math.isfinite(value))


def _content(url: str, path: str, response: httpx.Response, token: str | None) -> Any:
    status, text = response.status_code, response.text
    said = f"HTTP {status}"
    if status != 200:
        said += f" {redact(text, token, most=_ERROR_CHARACTERS)}"
    if status in (401, 403):
        raise PermissionError(
            f"{url} refuses the token ({said}); give the one it was started with, as `token`"
        )
    if status == 429 or (status == 503 and "retry-after" in response.headers):
        raise Busy(_seconds(response.headers.get("retry-after", "")))
    if status == 404 and not path.startswith("/v1/"):
        raise RuntimeError(
            f"{url} has no {path.partition('?')[0]}: to take new weights it must be started with VLLM_SERVER_DEV_MODE=1"
        )
    if 400 <= status < 500 and status != 408:
        raise ValueError(f"{url} refuses the request: {said}")
    if status != 200:
        raise Failure(said)
    if not text:
        return None
    try:
        return response.json()
    except (ValueError, RecursionError) as error:
        raise Failure(f"no JSON, but {redact(text, token, most=_ERROR_CHARACTERS)!r}") from error


def _seconds(retry_after: str) -> float:
    """The header's seconds; a second where it holds a date or nothing."""
    try:
        seconds = float(retry_after)
    except ValueError:
        return 1.0
    return min(max(_SHORTEST_RETRY_AFTER, seconds), _LONGEST_RETRY_AFTER)  # in this order for NaN
