"""Draws the pictures of benchmarks with matplotlib, without a display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def panels(path: Path, rows: int, columns: int, **options: Any) -> Iterator[Any]:
    """Draw panels side by side, and write them to a PNG file at the end.

    Args:
        path: The PNG file.
        rows: The number of rows of panels.
        columns: The number of columns of panels.
        **options: More options of `matplotlib.pyplot.subplots`.

    Yields:
        The axes, an array of shape `(rows, columns)`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, squeeze=False, **options)
    yield axes
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
