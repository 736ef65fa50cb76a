"""The picture of a comparison: the difference of each problem, sorted."""

from __future__ import annotations

from retool_env.evaluation.compare.comparison import Comparison
from retool_env.pictures import BLACK, BLUE, GREY, SKY, VERMILION, picture, whole_numbers


def draw(comparison: Comparison) -> bytes:
    """Draws the difference of each problem, from the lowest to the highest, as a PNG file.

    The mean difference and its interval are a line and a band.

    Args:
        comparison: The comparison. At least one problem counts.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    found = comparison.overall
    assert found is not None  # the caller leaves out a comparison without a problem
    values = sorted(100 * value for value in comparison.differences.values())
    first, second = comparison.first, comparison.second
    with picture(size=(7.2, 3.4)) as made:
        axis = made.axes[0, 0]
        for words, colour, marker, some in (
            (f"{second} better", BLUE, "^", [i for i, v in enumerate(values, 1) if v > 1e-9]),
            (f"{first} better", VERMILION, "v", [i for i, v in enumerate(values, 1) if v < -1e-9]),
            ("alike", GREY, "o", [i for i, v in enumerate(values, 1) if abs(v) <= 1e-9]),
        ):
            heights = [values[i - 1] for i in some]
            if some:
                axis.vlines(some, 0, heights, color=colour, linewidth=1)
            label = f"{words}: {len(some)}"
            axis.plot(some, heights, marker, color=colour, label=label)
        if found.low is not None and found.high is not None:
            axis.axhspan(100 * found.low, 100 * found.high, color=SKY, alpha=0.3)
        axis.axhline(100 * found.difference, color=BLACK, linewidth=1.2, label="mean, 95 %")
        axis.axhline(0, color=BLACK, linewidth=0.6, linestyle=":")
        axis.grid(axis="x", visible=False)
        axis.set(xlim=(0.5, len(values) + 0.5), ylim=(-105, 105))
        whole_numbers(axis.xaxis)
        axis.yaxis.set_major_formatter(lambda value, _: _signed(value))
        axis.set_xlabel("problems, sorted by difference")
        axis.set_ylabel(f"accuracy of {second} − {first}, points")
        made.legend()
    return made.png


def _signed(value: float) -> str:
    return f"{value:+.0f}".replace("-", "−") if value else "0"
