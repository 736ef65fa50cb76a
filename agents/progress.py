"""Progress: a live bar with the step's figures on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text
from transformers import TrainerCallback
from transformers.utils import logging

from agents.run import processes

console = Console()
logging.disable_progress_bar()  # that of loading and saving weights would break into ours


class Bar:
    """Counts to a total.

    Args:
        what: What is done.
        total: How often.
        every: Seconds between lines where there is no terminal.
        live: Shown beside it, as it is at each moment.
    """

    def __init__(self, what: str, total: int, every: float = 10.0, live: object = None) -> None:
        self._main = processes().is_main_process  # the others show nothing
        self._what, self._total, self._every = what, total, every
        self._count, self._figures = 0, ""
        self._started = self._printed = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            *([] if live is None else [_Live(live)]),
            console=console,
            disable=not (self._main and console.is_terminal),
        )
        self._task = self._progress.add_task(what, total=total, figures="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if not console.is_terminal:
            self._line()

    def advance(self, to: int | None = None, **figures: float | None) -> None:
        """Count one further, or to a given number, and show figures."""
        self._count = self._count + 1 if to is None else to
        if figures:
            self._figures = "  ".join(f"{k} {v:.3g}" for k, v in figures.items() if v is not None)
        self._progress.update(self._task, completed=self._count, figures=self._figures)
        if not console.is_terminal and time.monotonic() - self._printed >= self._every:
            self._printed = time.monotonic()
            self._line()

    def set_total(self, total: int) -> None:
        """Correct the number to count to."""
        self._total = total
        self._progress.update(self._task, total=total)

    def _line(self) -> None:
        seconds = time.monotonic() - self._started
        if self._main:
            print(
                f"{self._what}: {self._count}/{self._total}, {seconds:.0f} s  {self._figures}",
                flush=True,
            )


class _Live(ProgressColumn):
    """Shows an object as the text that it is now."""

    def __init__(self, shown: object) -> None:
        super().__init__()
        self._shown = shown

    def render(self, task: Any) -> Text:
        """Called with each refresh."""
        return Text(str(self._shown), style="dim")


class BarCallback(TrainerCallback):
    """Moves a bar along with a trainer.

    Args:
        bar: The bar.
        figures: Which of the trainer's logs to show, and under what names.
    """

    def __init__(self, bar: Bar, figures: dict[str, str]) -> None:
        self._bar = bar
        self._names = figures

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer, which by now knows its number of steps."""
        self._bar.set_total(state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Called by the trainer."""
        if state.is_world_process_zero and logs:
            shown = {name: logs[key] for key, name in self._names.items() if key in logs}
            self._bar.advance(state.global_step, **shown)
