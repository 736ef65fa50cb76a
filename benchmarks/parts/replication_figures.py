"""The figures of `benchmarks.replication`, drawn and as a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the learning curves: a row an algorithm; against steps, tokens and seconds; each seed, and their mean.

    Args:
        found: As `report_of` returns it.
        path: Of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    axes_of = {"steps": "optimizer steps", "tokens": "tokens sampled", "seconds": "seconds"}
    figure, axes = pyplot.subplots(
        len(found), len(axes_of), figsize=(11, 2.9 * len(found)), sharey=True, squeeze=False
    )
    for row, (algorithm, seeds) in zip(axes, found.items(), strict=True):
        for axis, (key, name) in zip(row, axes_of.items(), strict=True):
            for color, arm in enumerate(next(iter(seeds.values()))["arms"]):
                curves = [each["arms"][arm]["curve"] for each in seeds.values()]
                for curve in curves:
                    axis.plot(curve[key], curve["accuracy"], color=f"C{color}", alpha=0.3, lw=1)
                axis.xaxis.set_major_formatter(EngFormatter())
                mean = [np.mean([c[k] for c in curves], axis=0) for k in (key, "accuracy")]
                axis.plot(*mean, color=f"C{color}", label=arm)
            axis.set_xlabel(name)
            axis.set_ylim(0, 1.02)
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"{algorithm}: held-out accuracy")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


PANELS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "share of responses with code": lambda each: each["code_ratio"],
    "calls that ran": lambda each: each["call_pass_rate"],
    "lines of code a response": lambda each: each["code_lines"],
    "tokens of a response": lambda each: each["response_tokens"],
    "programs that ran": lambda each: each["calls_ok"],
    "last program ran, of right responses": lambda each: _mean(each["last_call_ok_right"]),
    "last program ran, of wrong responses": lambda each: _mean(each["last_call_ok_wrong"]),
    "where the first code begins (0 to 1)": lambda each: each["first_call_at"],
}
"""The paper's metrics of tool use (section 3.3), from a summary's JSON values."""


def _mean(estimate: dict[str, Any]) -> float | None:
    return None if estimate["interval"] is None else estimate["interval"]["mean"]


def draw_tools(found: dict[str, Any], path: Path) -> None:
    """Draw how the models use their interpreter along training, on the held-out problems: a line an algorithm, the mean of its seeds.

    Args:
        found: As `report_of` returns it.
        path: Of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(PANELS) // 2, figsize=(13, 5.2))
    for axis, (title, value) in zip(axes.flat, PANELS.items(), strict=True):
        for algorithm, seeds in found.items():
            arms = [each["arms"]["interpreter"] for each in seeds.values()]
            steps = arms[0]["curve"]["steps"]
            values = np.array([[value(each) for each in arm["along"]] for arm in arms], float)
            known = ~np.isnan(values).all(0)
            axis.plot(np.array(steps)[known], np.nanmean(values[:, known], 0), label=algorithm)
        axis.set_title(title, fontsize=9)
        highest = max(np.max(line.get_ydata(), initial=0.0) for line in axis.lines)
        if highest <= 1:  # a share
            axis.set_ylim(-0.03, 1.03)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("optimizer steps", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def table(found: dict[str, Any]) -> str:
    """Whether the comparisons say anything, and what they say, as Markdown."""
    lines = [
        "| | text only: start | gain | late gain | says anything | interpreter: start, best | text only: best | "
        "steps to 25 / 50 / 75 % | to text's best | tokens | seconds | area |",
        "|" + "---|" * 12,
    ]
    for algorithm, seeds in found.items():
        for seed, each in seeds.items():
            check, ratios = each["calibration"], each["step_ratios"]
            ours, theirs = (each["arms"][arm]["curve"]["accuracy"] for arm in each["arms"])
            steps = " / ".join(_text(ratios[level]) for level in ("25%", "50%", "75%"))
            areas = " vs ".join(f"{each['area'][arm]:.3f}" for arm in each["arms"])
            lines.append(
                f"| {algorithm}, seed {seed} | {check['start']:.1%} | {check['gain']:+.1%} | {check['late_gain']:+.1%} | "
                f"{'yes' if check['valid'] else '**no**'} | {ours[0]:.1%}, {max(ours):.1%} | {max(theirs):.1%} | {steps} | "
                f"**{_text(ratios['best'])}** | {_text(each['tokens_ratio'])} | {_text(each['seconds_ratio'])} | {areas} |"
            )
    return "\n".join(lines)


def _text(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"
