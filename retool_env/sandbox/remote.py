"""A sandbox on other machines: programs are sent to `retool serve`, or to a SandboxFusion server.

[`hosts`][retool_env.sandbox.hosts] says which host gets a program and when it is sent again; what
no host would run is an `Outcome.INFRASTRUCTURE`, like every other failure of a sandbox.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from retool_env.errors import SettingsError
from retool_env.execution import (
    DEFAULT_LIMITS,
    Execution,
    Limits,
    SandboxUnavailable,
    Session,
    advised,
    check_program,
    check_seconds,
    check_whole_number,
)
from retool_env.sandbox.fusion import request_of
from retool_env.sandbox.hosts import Hosts
from retool_env.servers.address import check_key, check_url


class RemoteSandbox:
    """Runs programs on other machines. `run` and `run_async` may be called from anywhere, at once.

    A token that a host refuses raises `SandboxUnavailable` at the first program; nothing that a
    program or a network does raises.

    Args:
        urls: the hosts, `http://node7:8080` say; a path `/run_code` at the end may be there.
        token: sent to each host as a bearer token. Over `http` it can be read on the way.
        attempts: how often a program is tried, the first time included.
        patience: seconds beyond its `wall_seconds` that a program waits while no host finishes any,
            and that a host may take to answer.

    Raises:
        ValueError: there is no URL, one is not `http(s)://host[:port]`, the token can't be sent, or
            `attempts` or `patience` is not a positive number.
        SandboxUnavailable: the package httpx is missing.
    """

    def __init__(
        self,
        urls: Sequence[str],
        token: str | None = None,
        *,
        attempts: int = 6,
        patience: float = 120.0,
    ) -> None:
        check_whole_number("attempts", attempts)
        check_seconds("patience", patience)
        if importlib.util.find_spec("httpx") is None:
            raise SandboxUnavailable("httpx is missing: pip install 'retool-env[remote]'")
        self.urls = tuple(_base_url(url) for url in urls)
        if not self.urls:
            raise SettingsError("a remote sandbox needs the URL of at least one host")
        check_key(token, "token")
        self._token, self._attempts, self._patience = token, attempts, patience
        self._lock = threading.Lock()
        self._hosts: Hosts | None = None
        self._closed = False

    def __reduce__(self) -> tuple[object, ...]:
        return _remake, (self.urls, self._token, self._attempts, self._patience)

    def run(
        self,
        code: str,
        limits: Limits = DEFAULT_LIMITS,
        *,
        stdin: str = "",
        display: bool = False,
    ) -> Execution:
        """Runs `code` to its end, on one of the hosts.

        Raises:
            SandboxUnavailable: a host refuses the token, or does not know `display`.
            RuntimeError: the sandbox is closed.
            TypeError: An argument is not of its type.
            ValueError: `stdin` is larger than `limits.tmp_mb`.
        """
        future = self._begin(code, limits, stdin, display)
        try:
            return future.result()
        finally:
            future.cancel()  # after Ctrl-C; otherwise it is done

    async def run_async(
        self,
        code: str,
        limits: Limits = DEFAULT_LIMITS,
        *,
        stdin: str = "",
        display: bool = False,
    ) -> Execution:
        """Like `run`, many at once; cancelling it ends the program on its host.

        Raises:
            SandboxUnavailable: a host refuses the token, or does not know `display`.
            RuntimeError: the sandbox is closed.
            TypeError: An argument is not of its type.
            ValueError: `stdin` is larger than `limits.tmp_mb`.
        """
        return await asyncio.wrap_future(self._begin(code, limits, stdin, display))

    def session(self, limits: Limits = DEFAULT_LIMITS, *, display: bool = False) -> Session:
        """There are none.

        Raises:
            SandboxUnavailable: always.
        """
        raise SandboxUnavailable(
            "a remote sandbox has no sessions, as each program may go to another host: use a "
            "local sandbox, make_sandbox('nsjail') say"
        )

    def close(self) -> None:
        """Ends what still runs, and the connections. May be called again."""
        with self._lock:
            self._closed = True
            if self._hosts is not None:
                self._hosts.stop()
                self._hosts = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self, code: str, limits: Limits, stdin: str, display: bool) -> Future[Execution]:
        check_program(code, limits, stdin, display)
        with self._lock:
            if self._closed:
                raise RuntimeError("the sandbox is closed; make a new one")
            # A fork inherits the object, but not its thread.
            if self._hosts is None or self._hosts.pid != os.getpid():
                try:
                    self._hosts = Hosts(self.urls, self._token, self._attempts, self._patience)
                except OSError as error:
                    raise SandboxUnavailable(advised(error)) from error
                weakref.finalize(self, self._hosts.stop)
            hosts = self._hosts
        # Escaped: a lone surrogate cannot be encoded, and is the program's own business.
        body = json.dumps(request_of(code, limits, stdin, display)).encode()
        return hosts.begin(body, limits, display)


def _remake(
    urls: Sequence[str], token: str | None, attempts: int, patience: float
) -> RemoteSandbox:
    return RemoteSandbox(urls, token, attempts=attempts, patience=patience)


def _base_url(url: str) -> str:
    base = url.strip().removesuffix("/").removesuffix("/run_code")
    check_url(base, "a sandbox", "http://host:8080")
    return base
