"""Lines of progress on long work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator

Say = Callable[[str], None]
"""Receives a line of progress."""

SECONDS = 5.0
"""The number of seconds between two lines."""


def on_stderr(line: str) -> None:
    """Prints a line of progress on standard error, where it does not mix with results.

    Args:
        line: The line.
    """
    print(line, file=sys.stderr, flush=True)


def counted[T](items: Iterable[T], words: str, say: Say | None, total: int = 0) -> Iterator[T]:
    """Yields items, and says their number from time to time.

    Args:
        items: The items.
        words: The words after the number, such as `episodes are read`.
        say: Receives the lines; `None`: nothing is said.
        total: The number of all items; 0: unknown.
    """
    shown, of = time.monotonic(), f" of {total:,}" if total else ""
    for number, item in enumerate(items, 1):
        yield item
        if say is not None and time.monotonic() - shown >= SECONDS:
            shown = time.monotonic()
            say(f"{number:,}{of} {words}")
