"""Stopping of a command that records episodes: by signals, with a line on how to go on."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Set
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retool_env.evaluation.cost import Price
    from retool_env.evaluation.folder import Records


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Ends the block by SIGTERM and SIGHUP as by Ctrl-C, unless the signals are ignored.

    A cluster's scheduler sends SIGTERM at the end of a job's time, a lost terminal SIGHUP.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # a shell starts jobs in the background so
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    names = ("SIGTERM", "SIGHUP")  # Windows has the first alone
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    inside = threading.current_thread() is threading.main_thread()
    taken = [n for n in numbers if inside and signal.getsignal(n) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def closing(
    records: Records, keys: Set[Any] | None, price: Price | None
) -> Iterator[Callable[[bool], None]]:
    """Writes how a record of episodes ended, and says how to go on if it was stopped.

    The block receives a function that it calls with whether every episode has run.

    Args:
        records: The folder of the episodes.
        keys: The keys of all episodes that the command asks for; `None`: not known beforehand.
        price: Dollars of an API's tokens; `None`: unknown.
    """
    began = time.monotonic()

    def finish(complete: bool) -> None:
        cost = None if price is None else price.of(records.usage)
        seconds = time.monotonic() - began
        records.close("finished" if complete else "stopped", seconds, cost)

    try:
        yield finish
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk: the error that ended the work says so
            finish(False)
        if records.ended or records.usage.requests:
            options = f"--resume --out {shlex.quote(str(records.folder))}"
            kept = f"{len(records.ended)}"
            if keys is not None:
                kept = f"{len(keys & records.ended.keys())} of {len(keys)}"
            print(
                f"{kept} episodes are kept in {records.folder}; give the command again with "
                f"{options}",
                file=sys.stderr,
            )
        else:
            records.remove()
        raise
