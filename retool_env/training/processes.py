"""Work that all processes of a run do together, so that an error on one ends it on all.

The processes wait for the slowest process's rollouts, files and uploads in a separate process group
on gloo, with a time limit of hours. So the training's group, in which a process never waits long,
can keep a limit of minutes, and a hang in it is found.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import distributed

from retool_env.errors import RolloutsAbandoned as RolloutsAbandoned

WAIT = datetime.timedelta(hours=12)
"""The longest time that a process waits for the slowest process's rollouts or files."""

_waiting: tuple[Any, Any] | None = None
"""The default process group, and the group for waiting that was made for it."""

_phase = ("start", time.time())
"""The name of this process's work at present, and its beginning in seconds since the epoch."""


def together[T](accelerator: Any, work: Callable[[], T]) -> T:
    """Do work on every process; an error on one process ends the work on all.

    Without this, the other processes would wait for the failed process in their next collective.

    Args:
        accelerator: The accelerator of the run, or its state.
        work: The work of this process.

    Raises:
        RuntimeError: If another process has an error.
        RolloutsAbandoned: If no process has an error, and a process abandoned its rollouts.
    """
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    abandoned = isinstance(error, RolloutsAbandoned)
    numbers = gathered(accelerator, error is not None and not abandoned, abandoned)
    if error is not None and not abandoned:
        raise error
    for rank, (failed, _) in enumerate(numbers):
        if failed:
            raise RuntimeError(f"process {rank} failed: read its error text for the reason")
    if any(left for _, left in numbers):
        raise RolloutsAbandoned("the rollouts were abandoned")
    return result


def gathered(accelerator: Any, *numbers: float) -> list[list[float]]:
    """The numbers of every process, in the order of ranks. All processes must call it.

    Args:
        accelerator: The accelerator of the run, or its state.
        *numbers: The numbers of this process, equally many on each process.
    """
    own = list(map(float, numbers))
    return [own] if accelerator.num_processes == 1 else everywhere(own)


def everywhere[T](value: T) -> list[T]:
    """The values of every process, in the order of ranks. All processes must call it.

    A process may call it up to `WAIT` before the others. Without a process group, the list holds
    this process's value alone.

    Args:
        value: The value of this process, which can be pickled.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value, group=_waiting_group())
    return values


def _waiting_group() -> Any:
    """The group for waiting. All processes make it together."""
    global _waiting
    world = distributed.group.WORLD
    if _waiting is None or _waiting[0] is not world:
        _waiting = world, distributed.new_group(backend="gloo", timeout=WAIT)
    return _waiting[1]


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Name this process's work while the block runs, for the message about a process that hangs.

    Args:
        name: The name of the work, such as `"rollouts"`.
    """
    global _phase
    before = _phase[0]
    _phase = (name, time.time())
    try:
        yield
    finally:
        _phase = (before, time.time())


def present_phase() -> tuple[str, float]:
    """The name of this process's work, and its beginning in seconds since the epoch."""
    return _phase
