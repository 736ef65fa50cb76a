"""The choice of a host for each program, and the retries after a host does not run it.

A program goes to the host with the fewest of this client's programs in flight. A program leaves
nothing behind, so it is safe to send it again. Three things happen to a program that was not run:

* The host is *busy* (429, or 503 with `Retry-After`). It gets this program again after the time
  that it names, and from now on it gets no more programs at once than it took. If it refuses this
  client's only program there, it gets no program until then, and each further refusal in a row
  doubles the pause. A program may wait as long as other programs of this client finish.
* The host *fails*: no connection, no answer in time, another 5xx, an unreadable response, or a
  failure of its sandbox. It is set aside, twice as long after each failure in a row.
* The program is given up as an `Outcome.INFRASTRUCTURE` whose error quotes the hosts. This happens
  after `attempts` failures; after `patience` plus the program's own limit in seconds without any
  finished program (the time that hosts took to fail does not count); and at once when a host
  refuses the request (400, 413, 422).

Invariant: all state belongs to one event loop in one thread, which makes every request. Callers in
any thread or event loop only wait for the result.
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

_ESCAPED = 6  # bytes of JSON for one byte of output, at most
# For the rest of an answer: SandboxFusion sends 1 MiB of each stream, whatever the limit.
_ANSWER_BYTES = 4 << 20
_STRUCTURE_BYTES = 1 << 16  # of JSON outside strings: two such bytes can take 64 bytes of memory
_TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_ERROR_BYTES = 1 << 12
_STOP_SECONDS = 5.0  # a finalizer waits no longer


@dataclass(eq=False)
class SandboxHost(hosts.Host):
    """The state of one host."""

    window: float = 16.0
    """The largest number of this client's programs there at once. As in TCP, it grows by one
    with each success until the host reports that it is busy, and then by one with each window
    of successes."""

    refused: bool = False
    """Whether the host has ever been busy."""

    refusals: int = 0
    """The number of refusals in a row while the host had only one program of this client."""

    answer: str = "not asked"
    """The host's last failure or refusal."""

    def refuse(self, sent: float, busy: Busy) -> float:
        """Notes that the host was busy.

        Args:
            sent: The time at which the program was sent.
            busy: The host's answer.

        Returns:
            The earliest time at which the program may be sent to this host again.
        """
        again = busy.again(sent, self.refusals)
        if self.in_flight == 1:  # no other program of this client will make room
            self.refusals += 1
            self.aside_until = again
        self.window, self.refused = max(1.0, self.in_flight - 1), True
        return again


Host = SandboxHost
"""The former name of `SandboxHost`; it keeps working."""


class _Refusal(Exception):
    """A host rejects the request itself; another attempt would not help."""


