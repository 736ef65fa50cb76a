"""Pictures: one style for all charts, drawn by matplotlib as PNG bytes, without a display.

The colours are the palette of Okabe and Ito, which colour-blind readers tell apart. Series also
differ by marker and line style, and areas by hatching, so a picture can be read in grey. No text is
smaller than 8 points. Legends stand below the panels, where they hide no data.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from retool_env.errors import MissingPackage

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, BLACK, GREY = "#56B4E9", "#E69F00", "#000000", "#999999"

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE, BLACK)
"""The colours of series, in their order."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""The markers of series, in their order."""

LINES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 3)))
"""The line styles of series, in their order."""

DPI = 150
"""The resolution of the PNG files, in dots for an inch."""

_STYLE: Any = {
    **{"font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8.5},
    **{"xtick.labelsize": 8, "ytick.labelsize": 8, "figure.titlesize": 10},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3},
    **{"axes.axisbelow": True, "figure.facecolor": "white", "text.parse_math": False},
    **{"lines.markersize": 4.5, "lines.linewidth": 1.6, "hatch.linewidth": 0.6},
}

Point = tuple[float, float, float | None, float | None]
"""A point of a curve: x, mean, and the bounds of its interval where the interval is bounded."""


@dataclass
class Picture:
    """A picture while it is drawn, and its bytes afterwards."""

    figure: Any
    """The figure of matplotlib."""
    axes: Any
    """The panels: an array of shape `(rows, columns)`."""
    png: bytes = b""
    """The content of the PNG file; empty while the picture is drawn."""

    def legend(self) -> None:
        """Adds one legend of all panels below them."""
        entries: dict[str, Any] = {}
        for axis in self.axes.flat:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
        if entries:
            columns = max(
                1, int(self.figure.get_figwidth() / (0.6 + 0.075 * max(map(len, entries))))
            )
            self.figure.legend(
                list(entries.values()), list(entries), loc="outside lower center", ncols=columns
            )


@contextmanager
def picture(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 3.6), **options: Any
) -> Iterator[Picture]:
    """Draws a picture; its bytes are there once the block has ended.

    Args:
        rows: The number of rows of panels.
        columns: The number of columns of panels.
        size: Width and height in inches.
        **options: More options of `matplotlib.figure.Figure.subplots`.

    Yields:
        The picture, with empty panels.

    Raises:
        MissingPackage: matplotlib is not installed.

    Example:
        >>> with picture(size=(2, 1)) as made:
        ...     curve(made.axes[0, 0], [(1, 0.5, 0.4, 0.6)], 0, "accuracy")
        >>> made.png[1:4]
        b'PNG'
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackage(
            f"{error}: to draw pictures, pip install 'retool-env[report]'"
        ) from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        made = Picture(figure, figure.subplots(rows, columns, squeeze=False, **options))
        yield made
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI)
        made.png = file.getvalue()


def look(number: int) -> dict[str, Any]:
    """The colour, marker and line style of a series, as options of `Axes.plot`.

    Args:
        number: The number of the series, from 0. After the last look they begin again.
    """
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
    }


def curve(axis: Any, points: Sequence[Point], number: int, label: str) -> None:
    """Draws a curve, with its intervals as a band.

    Args:
        axis: The panel.
        points: The points in the order of x.
        number: The number of the series, for its look.
        label: The name of the series in the legend.
    """
    xs, means = [point[0] for point in points], [point[1] for point in points]
    axis.plot(xs, means, label=label, **look(number))
    lows, highs = (
        [float("nan") if point[bound] is None else point[bound] for point in points]
        for bound in (2, 3)
    )
    color = look(number)["color"]
    axis.fill_between(xs, lows, highs, color=color, alpha=0.18, linewidth=0)
    if len(points) == 1:  # an area of one point has no width
        axis.vlines(xs, lows, highs, color=color, alpha=0.5)


def share_axis(axis: Any) -> None:
    """Makes an axis the axis of a share, from 0 to 100 %.

    Args:
        axis: The attribute `xaxis` or `yaxis` of a panel.
    """
    from matplotlib.ticker import PercentFormatter

    limits = axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim
    limits(-0.03, 1.03)
    axis.set_major_formatter(PercentFormatter(1.0))


def whole_numbers(*axes: Any) -> None:
    """Gives the x-axis or y-axis of panels ticks at whole numbers only.

    Args:
        *axes: The attributes `xaxis` or `yaxis` of panels.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
