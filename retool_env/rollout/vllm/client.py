"""Requests to `vllm serve`, and the meaning of its answers: done, busy, failed or refused.

After a failure another attempt may succeed; a refused request would be refused again.
"""

from __future__ import annotations

import functools
import math
import time
from typing import TYPE_CHECKING, Any

from retool_env.errors import MissingPackage, RetoolError
from retool_env.rollout.policy import PolicyUnavailable
from retool_env.rollout.vllm.routing import Server
from retool_env.servers import hosts
from retool_env.servers.address import check_key, redact
from retool_env.servers.bounded import MOST_BYTES, bounded_client

if TYPE_CHECKING:
    import httpx

METRICS = "/metrics"
"""The path of a server's metrics."""
TURN, LOAD_ADAPTER = "/v1/completions", "/v1/load_lora_adapter"
"""The paths of the requests for a turn, and for the loading of an adapter."""
# The most bytes of an answer: a fixed part, and a part for each of its tokens.
_ANSWER_BYTES, _TOKEN_BYTES = 1 << 20, 512
_TEXT = LOAD_ADAPTER, "/v1/unload_lora_adapter"  # they do not answer in JSON
_ANSWER_SECONDS = 30.0  # for all requests but turns and new weights


class UnknownModel(RetoolError, ValueError):
    """A server does not have what a request names: a model, an adapter, or its folder."""


class Client:
    """Sends requests to servers. A client belongs to one event loop.

    Args:
        token: The key with which the servers were started (`--api-key`). `None`: no key.

    Raises:
        MissingPackage: If the package httpx is missing.
        SettingsError: If the token can't be sent.
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
        self._http = bounded_client(httpx.AsyncClient, _ANSWER_BYTES, **hosts.connection(token))
        self._timeout = functools.partial(httpx.Timeout, connect=hosts.CONNECT_SECONDS, pool=None)

    async def send(
        self,
        server: Server,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        seconds: float | None = None,
        tokens: int = 0,
    ) -> Any:
        """Send a request, and return the parsed JSON of its answer; of metrics, its text.

        Args:
            server: The server to ask.
            method: `"GET"` or `"POST"`.
            path: The path of the endpoint, with its query.
            body: The values to send as JSON. `None`: no body.
            seconds: The seconds that the answer may take. `None`: 30, for requests that are
                answered at once.
            tokens: The most tokens that the answer may hold; the bound on its bytes grows with
                them.

        Raises:
            Busy: If the server takes no more requests at the moment.
            Failure: If the server did not answer, or failed.
            PermissionError: If the server refuses the token.
            RuntimeError: If the server was not started so that it takes new weights.
            ValueError: If the server refuses the request.
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
                if method != "GET" and path != TURN:  # these two have no effect but their answer
                    raise
                # A server closes the connection on which it reported an error, or that was idle.
                # The request may have been sent before that was noticed.
                response = await request()
        except self._failures as error:
            words = f"{type(error).__name__} {error}".strip()
            raise hosts.Failure(redact(words, self._token, most=hosts.ERROR_CHARACTERS)) from None
        if path != METRICS:  # they are asked for at any time, and tell nothing about the weights
            server.heard = time.monotonic()
        return _content(server.url, path, response, self._token)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def field[T](answer: Any, name: str, *kinds: type[T]) -> T:
    """Read a field of an answer.

    Args:
        answer: The parsed JSON of an answer.
        name: The name of the field.
        *kinds: The types that the value may have; a subclass does not count.

    Raises:
        Failure: If the field is missing or has another type.
    """
    return _of_kind(answer.get(name) if isinstance(answer, dict) else None, name, kinds)


def fields[T](answer: Any, name: str, *kinds: type[T]) -> list[T]:
    """Read a field of an answer that holds a list.

    Args:
        answer: The parsed JSON of an answer.
        name: The name of the field.
        *kinds: The types that each item may have; a subclass does not count.

    Raises:
        Failure: If the field is missing or not a list, or an item has another type.
    """
    return [_of_kind(value, name, kinds) for value in field(answer, name, list)]


def _of_kind(value: Any, name: str, kinds: tuple[type, ...]) -> Any:
    # Not `isinstance`: it takes a truth value for a number. JSON readers also give infinities.
    if type(value) not in kinds or (type(value) is float and not math.isfinite(value)):
        shown = redact(repr(value), most=100)
        raise hosts.Failure(f"the answer has {shown} in {name}: is the server vllm serve, 0.31?")
    return value


def _content(url: str, path: str, response: httpx.Response, token: str | None) -> Any:
    status, text = response.status_code, response.text
    shown = redact(text, token, most=hosts.ERROR_CHARACTERS)
    if status in (401, 403):
        raise PermissionError(
            f"{url} refuses the token (HTTP {status} {shown}): set `token` to the --api-key of the "
            "server"
        )
    hosts.check_free(response)
    if status == 404 and not path.startswith("/v1/"):
        raise RuntimeError(
            f"{url} has no {path.partition('?')[0]}: to take new weights the server must be "
            "started with VLLM_SERVER_DEV_MODE=1"
        )
    if status == 404 and path in (TURN, LOAD_ADAPTER):
        raise UnknownModel(f"{url} does not have what the request names: {shown}")
    if 400 <= status < 500 and status != 408:
        raise ValueError(f"{url} refuses the request: HTTP {status} {shown}")
    if status != 200:
        raise hosts.Failure(f"HTTP {status} {shown}")
    if path == METRICS:
        return text
    if not text or path in _TEXT:
        return None
    try:
        return response.json()
    except (ValueError, RecursionError) as error:
        raise hosts.Failure(f"the answer is not JSON: {shown!r}") from error


def unavailable(errors: dict[str, str]) -> PolicyUnavailable:
    """The error to raise when no server did its work.

    Args:
        errors: The error of each server, by URL.
    """
    reasons = "; ".join(f"{url}: {' '.join(text.split())}" for url, text in errors.items())
    return PolicyUnavailable(f"no server of the model answers: {reasons}")