class Hosts:
    """Sends programs to several hosts, from a thread of its own.

    Args:
        urls: The hosts' URLs, without a slash at the end.
        token: The bearer token sent to each host. `None`: no token.
        attempts: How often a program is tried, the first time included.
        patience: Seconds that a program waits while no host finishes any; see `RemoteSandbox`.
    """

    def __init__(
        self, urls: Sequence[str], token: str | None, attempts: int, patience: float
    ) -> None:
        import httpx

        self.pid = os.getpid()  # a fork inherits the object, but not its thread
        self._token, self._attempts, self._patience = token, attempts, patience
        self.known = [SandboxHost(url) for url in urls]
        self._changed = asyncio.Condition()
        self._progress = 0.0
        # Cookies would let a host decide what this client stores and sends.
        cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        self._http = httpx.AsyncClient(**hosts.connection(token), cookies=cookies)
        # Compressed, a small answer could be a large one.
        self._http.headers["Accept-Encoding"] = "identity"
        self._loop = BackgroundLoop("remote-sandbox")
        self._connections = closed_at_the_end(self._http.aclose)
        self._loop.submit(self._open())

    def begin(self, body: bytes, limits: Limits, display: bool) -> Future[Execution]:
        """Starts a program; cancelling the future ends the program.

        Args:
            body: The request, as `fusion.request_of` builds it with these limits.
            limits: The program's limits.
            display: Whether the program needs a host that supports `display`.
        """
        return self._loop.submit(self._run(body, limits, display))

    def faults(self, body: bytes, limits: Limits) -> Future[dict[str, str]]:
        """Sends a program to every host, once; the result has the reason of each host that fails.

        A host that is busy does not fail.

        Args:
            body: The request, as `fusion.request_of` builds it with these limits.
            limits: The program's limits.
        """
        return self._loop.submit(self._faults(body, limits))

    async def _faults(self, body: bytes, limits: Limits) -> dict[str, str]:
        reasons = await asyncio.gather(*(self._fault(host, body, limits) for host in self.known))
        return {host.url: why for host, why in zip(self.known, reasons, strict=True) if why}

    async def _fault(self, host: SandboxHost, body: bytes, limits: Limits) -> str:
        try:
            await self._ask(host, body, limits, False, limits.wall_seconds + self._patience)
        except (Failure, _Refusal) as reason:
            return str(reason)
        except Busy:
            pass
        return ""

    def stop(self) -> None:
        """Ends the programs that still run, then the thread."""
        if self.pid == os.getpid():
            self._loop.close(_STOP_SECONDS)

    async def _open(self) -> None:
        await anext(self._connections)

    async def _run(self, body: bytes, limits: Limits, display: bool) -> Execution:
        """Runs a program. When `stop` ends the program, its caller is not cancelled."""
        try:
            return await self._execute(body, limits, display)
        except asyncio.CancelledError:
            if self._loop.closed:
                return Execution(Outcome.INFRASTRUCTURE, "", "the sandbox was closed meanwhile")
            raise

    async def _execute(self, body: bytes, limits: Limits, display: bool) -> Execution:
        answers: dict[str, str] = {}
        not_before: dict[SandboxHost, float] = {}
        failed, waiting_since = 0, time.monotonic()
        patience = limits.wall_seconds + self._patience
        while failed < self._attempts:
            host = await self._take(not_before, waiting_since, patience)
            if host is None:
                answers = {known.url: known.answer for known in self.known} | answers
                answers[""] = f"none finished a program in {patience:g} s"
                break
            sent = time.monotonic()
            try:
                execution = await self._ask(host, body, limits, display, patience)
            except Busy as busy:
                not_before[host] = host.refuse(sent, busy)
                answers[host.url] = host.answer = "busy"
            except Failure as failure:
                failed += 1
                answers[host.url] = host.answer = str(failure)
                host.set_aside(sent)
                took = time.monotonic() - sent
                waiting_since = max(waiting_since, self._progress) + took
            except _Refusal as refusal:
                answers = {host.url: str(refusal)}
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
        told = "; ".join(f"{url}: {text}" if url else text for url, text in answers.items())
        one_line = " ".join(f"no host ran the program: {told}".split())
        shown = "".join(sign if sign.isprintable() else "\ufffd" for sign in one_line)
        return Execution(Outcome.INFRASTRUCTURE, "", shown)

    async def _take(
        self, not_before: dict[SandboxHost, float], waiting_since: float, patience: float
    ) -> SandboxHost | None:
        """Waits for a host that may be asked; `None` if patience runs out first."""
        while True:
            now = time.monotonic()
            left = max(waiting_since, self._progress) + patience - now
            if left <= 0:
                return None
            opens = {host: max(host.aside_until, not_before.get(host, 0)) for host in self.known}
            ready = [h for h, at in opens.items() if at <= now and h.in_flight < h.window]
            if ready:
                host = min(ready, key=lambda host: (host.in_flight, random.random()))
                host.in_flight += 1
                return host
            waits = [at - now for at in opens.values() if at > now]
            # Random, so that programs do not all come at the moment when a host comes back.
            pause = min([left, 1.0, *waits]) * random.uniform(1, 1.2)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause), self._changed:
                    await self._changed.wait()

    async def _ask(
        self, host: SandboxHost, body: bytes, limits: Limits, display: bool, patience: float
    ) -> Execution:
        import httpx

        timeout = httpx.Timeout(patience, connect=CONNECT_SECONDS, pool=None)
        headers = {"Content-Type": "application/json"}
        url = f"{host.url}/run_code"
        most = _ESCAPED * limits.output_bytes + _ANSWER_BYTES
        sending = self._http.stream("POST", url, content=body, headers=headers, timeout=timeout)
        try:
            # For the whole answer: httpx's own time limit starts again with each byte.
            async with asyncio.timeout(patience), sending as response:
                answer = await _read(response, most)
        except TimeoutError:
            raise Failure(f"no whole answer in {patience:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            text = f"{type(error).__name__} {_message(error)}".strip()
            raise Failure(text[:ERROR_CHARACTERS]) from error
        status, text = response.status_code, answer[:_ERROR_BYTES].decode("utf-8", "replace")
        text = redact(text, self._token, most=ERROR_CHARACTERS)
        if status in (401, 403):
            raise SandboxUnavailable(
                f"{host.url} refuses the token (HTTP {status}); give the server's token in "
                "RETOOL_SANDBOX_TOKEN or as the argument `token`"
            )
        hosts.check_free(response)
        if response.has_redirect_location:
            target = redact(response.headers["location"], self._token)[:ERROR_CHARACTERS]
            raise Failure(f"HTTP {status} leads to {target}: if that is a host, give its URL")
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
                f"{host.url} is not started by `retool serve` and does not support `display`; run "
                "`retool serve` there, or turn `display` off"
            )
        return execution


def _message(error: BaseException) -> str:
    """The message of an error; of its causes, a lack of open files is shown, with advice."""
    causes: list[BaseException | None] = [error]
    for cause in causes:
        if isinstance(cause, OSError) and (advice := advised(cause)) != str(cause):
            return advice
        if cause is not None:
            causes += getattr(cause, "exceptions", ()) or (cause.__cause__, cause.__context__)
    return str(error)


async def _read(response: httpx.Response, most: int) -> bytes:
    """The bytes of an answer's body.

    Args:
        response: The answer.
        most: The largest number of bytes.

    Raises:
        ValueError: The body is compressed, or larger than `most` bytes.
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
        ValueError: The answer is not JSON, or would take far more memory than it has bytes.
        RecursionError: The JSON is nested too deeply.
    """
    if (size := len(_TEXTS.sub(b"", answer))) > _STRUCTURE_BYTES:
        raise ValueError(f"the answer has {size} bytes of lists, objects and numbers")
    return json.loads(answer, parse_constant=_no_number)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")
