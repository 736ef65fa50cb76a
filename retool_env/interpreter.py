"""Interpreter: runs the programs of one episode in a sandbox.

The caller of an episode makes one `Interpreter` for it, and closes the interpreter when the episode
ends. The environments of a process with equal settings share a sandbox (`SharedSandboxes`).
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from retool_env.episode import RunProgram
from retool_env.errors import UnknownSetting
from retool_env.execution import Execution, Files, Sandbox, SandboxUnavailable, Session
from retool_env.faults import Faults, kinds
from retool_env.rules import Rules
from retool_env.sandbox import make_sandbox
from retool_env.sandbox.remote import RemoteSandbox
from retool_env.servers.address import without_secrets

SandboxSetting = str | Mapping[str, Any] | Sandbox
"""A sandbox, a name or URLs for `make_sandbox`, or a mapping of the arguments of `make_sandbox`."""


class Interpreter:
    """Runs the programs of one episode, each in a new process or all in one session.

    The rules of the episode decide. The session begins with the first program. A program with a
    fault runs as well; its result is the shown result, with `Execution.fault`.

    Args:
        sandbox: The sandbox of the programs; `None` for an episode that runs no programs.
    """

    def __init__(self, sandbox: Sandbox | None) -> None:
        self._sandbox = sandbox
        self._session: Session | None = None

    def run(self, need: RunProgram) -> Execution:
        """Run a program, and wait for its result.

        Raises:
            SandboxUnavailable: If the program needs a session, but the sandbox has no sessions; or
                if the fault is made in the program's process, but the sandbox has no preludes.
        """
        runner, arguments, options = self._invocation(need)
        execution = runner.run(*arguments, **options)
        if need.fault is None:
            return execution
        true: list[Execution] = []
        while kinds.wants_true(need, execution, true):
            true.append(self._required().run(need.program, need.limits, display=need.display))
        execution = self._faulty(need, execution, true, _reported(runner, options))
        time.sleep(kinds.delay(execution))
        return execution

    def run_async(self, need: RunProgram) -> Awaitable[Execution]:
        """The awaitable form of `run`; cancellation ends the program."""
        runner, arguments, options = self._invocation(need)
        running = runner.run_async(*arguments, **options)
        if need.fault is None:
            return running
        return self._run_faulty(need, running, lambda: _reported(runner, options))

    async def _run_faulty(
        self,
        need: RunProgram,
        running: Awaitable[Execution],
        reported: Callable[[], tuple[str, ...] | None],
    ) -> Execution:
        execution, true = await running, list[Execution]()
        reports = reported()
        while kinds.wants_true(need, execution, true):
            again = self._required().run_async(need.program, need.limits, display=need.display)
            true.append(await again)
        execution = self._faulty(need, execution, true, reports)
        await asyncio.sleep(kinds.delay(execution))
        return execution

    def _faulty(
        self,
        need: RunProgram,
        result: Execution,
        true: list[Execution],
        reported: tuple[str, ...] | None,
    ) -> Execution:
        """The result to show. If it says that the session has ended, the session ends.

        Args:
            need: The call.
            result: The result of the program, with its prelude if it has one.
            true: The results without the prelude.
            reported: The texts that preludes reported; `None` if they are not known.
        """
        execution = kinds.show(need, result, true, reported)
        if kinds.ends_session(need, execution) and self._session is not None:
            self._session.close()
            self._session = None
        return execution

    def _invocation(self, need: RunProgram) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """The runner of a program, and the arguments of its `run`."""
        prelude = "" if need.fault is None else kinds.prelude(need)
        if prelude:
            check_kind(self._required(), need.fault)
        if need.session:
            return self._begun(need), (need.program,), {"prelude": prelude} if prelude else {}
        options: dict[str, Any] = {"display": need.display}
        if prelude:
            options["files"] = Files(prelude=prelude)
        return self._required(), (need.program, need.limits), options

    def close(self) -> None:
        """End the session, if it has begun; repeated calls are allowed.

        Later programs of the session can't run.
        """
        if self._session is not None:
            self._session.close()

    def _begun(self, need: RunProgram) -> Session:
        if self._session is None:
            self._session = self._required().session(need.limits, display=need.display)
        return self._session

    def _required(self) -> Sandbox:
        assert self._sandbox is not None, "only an episode with an interpreter runs programs"
        return self._sandbox


def _reported(runner: Any, options: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The texts that preludes reported in the last program of a sandbox or block of a session."""
    reported: tuple[str, ...] | None = getattr(options.get("files", runner), "reported", None)
    return reported


