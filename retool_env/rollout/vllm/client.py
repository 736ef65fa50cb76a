"""Requests to `vllm serve`, and what its answers mean: done, busy, failed (another attempt may do better), or refused."""

from __future__ import annotations

import functools
import math
import time
from typing import TYPE_CHECKING, Any

from retool_env.errors import MissingPackage
from retool_env.rollout.vllm.routing import Server
from retool_env.servers import hosts
from retool_env.servers.address import check_key, redact
from retool_env.servers.bounded import MOST_BYTES, bounded_client

if TYPE_CHECKING:
    import httpx

_ANSWER_BYTES, _TOKEN_BYTES = 1 << 20, 512  # of an answer, and more for each of its tokens
_ANSWER_SECONDS = 30.0  # to all but turns and new weights


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
                f"{type(error).__name__} {error}".strip(), self._token, most=hosts.ERROR_CHARACTERS
            )
            raise hosts.Failure(told) from None
        server.heard = time.monotonic()
        return _content(server.url, path, response, self._token)

    async def close(self) -> None:
        """End the connections."""
        await self._http.aclose()


def field[T](answer: Any, name: str, *kinds: type[T]) -> T:
    """A field of an answer.

    Raises:
        Failure: If it is missing, or of none of these types.
    """
    value: Any = answer.get(name) if isinstance(answer, dict) else None
    if not _is(value, kinds):
        shown = redact(repr(value), most=100)
        raise hosts.Failure(f"an answer without {name}, {shown} instead: is it vllm serve, 0.31?")
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
            raise hosts.Failure(f"an answer with {shown} in {name}: is it vllm serve, 0.31?")
    return values


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    # Not by `isinstance`: a truth value is no number. Nor is what JSON's readers take for infinite.
    return type(value) in kinds and (type(value) is not float or math.isfinite(value))


def _content(url: str, path: str, response: httpx.Response, token: str | None) -> Any:
    status, text = response.status_code, response.text
    said = f"HTTP {status}"
    if status != 200:
        said += f" {redact(text, token, most=hosts.ERROR_CHARACTERS)}"
    if status in (401, 403):
        raise PermissionError(
            f"{url} refuses the token ({said}); give the one it was started with, as `token`"
        )
    hosts.check_free(response)
    if status == 404 and not path.startswith("/v1/"):
        raise RuntimeError(
            f"{url} has no {path.partition('?')[0]}: to take new weights it must be started with VLLM_SERVER_DEV_MODE=1"
        )
    if 400 <= status < 500 and status != 408:
        raise ValueError(f"{url} refuses the request: {said}")
    if status != 200:
        raise hosts.Failure(said)
    if not text:
        return None
    try:
        return response.json()
    except (ValueError, RecursionError) as error:
        raise hosts.Failure(
            f"no JSON, but {redact(text, token, most=hosts.ERROR_CHARACTERS)!r}"
        ) from error
