"""The picture of a comparison: the difference of each problem, sorted."""

from __future__ import annotations

import io

from retool_env.errors import MissingPackage
from retool_env.evaluation.compare.comparison import Comparison

BETTER, WORSE, ALIKE = "#0072b2", "#d55e00", "#999999"
"""The colours of Okabe and Ito (2008), which colour-blind readers tell apart."""


def draw(comparison: Comparison) -> bytes:
    """Draws the difference of each problem, from the lowest to the highest, as a PNG file.

    The mean difference and its interval are a line and a band.

    Args:
        comparison: The comparison. At least one problem counts.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackage(
            f"{error}: to draw pictures, pip install 'retool-env[report]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    found = comparison.overall
    assert found is not None  # the caller leaves out a comparison without a problem
    values = sorted(100 * value for value in comparison.differences.values())
    first, second = comparison.first, comparison.second
    figure, axis = pyplot.subplots(figsize=(9, 3.8), layout="constrained")
    try:
        for colour, marker, some in (
            (BETTER, "^", [i for i, v in enumerate(values, 1) if v > 1e-9]),
            (WORSE, "v", [i for i, v in enumerate(values, 1) if v < -1e-9]),
            (ALIKE, "o", [i for i, v in enumerate(values, 1) if abs(v) <= 1e-9]),
        ):
            heights = [values[i - 1] for i in some]
            if some:
                axis.vlines(some, 0, heights, color=colour, linewidth=1)
            words = {"^": f"{second} better", "v": f"{first} better", "o": "alike"}[marker]
            label = f"{words}: {len(some)}"
            axis.plot(some, heights, marker, color=colour, markersize=5, label=label)
        if found.low is not None and found.high is not None:
            axis.axhspan(100 * found.low, 100 * found.high, color="#56b4e9", alpha=0.3)
        axis.axhline(100 * found.difference, color="black", linewidth=1.2, label="mean, 95 %")
        axis.axhline(0, color="black", linewidth=0.6, linestyle=":")
        axis.set_ylim(-105, 105)
        axis.set_xlim(0.5, len(values) + 0.5)
        axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
        axis.yaxis.set_major_formatter(lambda value, _: _signed(value))
        axis.set_xlabel("problems, sorted by difference")
        axis.set_ylabel(f"accuracy of {second} − {first}, points")
        figure.legend(loc="outside upper center", ncol=4, frameon=False, fontsize=9)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
        return file.getvalue()
    finally:
        pyplot.close(figure)


def _signed(value: float) -> str:
    return f"{value:+.0f}".replace("-", "−") if value else "0"
