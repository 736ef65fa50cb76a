"""Writes the figures of a benchmark, with date, machine and versions."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.base.records import write_atomically
from benchmarks.parts.machine import circumstances

RESULTS = Path(__file__).parents[1] / "results"
"""The default folder of figures."""


def write_results(path: Path, figures: dict[str, Any], indent: int = 2) -> None:
    """Write figures as JSON, with date, machine and versions.

    Args:
        path: The file. A missing folder is created.
        figures: The figures, as JSON values.
        indent: The number of spaces of one level of the JSON text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**circumstances(), **figures}, indent=indent, ensure_ascii=False)
    write_atomically(path, text + "\n")


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """The median, minimum and maximum of the ratios of two series, taken round by round."""
    values = [a / b for a, b in zip(numerators, denominators, strict=True)]
    spread = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in spread.items()}
