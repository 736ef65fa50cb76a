"""Progress: what the episodes of a run are doing, and what they have done, at any moment."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, TextIO

from retool_env.transcript import StopReason, Transcript

Doing = Literal["generating", "executing", "grading"]
"""What an episode can be doing: the counts of these names."""


@dataclass
class Progress:
    """Counts of one run, kept up to date by the engine. Each is of episodes, unless it says otherwise."""

    total: int = 0
    """How many were asked for: there will be as many, unless their run is cancelled."""
    generating: int = 0
    """The model is writing."""
    executing: int = 0
    """A program is running."""
    grading: int = 0
    """An answer is being graded."""
    done: int = 0
    """Finished, whichever way."""
    correct: int = 0
    """Finished with the right answer."""
    failed: int = 0
    """Ended by an infrastructure failure, at the last attempt too."""
    retried: int = 0
    """Number of times that an episode was begun again after such a failure."""
    cut: int = 0
    """Cut by a deadline."""
    dropped: int = 0
    """Asked for beyond a group's size, and not among its first to finish. Neither in `total` nor `done`."""
    tokens: int = 0
    """Number of tokens that the model wrote in finished turns, whatever became of the episode."""
    unit: str = "tokens"
    """What that counts: `"characters"`, where the model gives no tokens."""
    generation_seconds: float = 0.0
    """Seconds that episodes spent in generation, summed over all."""
    tool_seconds: float = 0.0
    """Seconds that episodes spent in programs, waiting for a place included, summed over all."""
    calls: Counter[int] = field(default_factory=Counter)
    """Finished episodes by their number of calls."""
    started: float = field(default_factory=time.monotonic)
    """When the run began, in seconds of the monotonic clock."""

    def expect(self, episodes: int) -> None:
        """Counts episodes as asked for. With the first, the run begins."""
        if not self.total:
            self.started = time.monotonic()
        self.total += episodes

    def begin(self, what: Doing) -> float:
        """Counts an episode as doing this, until `end`; returns when it began, in seconds of the monotonic clock."""
        setattr(self, what, getattr(self, what) + 1)
        return time.monotonic()

    def end(self, what: Doing, began: float) -> float:
        """Counts it no longer as doing this, and the seconds that it did; returns them."""
        setattr(self, what, getattr(self, what) - 1)
        seconds = time.monotonic() - began
        if what == "generating":
            self.generation_seconds += seconds
        elif what == "executing":
            self.tool_seconds += seconds
        return seconds

    def finished(self, transcript: Transcript) -> None:
        """Counts a finished episode."""
        self.done += 1
        self.correct += bool(transcript.correct)
        self.failed += transcript.stop_reason is StopReason.INFRASTRUCTURE
        self.cut += transcript.stop_reason is StopReason.CANCELLED
        # Of each call there is a result; `transcript.calls` would parse all turns again.
        self.calls[sum(span.execution is not None for span in transcript.spans)] += 1

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.started

    def __str__(self) -> str:
        parts = [
            f"{self.done}/{self.total} episodes",
            f"{self.seconds:.0f} s",
            f"{self.correct} right",
            f"{self.generating} generating",
            f"{self.executing} executing",
            f"{self.tokens / max(self.seconds, 1e-9):.0f} {self.unit}/s",
            f"{self.tool_seconds:.1f} s in tools",
        ]
        if self.calls:
            share = ", ".join(f"{n}: {count}" for n, count in sorted(self.calls.items()))
            parts.append(f"calls {share}")
        for name in ("failed", "retried", "cut", "dropped"):
            if number := getattr(self, name):
                parts.append(f"{number} {name}")
        return ", ".join(parts)


@contextmanager
def shown(progress: Progress, stream: TextIO | None = None, every: float = 10.0) -> Iterator[None]:
    """Shows progress meanwhile: one line that changes on a terminal, and elsewhere a line every few seconds.

    Args:
        progress: What is shown.
        stream: Where; by default standard error.
        every: Seconds between lines where there is no terminal.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()
    over = threading.Event()

    def show(end: str = "\n") -> None:
        line = str(progress)
        if terminal:  # what is wider goes on in a next line, which would stay
            line = "\r\033[K" + line[: shutil.get_terminal_size().columns - 1]
        # Whoever reads may have gone, the disk be full, the stream be closed: nothing that the run should end for.
        with suppress(OSError, ValueError):
            print(line, end=end, file=stream, flush=True)

    def go_on() -> None:
        while not over.wait(0.5 if terminal else every):
            show("" if terminal else "\n")

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        show()
