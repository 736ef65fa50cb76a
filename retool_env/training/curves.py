"""Curves: the picture of the figures that training runs log, against optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from retool_env.pictures import look, picture, share_axis, whole_numbers

PANELS = {
    "env/accuracy": "accuracy of rollouts",
    "env/code_ratio": "share of responses with code",
    "completions/mean_length": "tokens the model wrote",
    "mean_token_accuracy": "share of tokens predicted right",
}
"""The logged figures that are drawn by default, each in a panel with this title."""

BESIDE = {"env/accuracy": "eval/accuracy"}
"""For a figure, the figure of evaluations that is drawn beside it, as marks."""

HELD_OUT = "held-out"
"""The name of the accuracy on held-out problems, on the board and in legends."""

WINDOW = 5
"""The number of steps of the moving mean, which is drawn over the faint single steps."""

_SHARES = {"env/accuracy", "env/code_ratio", "mean_token_accuracy"}
"""The figures whose axis goes from 0 to 100 %."""

_COLUMNS = 2
"""The most panels in a row, so that a page in print has letters of a legible size."""


def draw_curves(
    arms: Mapping[str, Sequence[Mapping[str, Any]]], panels: Mapping[str, str] = PANELS
) -> bytes:
    """Draws the learning curves of one or several runs against optimizer steps.

    Args:
        arms: The records of each run's `metrics.jsonl`. The keys are the names in the legend.
        panels: The titles of the panels by logged figure. A figure that no record has is left out.

    Returns:
        The PNG file; empty if no record has a figure of `panels`.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    logged = {key for records in arms.values() for record in records for key in record}
    drawn = {k: title for k, title in panels.items() if not logged.isdisjoint((k, BESIDE.get(k)))}
    if not drawn:
        return b""
    columns = min(len(drawn), _COLUMNS)
    rows = -(-len(drawn) // columns)
    with picture(rows, columns, (3.6 * columns, 2.6 * rows + 0.5)) as made:
        for axis in made.axes.flat[len(drawn) :]:
            axis.set_axis_off()
        for axis, (key, title) in zip(made.axes.flat, drawn.items(), strict=False):
            for number, (name, records) in enumerate(arms.items()):
                _draw_run(axis, key, name, records, number)
            axis.set_title(title)
            axis.set_xlabel("optimizer step")
            whole_numbers(axis.xaxis)
            if key in _SHARES:
                share_axis(axis.yaxis)
        made.legend()
    return made.png


def _draw_run(
    axis: Any, key: str, name: str, records: Sequence[Mapping[str, Any]], number: int
) -> None:
    """Draws a figure of one run: single steps, their moving mean, and evaluations."""
    style = look(number)
    if beside := _points(records, BESIDE.get(key)):
        label = f"{name}, {HELD_OUT}"
        axis.plot(*zip(*beside, strict=True), label=label, **style | {"linestyle": ":"})
    if not (points := _points(records, key)):
        return
    steps, values = zip(*points, strict=True)
    mean = [
        sum(values[max(0, i - WINDOW + 1) : i + 1]) / min(i + 1, WINDOW) for i in range(len(values))
    ]
    axis.plot(steps, values, color=style["color"], linewidth=0.8, alpha=0.35)
    # A single step has no line.
    axis.plot(steps, mean, label=name, **style | {"marker": "." if len(mean) == 1 else ""})


def _points(records: Sequence[Mapping[str, Any]], key: str | None) -> list[tuple[int, float]]:
    """The steps and the finite values of the records that have a figure."""
    found = [(r["step"], r[key]) for r in records if key and r.get(key) is not None]
    return [(step, value) for step, value in found if math.isfinite(value)]
