"""Which host gets a program, and what becomes of programs that a host does not run.

Of several hosts, the one with the fewest of our programs in flight is asked. Three things move a
program on to the next attempt, and running it again is safe, as nothing of a program outlasts it:

* a host is *busy* (429, or 503 with `Retry-After`): it gets this program again when it said, and no
  more at once than it took. If it refuses the only one, it gets none until then, and is asked half
  as often with each refusal in a row. A program waits as long as others of ours are finished;
* a host *fails* (no connection, no answer in time, another 5xx, a response that cannot be read, a
  failure of its sandbox): it is set aside, twice as long each time in a row;
* `attempts` failures, or `patience` and a program's own seconds in which no program was finished
  (those that a host took to fail do not count), are an `Outcome.INFRASTRUCTURE` whose error names
  the hosts and what each said. So is a request that a host refuses (400, 413, 422), at once.

Invariant: all state belongs to one event loop in one thread of its own, where every request is
made; callers, in whatever thread or event loop, only wait for it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, NoReturn

from retool_env.execution import Execution, Limits, Outcome, SandboxUnavailable, advised
from retool_env.sandbox.fusion import OWN, execution_of
from retool_env.servers import hosts
from retool_env.servers.address import redact
from retool_env.servers.background import BackgroundLoop, closed_at_the_end
from retool_env.servers.hosts import CONNECT_SECONDS, ERROR_CHARACTERS, Busy, Failure

if TYPE_CHECKING:
    import httpx

_ESCAPED = 6  # bytes of JSON that a byte of output may take
# And all else: SandboxFusion sends 1 MiB of each stream, whatever the limit.
_ANSWER_BYTES = 4 << 20
_STRUCTURE_BYTES = 1 << 16  # of JSON outside of its texts: two bytes of it are 64 of memory
_TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_ERROR_BYTES = 1 << 12
_STOP_SECONDS = 5.0  # a finalizer waits no longer


@dataclass(eq=False)
class Host(hosts.Host):
    """What is known of a host."""

    window: float = 16.0
    """How many of our programs it may get at once. As in TCP, it grows by one with each success
    until the host says that it is busy, and from then on by one with each window of successes."""

    refused: bool = False
    """Has it ever been busy?"""

    refusals: int = 0
    """How often in a row it refused the only one of our programs there."""

    said: str = "not asked"
    """To the last program that it did not run."""

    def refuse(self, sent: float, busy: Busy) -> float:
        """Notes that the host was busy.

        Args:
            sent: The time at which the program was sent.
            busy: The answer of the host.

        Returns:
            The time from which on the program may be sent there again.
        """
        again = busy.again(sent, self.refusals)
        if self.in_flight == 1:  # none of ours is there whose end would make room
            self.refusals += 1
            self.aside_until = again
        self.window, self.refused = max(1.0, self.in_flight - 1), True
        return again


class _Refusal(Exception):
    """The host does not want this request; another attempt would not change it."""


class Hosts:
    """Sends programs to several hosts, from a thread of its own.

    Args:
        urls: the hosts', without a slash at the end.
        token: sent to each as a bearer token.
        attempts: how often a program is tried, the first time included.
        patience: seconds; see `RemoteSandbox`.
    """

    def __init__(
        self, urls: Sequence[str], token: str | None, attempts: int, patience: float
    ) -> None:
        import httpx

        self.pid = os.getpid()  # a fork inherits the object, but not its thread
        self._token, self._attempts, self._patience = token, attempts, patience
        self.known = [Host(url) for url in urls]
        self._changed = asyncio.Condition()
        self._progress = 0.0
        # No host decides what we keep and send.
        cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        self._http = httpx.AsyncClient(**hosts.connection(token), cookies=cookies)
        # Compressed, a small answer could be a large one.
        self._http.headers["Accept-Encoding"] = "identity"
        self._loop = BackgroundLoop("remote-sandbox")
        self._connections = closed_at_the_end(self._http.aclose)
        self._loop.submit(self._open())

    def begin(self, body: bytes, limits: Limits, display: bool) -> Future[Execution]:
        """Starts the program of the request `body`; cancelling the future ends it.

        Args:
            body: as `fusion.request_of` builds it, with these limits.
            limits: the program's.
            display: whether the program needs a host that knows `display`.
        """
        return self._loop.submit(self._run(body, limits, display))

    def stop(self) -> None:
        """Ends what still runs, then the thread."""
        if self.pid == os.getpid():
            self._loop.close(_STOP_SECONDS)

    async def _open(self) -> None:
        await anext(self._connections)

    async def _run(self, body: bytes, limits: Limits, display: bool) -> Execution:
        """Runs a program; when `stop` ends the program, its caller is not itself cancelled."""
        try:
            return await self._execute(body, limits, display)
        except asyncio.CancelledError:
            if self._loop.closed:
                return Execution(Outcome.INFRASTRUCTURE, "", "the sandbox was closed meanwhile")
            raise

    async def _execute(self, body: bytes, limits: Limits, display: bool) -> Execution:
        said: dict[str, str] = {}
        not_before: dict[Host, float] = {}
        failed, waiting_since = 0, time.monotonic()
        patience = limits.wall_seconds + self._patience
        while failed < self._attempts:
            host = await self._take(not_before, waiting_since, patience)
            if host is None:
                said = {each.url: each.said for each in self.known} | said
                said[""] = f"none finished a program in {patience:g} s"
                break
            sent = time.monotonic()
            try:
                execution = await self._ask(host, body, limits, display, patience)
            except Busy as busy:
                not_before[host] = host.refuse(sent, busy)
                said[host.url] = host.said = "busy"
            except Failure as failure:
                failed += 1
                said[host.url] = host.said = str(failure)
                host.set_aside(sent)
                took = time.monotonic() - sent
                waiting_since = max(waiting_since, self._progress) + took
            except _Refusal as refusal:
                said = {host.url: str(refusal)}
                break
            else:
                host.failures = host.refusals = 0
                host.window += 1 / host.window if host.refused else 1
                self._progress = time.monotonic()
                return execution
            finally:
                host.in_flight -= 1
                async with self._changed:
                    self._changed.notify()
        told = "; ".join(f"{url}: {text}" if url else text for url, text in said.items())
        one_line = " ".join(f"no host ran the program: {told}".split())
        shown = "".join(sign if sign.isprintable() else "\ufffd" for sign in one_line)
        return Execution(Outcome.INFRASTRUCTURE, "", shown)

    async def _take(
        self, not_before: dict[Host, float], waiting_since: float, patience: float
    ) -> Host | None:
        """Waits for a host that may be asked; `None` if patience runs out before."""
        while True:
            now = time.monotonic()
            left = max(waiting_since, self._progress) + patience - now
            if left <= 0:
                return None
            opens = {host: max(host.aside_until, not_before.get(host, 0)) for host in self.known}
            ready = [h for h, at in opens.items() if at <= now and h.in_flight < h.window]
            if ready:
                host = min(ready, key=lambda each: (each.in_flight, random.random()))
                host.in_flight += 1
                return host
            waits = [at - now for at in opens.values() if at > now]
            # Not all at the same moment, when a host comes back.
            pause = min([left, 1.0, *waits]) * random.uniform(1, 1.2)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause), self._changed:
                    await self._changed.wait()

    async def _ask(
        self, host: Host, body: bytes, limits: Limits, display: bool, patience: float
    ) -> Execution:
        import httpx

        timeout = httpx.Timeout(patience, connect=CONNECT_SECONDS, pool=None)
        headers = {"Content-Type": "application/json"}
        url = f"{host.url}/run_code"
        most = _ESCAPED * limits.output_bytes + _ANSWER_BYTES
        sending = self._http.stream("POST", url, content=body, headers=headers, timeout=timeout)
        try:
            # Of the whole: httpx's own begins anew with each byte.
            async with asyncio.timeout(patience), sending as response:
                answer = await _read(response, most)
        except TimeoutError:
            raise Failure(f"no whole answer in {patience:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            text = f"{type(error).__name__} {_said(error)}".strip()
            raise Failure(text[:ERROR_CHARACTERS]) from error
        status, text = response.status_code, answer[:_ERROR_BYTES].decode("utf-8", "replace")
        text = redact(text, self._token, most=ERROR_CHARACTERS)
        if status in (401, 403):
            raise SandboxUnavailable(
                f"{host.url} refuses the token (HTTP {status}); give the one it was started with, "
                "in RETOOL_SANDBOX_TOKEN or as the argument `token`"
            )
        hosts.check_free(response)
        if response.has_redirect_location:
            place = redact(response.headers["location"], self._token)[:ERROR_CHARACTERS]
            raise Failure(f"HTTP {status} leads to {place}: if that is a host, give its URL")
        if status in (400, 413, 422):
            raise _Refusal(f"HTTP {status} {text}")
        if status != 200:
            raise Failure(f"HTTP {status} {text}")
        try:
            content = _parsed(answer)
            execution = execution_of(content, limits)
        except (ValueError, RecursionError) as error:
            raise Failure(f"{error}"[:ERROR_CHARACTERS]) from error
        if execution.outcome is Outcome.INFRASTRUCTURE:
            raise Failure(redact(execution.error, self._token, most=ERROR_CHARACTERS))
        if display and OWN not in content:
            raise SandboxUnavailable(
                f"{host.url} is not a server of retool's and does not know `display`; run "
                "`retool serve` there, or go without `display`"
            )
        return execution


def _said(error: BaseException) -> str:
    """What an error says; if no file could be opened on this machine, that, which lies beneath what it says."""
    causes = [error]
    for each in causes:
        causes += getattr(each, "exceptions", ()) or filter(
            None, (each.__cause__, each.__context__)
        )
        if isinstance(each, OSError) and (said := advised(each)) != str(each):
            return said
    return str(error)


async def _read(response: httpx.Response, most: int) -> bytes:
    """The body as it was sent.

    Raises:
        ValueError: It is compressed, or larger than `most` bytes.
    """
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("identity", ""):
        raise ValueError(f"the answer is encoded ({encoding!r:.40}), which was not asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > most:
            raise ValueError(f"the answer is larger than {most} bytes")
    return bytes(body)


def _parsed(answer: bytes) -> Any:
    """The value of an answer's JSON.

    Raises:
        ValueError: It is none, or would take far more memory than it has bytes.
        RecursionError: It is nested too deeply.
    """
    if (size := len(_TEXTS.sub(b"", answer))) > _STRUCTURE_BYTES:
        raise ValueError(f"the answer has {size} bytes of lists, objects and numbers")
    return json.loads(answer, parse_constant=_no_number)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON's")
