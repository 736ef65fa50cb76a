"""Board: the progress of a run.

A terminal shows a live board with the step's figures and their curves. Without a terminal a line is
printed every few seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any, override

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback
from transformers.utils import logging

from agents.base.curves import SHOWN
from agents.base.sharding import processes
from retool_env.training.curves import HELD_OUT

console = Console()
logging.disable_progress_bar()  # transformers' bars for weights would disturb the board

SHARES = ("accuracy", HELD_OUT, "with code", "calls ok", "tokens right", "verified")
"""The figures that are shares from 0 to 1. They are shown in percent."""

CURVES = ("accuracy", HELD_OUT, "with code", "tokens right")
"""The shares that also have a curve on the board."""

BLOCKS = "▁▂▃▄▅▆▇█"
"""The characters of a curve, from 0 to 1."""
PAIRS = 3
"""The number of figures in a row of the board's table."""


class Bar:
    """Counts steps up to a total, and shows their figures. Only the first process shows them.

    Args:
        title: The name of the counted work.
        total: The number to count to.
        every: Seconds between printed lines if there is no terminal.
        live: An object whose `str()` is shown below the figures and updated twice a second. If it
            has an attribute `tokens`, the number of tokens written so far, the board shows tokens
            per second of this process. `None` shows nothing.
        past: Records of `metrics.jsonl` from earlier starts of the run; the curves begin with them.
    """

    def __init__(
        self,
        title: str,
        total: int,
        every: float = 10.0,
        live: object = None,
        past: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self._main = processes().is_main_process
        self._title, self._total, self._every, self._live = title, total, every, live
        self._count = self._first = 0
        self._figures: dict[str, float] = {}
        self._curves: dict[str, list[float]] = {name: [] for name in CURVES}
        for record in past:
            self._keep(_named(record))
        self._started = self._printed = self._shown = self._counted = time.monotonic()
        self._tokens: float | None = getattr(live, "tokens", None)
        self._board = Live(console=console, get_renderable=self._render, refresh_per_second=2)

    def __enter__(self) -> Bar:
        if self._main and console.is_terminal:
            self._board.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._board.stop()
        if not console.is_terminal:
            self._line()

    def advance(self, to: int | None = None) -> None:
        """Count up.

        Args:
            to: The new count; `None` counts up by one.
        """
        self._count = self._count + 1 if to is None else to
        self._counted = time.monotonic()
        if not console.is_terminal and self._counted - self._printed >= self._every:
            self._printed = self._counted
            self._line()

    def show(self, step: int, record: Mapping[str, Any]) -> None:
        """Count up to a step and show its figures.

        Args:
            step: The number of the step.
            record: The step's record of `metrics.jsonl`. The figures in `SHOWN` are shown.
        """
        if figures := _named(record):
            now, tokens = time.monotonic(), getattr(self._live, "tokens", record.get("num_tokens"))
            # After an evaluation comes a step whose tokens are older than the evaluation.
            if tokens is not None and self._tokens is not None and tokens > self._tokens:
                figures["tokens/s"] = (tokens - self._tokens) / max(now - self._shown, 1e-3)
            self._shown, self._tokens = now, tokens
            self._keep(figures)
        self.advance(step)

    def show_held_out(self, record: Mapping[str, Any]) -> None:
        """Show the accuracy of an evaluation until the next one.

        Args:
            record: The evaluation's record of `metrics.jsonl`.
        """
        self._keep(_named(record))
        # The tokens per second of the next step are those since the evaluation.
        self._shown, self._tokens = time.monotonic(), getattr(self._live, "tokens", None)

    def set_total(self, total: int, done: int = 0) -> None:
        """Set the number to count to.

        Args:
            total: The number to count to.
            done: The count that earlier starts of the run reached.
        """
        self._total, self._count, self._first = total, done, done

    def _keep(self, figures: dict[str, float]) -> None:
        if figures.keys() <= {HELD_OUT}:
            self._figures |= figures
        else:
            self._figures = {**figures, **{k: v for k, v in self._figures.items() if k == HELD_OUT}}
        for name in CURVES:
            if math.isfinite(figures.get(name, math.nan)):
                self._curves[name].append(figures[name])

    def _line(self) -> None:
        seconds = time.monotonic() - self._started
        if self._main:
            figures = "  ".join(f"{name} {_number(x)}" for name, x in self._figures.items())
            count = f"{self._title}: {self._count}/{self._total}"
            print(f"{count}, {seconds:.0f} s  {figures}", flush=True)

    def _render(self) -> Group:
        """The board at this moment. The thread of `rich.live.Live` calls this method."""
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(self._total, 1), completed=self._count, width=24)
        head.add_row(self._title, bar, f"{self._count}/{self._total}", self._times())
        parts: list[Any] = [head]
        if figures := self._figures:
            table = Table.grid(padding=(0, 2))
            cells = [(Text(name, style="dim"), _text(name, figures[name])) for name in figures]
            for start in range(0, len(cells), PAIRS):
                table.add_row(*(cell for pair in cells[start : start + PAIRS] for cell in pair))
            parts.append(table)
        curves = Table.grid(padding=(0, 2))
        width = max(console.width - 30, 10)
        for name, values in self._curves.items():
            if len(values) > 1:
                curves.add_row(Text(name, style="dim"), sparkline(values, width))
        if curves.row_count:
            parts.append(curves)
        if self._live is not None:
            parts.append(Text(str(self._live), style="dim"))
        return Group(*parts)

    def _times(self) -> str:
        seconds = time.monotonic() - self._started
        text = str(timedelta(seconds=round(seconds)))
        done, left = self._count - self._first, self._total - self._count
        if done > 0 and left > 0:
            taken = self._counted - self._started
            ahead = max(0.0, taken / done * left - (seconds - taken))
            text += f", about {timedelta(seconds=round(ahead))} to go"
        return text


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw shares as a line of block characters.

    Args:
        values: The shares, from 0 to 1.
        width: The largest number of characters. With more values, a character shows the mean of
            several values.

    Example:
        >>> sparkline([0.0, 0.0, 0.5, 0.5, 1.0, 1.0], 3)
        '▁▅█'
    """
    columns = min(width, len(values))
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    return "".join(BLOCKS[max(0, min(int(m * len(BLOCKS)), len(BLOCKS) - 1))] for m in means)


def _named(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: record[key] for key, name in SHOWN.items() if record.get(key) is not None}


def _text(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name in SHARES else _number(value)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


class BarCallback(TrainerCallback):
    """Shows a trainer's progress on a bar.

    Args:
        bar: The bar.
    """

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the bar's total, once the trainer knows its number of steps."""
        self._bar.set_total(state.max_steps, state.global_step)

    @override
    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the figures that the trainer logs."""
        if state.is_world_process_zero and logs:
            self._bar.show(state.global_step, logs)
