"""Lines of progress on long work."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TextIO

SECONDS = 5.0
"""The number of seconds between two lines."""


def counted[T](items: Iterable[T], words: str, stream: TextIO) -> Iterator[T]:
    """Yields items, and writes a line with their number from time to time.

    Args:
        items: The items.
        words: The words after the number, such as `episodes are read`.
        stream: Receives the lines.
    """
    shown = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        if time.monotonic() - shown >= SECONDS:
            shown = time.monotonic()
            print(f"{number:,} {words}", file=stream, flush=True)
