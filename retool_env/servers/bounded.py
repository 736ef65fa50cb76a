"""HTTP clients with bounds on a response: its total time and its bytes.

The time-outs of a client start again with each received byte, and the size of a response has no
limit. A small compressed response could become large. So the client asks for uncompressed responses
and refuses any other.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any

MOST_BYTES = "retool_most_bytes"
"""The name of a request's extension that holds the most bytes of its response."""


def bounded_client[T](
    base: type[T],
    most_bytes: int,
    on_unreached: Callable[[Exception], None] = lambda error: None,
    **options: Any,
) -> T:
    """Makes a client with bounds on each response, redirections and errors included.

    The time of a request, with all its redirections, is limited to the sum of its time-outs for
    connecting and reading. A slower response raises a `ReadTimeout`. A response that is larger than
    the limit, or compressed, raises a `DecodingError`. Text is decoded as UTF-8, whatever the
    headers of the response say.

    Args:
        base: The class `AsyncClient` of httpx or httpx2, or a subclass.
        most_bytes: The most bytes of a response, unless the request has the extension `MOST_BYTES`.
        on_unreached: Called with the error of each connection that can't be made. Libraries that
            try again do not report it.
        **options: Further arguments of the class.
    """
    library = _library(base)

    class Stream(library.AsyncByteStream):  # type: ignore[name-defined]  # httpx or httpx2
        def __init__(self, stream: Any, request: Any) -> None:
            self._stream = stream
            self._request = request

        async def __aiter__(self) -> AsyncIterator[bytes]:
            most, read = self._request.extensions.get(MOST_BYTES, most_bytes), 0
            async for chunk in self._stream:
                read += len(chunk)
                if read > most:
                    raise library.DecodingError(
                        f"the response is larger than {most} bytes", request=self._request
                    )
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    async def bound(response: Any) -> None:
        coding = response.headers.get("content-encoding", "").strip()
        if coding.lower() not in ("", "identity"):
            raise library.DecodingError(
                f"the response is encoded ({coding!r:.40}), but the request refused encodings",
                request=response.request,
            )
        response.encoding = "utf-8"
        response.stream = Stream(response.stream, response.request)

    class Client(base):  # type: ignore[misc, valid-type]  # httpx or httpx2
        async def send(self, request: Any, **options: Any) -> Any:
            request.headers["Accept-Encoding"] = "identity"
            timeout = request.extensions["timeout"]
            seconds = timeout["connect"] + timeout["read"]
            try:
                async with asyncio.timeout(seconds):
                    return await super().send(request, **options)
            except (library.ConnectError, library.ConnectTimeout) as error:
                on_unreached(error)
                raise
            except TimeoutError:
                raise library.ReadTimeout(
                    f"no complete response within {seconds:g} s", request=request
                ) from None

    return Client(event_hooks={"response": [bound]}, **options)


def _library(base: type) -> ModuleType:
    """The library of a client's class: httpx or httpx2."""
    names = (parent.__module__.partition(".")[0] for parent in base.__mro__)
    return next(sys.modules[name] for name in names if name in ("httpx", "httpx2"))
