"""Bounds of what a server answers: its time as a whole, and its bytes.

A client's own time-outs begin anew with each byte that comes, and what it holds has no bound; compressed, a small answer could
be a large one. So it asks for none that is, and takes none.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

MOST_BYTES = "retool_most_bytes"
"""The extension of a request that says how many bytes its answer may have."""


def bounded_client[T](base: type[T], most_bytes: int, **given: Any) -> T:
    """A client whose answers are bounded, redirections and errors among them.

    The time-outs of a request's connecting and reading, added, are that of the whole, all redirections included. What is over it is a
    `ReadTimeout`, what is too large or compressed a `ReadError`. Text is read as UTF-8, whatever an answer says.

    Args:
        base: `httpx.AsyncClient`, or a class that is one; of httpx2, too.
        most_bytes: Of an answer, where the request does not say (`MOST_BYTES`).
        **given: Further arguments of the class.
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
                    raise library.ReadError(
                        f"the answer is larger than {most} bytes", request=self._request
                    )
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    async def bound(response: Any) -> None:
        coding = response.headers.get("content-encoding", "").strip()
        if coding.lower() not in ("", "identity"):
            raise library.ReadError(
                f"the answer is encoded ({coding!r:.40}), which was not asked for",
                request=response.request,
            )
        response.encoding = "utf-8"
        response.stream = Stream(response.stream, response.request)

    class Client(base):  # type: ignore[misc, valid-type]  # httpx or httpx2
        async def send(self, request: Any, **options: Any) -> Any:
            request.headers["Accept-Encoding"] = "identity"
            given = request.extensions["timeout"]
            seconds = given["connect"] + given["read"]
            try:
                async with asyncio.timeout(seconds):
                    return await super().send(request, **options)
            except TimeoutError:
                raise library.ReadTimeout(
                    f"no whole answer in {seconds:g} s", request=request
                ) from None

    return Client(event_hooks={"response": [bound]}, **given)


def _library(base: type) -> ModuleType:
    """That of a class of clients."""
    names = (each.__module__.partition(".")[0] for each in base.__mro__)
    return next(sys.modules[name] for name in names if name in ("httpx", "httpx2"))