def open_sandbox(setting: SandboxSetting, rules: Rules) -> Sandbox | None:
    r"""Make the sandbox of a setting.

    Args:
        setting: A sandbox, which is returned unchanged; a name or URLs (see `make_sandbox`); or a
            mapping of the arguments of `make_sandbox`.
        rules: The rules of the episodes that will use the sandbox.

    Returns:
        The sandbox; `None` if the rules switch the interpreter off.

    Raises:
        SandboxUnavailable: If the sandbox can't work here, no sandbox server can be reached, or the
            rules need sessions and it has none. The message names the missing part.
        ValueError: If the sandbox's name is unknown.
        TypeError: If the setting has another type, or the mapping holds an unknown argument.

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
        check_hosts(sandbox)
    except BaseException:
        if sandbox is not setting:
            sandbox.close()
        raise
    return sandbox


class SharedSandboxes:
    """The sandboxes that the environments of a process share, one for each setting.

    A sandbox is closed when its last environment is closed or garbage-collected. A forked process
    shares no sandboxes with its parent: its environments make new sandboxes.
    """

    def __init__(self) -> None:
        self._users: WeakKeyDictionary[Sandbox, WeakSet[object]] = WeakKeyDictionary()
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.RLock()  # another thread may have held the old lock at the fork
        self._by_setting: WeakValueDictionary[str, Sandbox] = WeakValueDictionary()

    def borrow(self, setting: SandboxSetting, rules: Rules, user: object) -> Sandbox | None:
        """The shared sandbox of a setting, made for its first user.

        Args:
            setting: The setting, as for `open_sandbox`. A sandbox is returned unchanged, and never
                closed here: its maker closes it.
            rules: The rules of the episodes that will use the sandbox.
            user: The environment that uses the sandbox, and passes itself to `give_back`.

        Returns:
            The sandbox; `None` if the rules switch the interpreter off.

        Raises:
            SandboxUnavailable: If the sandbox can't work here, or the rules need sessions and it
                has none.
            ValueError: If the sandbox's name is unknown, or an argument is wrong.
            TypeError: If the mapping holds an unknown argument.
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
        """Close a borrowed sandbox, unless other users need it; repeated calls are allowed.

        Args:
            sandbox: The borrowed sandbox.
            user: The environment that borrowed it.
        """
        with self._lock:
            users = self._users.get(sandbox)
            if users is not None:  # the copy of an environment may hold a copied, unknown sandbox
                users.discard(user)
                if users:
                    return
                for key in [key for key, value in self._by_setting.items() if value is sandbox]:
                    del self._by_setting[key]
        sandbox.close()


shared_sandboxes = SharedSandboxes()
"""The shared sandboxes of this process."""


def _key(setting: str | Mapping[str, Any]) -> str:
    """A key that is equal for settings of the same sandbox."""
    arguments = {"name": setting} if isinstance(setting, str) else {"name": "nsjail", **setting}
    alike = {str(k): list(v) if isinstance(v, list | tuple) else v for k, v in arguments.items()}
    # The token is a setting of remote sandboxes.
    return repr((sorted(alike.items()), os.environ.get("RETOOL_SANDBOX_TOKEN")))


