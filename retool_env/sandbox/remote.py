"""A sandbox on other machines: programs go to `retool serve`, or to a SandboxFusion server.

[`hosts`][retool_env.sandbox.hosts] chooses the host for each program and retries. A program that no
host runs is an `Outcome.INFRASTRUCTURE`, like every other failure of a sandbox.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import os
import threading
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
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
from retool_env.servers.address import base_url, check_key


class RemoteSandbox:
    """Runs programs on other machines. Any thread or event loop may call `run` and `run_async`.

    If a host refuses the token, the first program raises `SandboxUnavailable`. No program and no
    network failure raises an exception.

    Args:
        urls: The URLs of the hosts, such as `http://node7:8080`. A path `/run_code` at the end is
            allowed.
        token: The bearer token sent to each host. Over `http`, others can read it on the way.
            `None`: no token.
        attempts: How often a program is tried, the first time included.
        patience: The seconds beyond its `wall_seconds` that a program waits while no host finishes
            any program, and that a host may take to answer.

    Raises:
        ValueError: `urls` is empty or holds a text that is not `http(s)://host[:port]`, the token
            cannot be sent, or `attempts` or `patience` is not a positive number.
        SandboxUnavailable: The package httpx is missing.
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
        self.urls = tuple(
            base_url(url, "/run_code", "a sandbox", "http://host:8080") for url in urls
        )
        if not self.urls:
            raise SettingsError("a remote sandbox needs the URL of at least one host")
        check_key(token, "token")
        self._token, self._attempts, self._patience = token, attempts, patience
        self._lock = threading.Lock()
        self._hosts: Hosts | None = None
        self._closed = self._checked = False

    def __reduce__(self) -> tuple[object, ...]:
        make = functools.partial(type(self), attempts=self._attempts, patience=self._patience)
        return make, (self.urls, self._token)

    def run(
        self, code: str, limits: Limits = DEFAULT_LIMITS, *, stdin: str = "", display: bool = False
    ) -> Execution:
        """Runs a program to its end on one of the hosts.

        Args:
            code: The program's text.
            limits: The program's limits.
            stdin: The text on the program's standard input.
            display: Whether the value of a last expression is shown.

        Raises:
            SandboxUnavailable: A host refuses the token, or does not support `display`.
            RuntimeError: The sandbox is closed.
            TypeError: An argument has the wrong type.
            ValueError: `stdin` is larger than `limits.tmp_mb`.
        """
        future = self._begin(code, limits, stdin, display)
        try:
            return future.result()
        finally:
            future.cancel()  # needed after Ctrl-C; otherwise the future is done

    async def run_async(
        self, code: str, limits: Limits = DEFAULT_LIMITS, *, stdin: str = "", display: bool = False
    ) -> Execution:
        """Like `run`, for concurrent programs; cancelling the call ends the program on its host.

        Args:
            code: The program's text.
            limits: The program's limits.
            stdin: The text on the program's standard input.
            display: Whether the value of a last expression is shown.

        Raises:
            SandboxUnavailable: A host refuses the token, or does not support `display`.
            RuntimeError: The sandbox is closed.
            TypeError: An argument has the wrong type.
            ValueError: `stdin` is larger than `limits.tmp_mb`.
        """
        return await asyncio.wrap_future(self._begin(code, limits, stdin, display))

    def session(self, limits: Limits = DEFAULT_LIMITS, *, display: bool = False) -> Session:
        """Always raises an error: a remote sandbox has no sessions.

        Args:
            limits: Not used.
            display: Not used.

        Raises:
            SandboxUnavailable: Always.
        """
        raise SandboxUnavailable(
            "a remote sandbox has no sessions, because each program may go to a different host: "
            "use a local sandbox, such as make_sandbox('nsjail')"
        )

    def check(self) -> None:
        """Runs an empty program on every host, so that a wrong URL is noticed at the start.

        It warns of hosts that fail while another host works. After a success, later calls do
        nothing.

        Raises:
            SandboxUnavailable: No host can run a program, or a host refuses the token.
            RuntimeError: The sandbox is closed.
        """
        if self._checked:
            return
        body = json.dumps(request_of("pass", DEFAULT_LIMITS, "", False)).encode()
        asking = self._connected().faults(body, DEFAULT_LIMITS)
        try:
            faults = asking.result()
        finally:
            asking.cancel()  # needed after Ctrl-C; otherwise the future is done
        told = " ".join("; ".join(f"{url}: {why}" for url, why in faults.items()).split())
        if len(faults) == len(set(self.urls)):
            raise SandboxUnavailable(
                f"no program can run at {told}: check the URL, and that `retool serve` runs there"
            )
        if faults:
            warnings.warn(
                f"programs go to the other hosts, since none can run at {told}", stacklevel=2
            )
        self._checked = True

    def close(self) -> None:
        """Ends the programs that still run, and the connections. May be called again."""
        with self._lock:
            self._closed = True
            if self._hosts is not None:
                self._hosts.stop()
                self._hosts = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, code: str, limits: Limits, stdin: str, display: bool) -> Future[Execution]:
        check_program(code, limits, stdin, display)
        # Escaped, because UTF-8 cannot encode a lone surrogate.
        body = json.dumps(request_of(code, limits, stdin, display)).encode()
        return self._connected().begin(body, limits, display)

    def _connected(self) -> Hosts:
        """The hosts, with the thread that asks them."""
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
            return self._hosts
