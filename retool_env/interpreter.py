"""Interpreter: what runs one episode's programs, and the sandbox it runs them in.

Whoever drives an episode makes one `Interpreter` for it and closes it when the episode ends, however it ends. The
environments of a process share one sandbox a setting (`SharedSandboxes`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from retool_env.episode import RunProgram
from retool_env.errors import UnknownSetting
from retool_env.execution import Execution, Sandbox, Session
from retool_env.rules import Rules
from retool_env.sandbox import make_sandbox
from retool_env.servers.address import without_secrets

SandboxSetting = str | Mapping[str, Any] | Sandbox
"""A sandbox, a name or URLs that `make_sandbox` knows, or a mapping of its arguments."""


class Interpreter:
    """Runs the programs of one episode: each on its own or, where the rules say so, all in one session.

    The session begins with the first program that needs it.

    Args:
        sandbox: Where programs run; `None` for an episode that runs none.
    """

    def __init__(self, sandbox: Sandbox | None) -> None:
        self._sandbox = sandbox
        self._session: Session | None = None

    def run(self, need: RunProgram) -> Execution:
        """Run a program, and wait for it.

        Raises:
            SandboxUnavailable: If it needs a session, and the sandbox has none.
        """
        if need.session:
            return self._begun(need).run(need.program)
        return self._required().run(need.program, need.limits, display=need.display)

    def run_async(self, need: RunProgram) -> Awaitable[Execution]:
        """Like `run`, to be awaited; cancelling it ends the program."""
        if need.session:
            return self._begun(need).run_async(need.program)
        return self._required().run_async(need.program, need.limits, display=need.display)

    def close(self) -> None:
        """End the session, if one was begun. May be called again; its programs can't be run afterwards."""
        if self._session is not None:
            self._session.close()

    def _begun(self, need: RunProgram) -> Session:
        if self._session is None:
            self._session = self._required().session(need.limits, display=need.display)
        return self._session

    def _required(self) -> Sandbox:
        assert self._sandbox is not None, "only an episode with an interpreter runs programs"
        return self._sandbox


def open_sandbox(setting: SandboxSetting, rules: Rules) -> Sandbox | None:
    r"""The sandbox that a setting means, made here unless it is one already.

    Args:
        setting: A sandbox, which is returned as it is; a name or URLs (see `make_sandbox`); or a mapping of
            `make_sandbox`'s arguments.
        rules: Of the episodes that it is for.

    Returns:
        It, or `None` where the interpreter is off, so that none is needed.

    Raises:
        SandboxUnavailable: If it can't work here, or has no sessions where the rules ask for them. The message says what
            is missing.
        ValueError: If there is no sandbox of that name.
        TypeError: If the setting is of another kind, or the mapping holds what that sandbox does not take.

    Example:
        >>> setting = {"name": "nsjail", "packages": ["numpy"], "guests": 1}
        >>> with open_sandbox(setting, Rules()) as sandbox:
        ...     sandbox.run("import numpy; print(numpy.arange(3).sum())").stdout
        '3\n'
    """
    if not rules.interpreter:
        return None
    sandbox = _made(setting)
    try:
        check_sandbox(rules, sandbox)
    except BaseException:
        if sandbox is not setting:
            sandbox.close()
        raise
    return sandbox


class SharedSandboxes:
    """The sandboxes that the environments of a process share, one a setting.

    A sandbox is closed with the last environment that uses it, or ends with it where that is dropped unclosed. A forked copy of
    the process shares none with the original: its environments make their own.
    """

    def __init__(self) -> None:
        self._users: WeakKeyDictionary[Sandbox, WeakSet[object]] = WeakKeyDictionary()
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.RLock()  # another thread may have held it at the fork
        self._by_setting: WeakValueDictionary[str, Sandbox] = WeakValueDictionary()

    def borrow(self, setting: SandboxSetting, rules: Rules, user: object) -> Sandbox | None:
        """The sandbox that a setting means: that of earlier users of an equal setting, or else a new one.

        Args:
            setting: See `open_sandbox`. A sandbox is its maker's: it is returned as it is, and never closed here.
            rules: Of the episodes that it is for.
            user: Who will `give_back` it, or be dropped.

        Returns:
            It, or `None` where the interpreter is off.

        Raises:
            SandboxUnavailable: As for `open_sandbox`, as the other two.
            ValueError: If there is no sandbox of that name, or an argument of it is wrong.
            TypeError: If the mapping holds what that sandbox does not take.
        """
        if not rules.interpreter or not isinstance(setting, str | Mapping):
            return open_sandbox(setting, rules)
        key = _key(setting)
        with self._lock:
            sandbox = self._by_setting.get(key)
            if sandbox is None:
                sandbox = self._by_setting[key] = _made(setting)
                self._users[sandbox] = WeakSet()
            self._users[sandbox].add(user)
        try:
            check_sandbox(rules, sandbox)
        except BaseException:
            self.give_back(sandbox, user)
            raise
        return sandbox

    def give_back(self, sandbox: Sandbox, user: object) -> None:
        """Close a sandbox that was borrowed, if nobody else uses it. May be called again."""
        with self._lock:
            users = self._users.get(sandbox)
            if users is not None:  # not a copy of one, of an environment that was copied
                users.discard(user)
                if users:
                    return
                for key in [key for key, each in self._by_setting.items() if each is sandbox]:
                    del self._by_setting[key]
        sandbox.close()


shared_sandboxes = SharedSandboxes()
"""Those of this process."""


def _key(setting: str | Mapping[str, Any]) -> str:
    """The same for settings that mean the same sandbox."""
    arguments = {"name": setting} if isinstance(setting, str) else {"name": "nsjail", **setting}
    alike = {str(k): list(v) if isinstance(v, list | tuple) else v for k, v in arguments.items()}
    # Of sandboxes on other machines, this is a setting as well.
    return repr((sorted(alike.items()), os.environ.get("RETOOL_SANDBOX_TOKEN")))


def check_sandbox(rules: Rules, sandbox: Sandbox | None) -> None:
    """Check, before anything is sampled, that a sandbox can run what the rules allow.

    Raises:
        ValueError: If there is an interpreter, but no sandbox.
        SandboxUnavailable: If the episodes have sessions, and the sandbox has none.
    """
    if not rules.interpreter:
        return
    if sandbox is None:
        raise ValueError("episodes with an interpreter need a sandbox")
    if rules.session:
        sandbox.session(rules.limits, display=rules.display).close()


def _made(setting: SandboxSetting) -> Sandbox:
    if isinstance(setting, str):
        return make_sandbox(setting)
    if not isinstance(setting, Mapping):
        if setting is not None and not callable(getattr(setting, "run", None)):
            raise UnknownSetting(
                f"sandbox={setting!r:.60}: it must be a Sandbox, the name of one, or a mapping of make_sandbox's arguments"
            )
        return setting
    try:
        return make_sandbox(**setting)
    except TypeError as error:
        raise UnknownSetting(
            f"sandbox={without_secrets(setting)!r}: {error}; such a mapping holds a `name` (nsjail without one) and arguments of the "
            "sandbox of that name"
        ) from error
