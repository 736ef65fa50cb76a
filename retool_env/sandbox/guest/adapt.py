"""Tells Python's standard library about the limits, so that programs meet numbers or errors.

This module confines nothing: the kernel enforces the limits. But a library that sizes its pools by
the host's processors, or that waits for a socket which cannot exist, would otherwise fail or hang
without a message.
"""

import _sitebuiltins
import builtins
import errno
import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, NoReturn

from . import confine, wire

PROCESSORS = 4
"""The largest number of processors that a program sees and uses."""

_FORK = "start processes by the method 'fork': multiprocessing.get_context('fork')"
_ADVICE = {
    "multiprocessing.popen_spawn_posix": _FORK,
    "multiprocessing.popen_forkserver": _FORK,
    "multiprocessing.resource_sharer": "a connection is sent to a process by a socket that "
    "listens: give it to the process when it is started",
    "multiprocessing.managers": "a manager listens on a socket: share by multiprocessing's Pool, "
    "Queue, Pipe, Value or Array",
}
"""An alternative for each module that cannot work in the jail."""


class _Quitter(_sitebuiltins.Quitter):
    """`exit` and `quit` that leave standard input open for further blocks of a session."""

    def __call__(self, code: object = None) -> NoReturn:
        raise SystemExit(code)


class _Finder:
    """Refuses modules that cannot work in the jail, and makes the errors of new processes clear."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in _ADVICE:
            raise PermissionError(errno.EPERM, _ADVICE[name])
        # Not imported in advance: each copy of the template would have to map and unmap it.
        if name == "_posixsubprocess" and (spec := PathFinder.find_spec(name, path, target)):
            # `_Explained` has the two methods of a loader that the import calls.
            spec.loader = _Explained(spec.loader)  # type: ignore[assignment]  # it wraps the loader
            return spec
        return None


class _Explained:
    """Loads `_posixsubprocess` with its own loader, and replaces `fork_exec`."""

    def __init__(self, loader: Any) -> None:
        self.create_module = loader.create_module
        self._load = loader.exec_module

    def exec_module(self, module: ModuleType) -> None:
        self._load(module)
        vars(module)["fork_exec"] = _explained(module.fork_exec)


_bounds: wire.Bounds
_counted = False
_usable: list[int] = []


def install() -> None:
    """Adapts this interpreter. Called once, before anything else is loaded."""
    # The guest skips the module `site`, which adds these but takes longer than all the rest.
    builtins.exit = _Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _Quitter("quit", "Ctrl-D (i.e. EOF)")
    builtins.help = _sitebuiltins._Helper()
    sys.meta_path.insert(0, _Finder)
    os.fork = _explained(os.fork)
    os.posix_spawn, os.posix_spawnp = map(_explained, (os.posix_spawn, os.posix_spawnp))
    _usable[:] = sorted(os.sched_getaffinity(0))
    _set_processors(min(PROCESSORS, len(_usable)))
    for name in ("_start_new_thread", "_start_joinable_thread"):  # by Python's version
        if hasattr(threading, name):
            setattr(threading, name, _explained(getattr(threading, name)))


def limit(bounds: wire.Bounds, counted: bool, turn: int) -> None:
    """Tells a new process how much it may use.

    Args:
        bounds: The limits of the process.
        counted: Whether the kernel counts the program's processes separately.
        turn: A number that grows from process to process; it spreads processes over the processors.
    """
    # As few writes as possible: each page written is a page copied from the template.
    global _bounds, _counted
    _bounds, _counted = bounds, counted
    number = min(PROCESSORS, bounds.processes, len(_usable))
    if number < len(_usable):
        chosen = {_usable[(turn * number + i) % len(_usable)] for i in range(number)}
        os.sched_setaffinity(0, chosen)
    if number < (os.cpu_count() or 1):
        _set_processors(number)


def _set_processors(number: int) -> None:
    os.cpu_count = lambda: number
    if hasattr(os, "process_cpu_count"):
        os.process_cpu_count = os.cpu_count


def _too_many() -> str:
    return f"the sandbox allows {_bounds.processes} processes and threads at once"


def _too_large() -> str:
    return f"the sandbox allows {_bounds.memory >> 20} MiB to each process"


def _explained(start: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `start`; its error names the limit if the limit is the cause."""

    def explained(*args: Any, **kwargs: Any) -> Any:
        try:
            return start(*args, **kwargs)
        except BlockingIOError as error:
            if not _counted:
                raise
            raise BlockingIOError(error.errno, f"{error.strerror}: {_too_many()}") from None
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise
            many = _counted and confine.no_process_left()
            raise RuntimeError(f"{error}: {_too_many() if many else _too_large()}") from None

    return explained