def check_sandbox(rules: Rules, sandbox: Sandbox | None) -> None:
    """Check, before sampling begins, that a sandbox can run the programs of these rules.

    Args:
        rules: The rules of the episodes.
        sandbox: The sandbox; `None` is allowed if the rules switch the interpreter off.

    Raises:
        ValueError: If the rules have an interpreter, but the sandbox is `None`.
        SandboxUnavailable: If the rules need sessions, but the sandbox has none; or if a kind of
            fault is made in the program's process, but the sandbox has no preludes.
    """
    if not rules.interpreter:
        return
    if sandbox is None:
        raise ValueError(
            "episodes with an interpreter need a sandbox: pass sandbox=..., or set "
            "interpreter=False"
        )
    for kind in rules.faults.kinds if isinstance(rules.faults, Faults) else ():
        check_kind(sandbox, kind)
    if rules.session:
        sandbox.session(rules.limits, display=rules.display).close()


def check_hosts(sandbox: Sandbox | None) -> None:
    """Ask the servers of a remote sandbox once whether programs can run there.

    Args:
        sandbox: The sandbox. Of any other kind of sandbox nothing is asked.

    Raises:
        SandboxUnavailable: If no program can run on any server, or a server refuses the token.
    """
    if isinstance(sandbox, RemoteSandbox):
        sandbox.check()


def check_kind(sandbox: Sandbox | None, kind: str | None) -> None:
    """Check, before sampling begins, that a sandbox can run programs under a kind of fault.

    Args:
        sandbox: The sandbox.
        kind: The kind of the fault; `None` for a program without a fault.

    Raises:
        SandboxUnavailable: If the fault is made in the program's process, but the sandbox has no
            preludes.
    """
    if kind in kinds.MADE_IN_GUEST and not getattr(sandbox, "runs_preludes", False):
        raise SandboxUnavailable(
            f"the fault {kind} is made in the program's process, and {type(sandbox).__name__} has "
            "no such way: use a local sandbox, such as make_sandbox('nsjail'), or leave "
            f"{' and '.join(kinds.MADE_IN_GUEST)} out of faults.kinds"
        )


def check_setting(rules: Rules, setting: SandboxSetting) -> None:
    """Check a setting for these rules; the sandbox is not made.

    A command calls it before it loads a model, which can take minutes.

    Args:
        rules: The rules of the episodes.
        setting: A setting of `open_sandbox`.

    Raises:
        SandboxUnavailable: If the setting names sandbox servers, and the rules need a session or a
            fault that is made in the program's process.
    """
    if not rules.interpreter or not (impossible := impossible_kinds(setting)):
        return
    if rules.session:
        raise SandboxUnavailable(
            "session=true: a sandbox server has no sessions; use a local sandbox (--sandbox "
            "nsjail), or leave session out"
        )
    ordered = rules.faults.kinds if isinstance(rules.faults, Faults) else ()
    if kinds_left := [kind for kind in impossible if kind in ordered]:
        raise SandboxUnavailable(
            f"no sandbox server can make {' and '.join(kinds_left)}: use a local sandbox, or name "
            "the other kinds in faults.kinds"
        )


def impossible_kinds(setting: SandboxSetting) -> tuple[str, ...]:
    """The kinds of faults that the sandbox of a setting can't make. The sandbox is not made.

    Args:
        setting: A setting of `open_sandbox`.

    Example:
        >>> impossible_kinds("http://host:8080")
        ('missing_package', 'wrong_function')
        >>> impossible_kinds("nsjail")
        ()
    """
    name = setting.get("name", "nsjail") if isinstance(setting, Mapping) else setting
    if isinstance(name, str):
        local = not name.startswith(("http://", "https://"))
    else:
        local = getattr(setting, "runs_preludes", False)
    return () if local else kinds.MADE_IN_GUEST


def _made(setting: SandboxSetting) -> Sandbox:
    if isinstance(setting, str):
        return make_sandbox(setting)
    if not isinstance(setting, Mapping):
        if setting is not None and not callable(getattr(setting, "run", None)):
            raise UnknownSetting(
                f"sandbox={setting!r:.60}: it must be a Sandbox, a sandbox's name, or a mapping of "
                "make_sandbox's arguments"
            )
        return setting
    try:
        return make_sandbox(**setting)
    except TypeError as error:
        raise UnknownSetting(
            f"sandbox={without_secrets(setting)!r}: {error}; this mapping must hold a `name` (by "
            "default nsjail) and arguments of the sandbox with this name"
        ) from error
