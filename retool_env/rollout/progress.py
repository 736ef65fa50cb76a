"""Progress: counters of a run's episodes, which can be read and shown at any moment."""

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

Activity = Literal["generating", "executing", "grading"]
"""The activities of an episode; `Progress` has a counter of each name."""


@dataclass
class Progress:
    """Counters of one run, which the engine keeps up to date."""

    total: int = 0
    """The number of requested episodes. All of them are done at the end, unless the run is
    cancelled.
    """
    generating: int = 0
    """The number of episodes for which the model is writing."""
    executing: int = 0
    """The number of episodes whose program is running."""
    grading: int = 0
    """The number of episodes whose answer is being graded."""
    done: int = 0
    """The number of finished episodes, whatever their end."""
    correct: int = 0
    """The number of finished episodes with the right answer."""
    failed: int = 0
    """The number of episodes whose last attempt ended with an infrastructure failure."""
    retried: int = 0
    """The number of times that an episode was begun again after such a failure."""
    cut: int = 0
    """The number of episodes that a deadline cut."""
    dropped: int = 0
    """The number of rollouts begun beyond the size of a group and not kept. Neither `total` nor
    `done` counts them.
    """
    tokens: int = 0
    """The number of tokens that the model wrote in finished turns, in episodes of any end."""
    unit: str = "tokens"
    """The unit of `tokens`: `"characters"` if the model gives no tokens."""
    generation_seconds: float = 0.0
    """The seconds of generation, summed over all episodes."""
    tool_seconds: float = 0.0
    """The seconds of tool calls, including the wait for a free sandbox, summed over all episodes.
    """
    calls: Counter[int] = field(default_factory=Counter)
    """The number of finished episodes, by their number of tool calls."""
    started: float = field(default_factory=time.monotonic)
    """The time at which the run began, in seconds of the monotonic clock."""

    def expect(self, episodes: int) -> None:
        """Count episodes as requested. The run begins with the first of them."""
        if not self.total:
            self.started = time.monotonic()
        self.total += episodes

    def begin(self, what: Activity) -> float:
        """Count an episode in this activity, until `end`.

        Returns:
            The time of the beginning, in seconds of the monotonic clock.
        """
        setattr(self, what, getattr(self, what) + 1)
        return time.monotonic()

    def end(self, what: Activity, began: float) -> float:
        """Count an episode out of this activity, and add its seconds.

        Args:
            what: The activity.
            began: The time that `begin` returned.

        Returns:
            The seconds since `began`.
        """
        setattr(self, what, getattr(self, what) - 1)
        seconds = time.monotonic() - began
        if what == "generating":
            self.generation_seconds += seconds
        elif what == "executing":
            self.tool_seconds += seconds
        return seconds

    def finished(self, transcript: Transcript) -> None:
        """Count a finished episode."""
        self.done += 1
        self.correct += bool(transcript.correct)
        self.failed += transcript.stop_reason is StopReason.INFRASTRUCTURE
        self.cut += transcript.stop_reason is StopReason.CANCELLED
        # Each call has one result; `transcript.calls` would parse all turns again.
        self.calls[sum(span.execution is not None for span in transcript.spans)] += 1

    @property
    def seconds(self) -> float:
        """The seconds since the run began."""
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
    """Show progress during a `with` block: a changing line on a terminal, else a line now and then.

    Args:
        progress: The counters to show.
        stream: The stream to write to. `None`: standard error.
        every: The seconds between two lines if the stream is not a terminal.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()
    over = threading.Event()

    def show(end: str = "\n") -> None:
        line = str(progress)
        if terminal:  # a wider line would wrap, and its first part would stay on the screen
            line = "\r\033[K" + line[: shutil.get_terminal_size().columns - 1]
        # A broken pipe, a full disk or a closed stream must not end the run.
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
