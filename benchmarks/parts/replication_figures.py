"""Pictures and a table of the figures of `benchmarks.replication`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retool_env.pictures import look, picture, share_axis, whole_numbers


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the learning curves: a row per algorithm, with steps, tokens and seconds as x-axes.

    Thin lines are seeds; the bold line is their mean.

    Args:
        report: The result of `benchmarks.replication.report_of`.
        path: The PNG file.
    """
    from matplotlib.ticker import EngFormatter

    axes_of = {"steps": "optimizer steps", "tokens": "tokens sampled", "seconds": "seconds"}
    size = (7.5, 2.3 * len(report) + 0.4)
    with picture(len(report), len(axes_of), size, sharey=True) as made:
        for row, (algorithm, seeds) in zip(made.axes, report.items(), strict=True):
            for axis, (key, name) in zip(row, axes_of.items(), strict=True):
                for number, arm in enumerate(next(iter(seeds.values()))["arms"]):
                    curves = [seed["arms"][arm]["curve"] for seed in seeds.values()]
                    style = look(number) | {"marker": ""}
                    for curve in curves:
                        axis.plot(curve[key], curve["accuracy"], **style, alpha=0.3, lw=0.8)
                    mean = [np.mean([c[k] for c in curves], axis=0) for k in (key, "accuracy")]
                    axis.plot(*mean, **style, label=arm)
                whole_numbers(axis.xaxis)
                if key != "steps":
                    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
                axis.set_xlabel(name)
                share_axis(axis.yaxis)
            row[0].set_ylabel(f"{algorithm}: held-out accuracy")
        made.legend()
    path.write_bytes(made.png)


PANELS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "share of responses with code": lambda summary: summary["code_ratio"],
    "calls that ran": lambda summary: summary["call_pass_rate"],
    "lines of code a response": lambda summary: summary["code_lines"],
    "tokens of a response": lambda summary: summary["response_tokens"],
    "programs that ran": lambda summary: summary["calls_ok"],
    "last program ran, of right responses": lambda summary: _mean(summary["last_call_ok_right"]),
    "last program ran, of wrong responses": lambda summary: _mean(summary["last_call_ok_wrong"]),
    "start of the first code in the response": lambda summary: summary["first_call_at"],
}
"""The paper's metrics of tool use (section 3.3). Each function takes a summary's JSON values."""


def _mean(estimate: dict[str, Any]) -> float | None:
    return None if estimate["interval"] is None else estimate["interval"]["mean"]


def draw_tools(report: dict[str, Any], path: Path) -> None:
    """Draw how the models use the interpreter along training, on the held-out problems.

    Each algorithm has one line, the mean of its seeds.

    Args:
        report: The result of `benchmarks.replication.report_of`.
        path: The PNG file.
    """
    with picture(len(PANELS) // 2, 2, (7.5, 8)) as made:
        for axis, (title, value) in zip(made.axes.flat, PANELS.items(), strict=True):
            for number, (algorithm, seeds) in enumerate(report.items()):
                arms = [seed["arms"]["interpreter"] for seed in seeds.values()]
                steps = arms[0]["curve"]["steps"]
                values = np.array([[value(a) for a in arm["along"]] for arm in arms], float)
                known = ~np.isnan(values).all(0)
                points = np.array(steps)[known], np.nanmean(values[:, known], 0)
                axis.plot(*points, **look(number), label=algorithm)
            axis.set_title(title)
            highest = max(np.max(line.get_ydata(), initial=0.0) for line in axis.lines)
            if highest <= 1:
                share_axis(axis.yaxis)
            whole_numbers(axis.xaxis)
        for axis in made.axes[-1]:
            axis.set_xlabel("optimizer steps")
        made.legend()
    path.write_bytes(made.png)


def table(report: dict[str, Any]) -> str:
    """The comparisons as a Markdown table, with their validity."""
    lines = [
        "| | text only: start | gain | late gain | valid | interpreter: start, best | "
        "text only: best | steps to 25 / 50 / 75 % | to text's best | tokens | seconds | area |",
        "|" + "---|" * 12,
    ]
    for algorithm, seeds in report.items():
        for seed, figures in seeds.items():
            check, ratios = figures["calibration"], figures["step_ratios"]
            tool, text = (arm["curve"]["accuracy"] for arm in figures["arms"].values())
            cells = [
                f"{algorithm}, seed {seed}",
                *(f"{check['start']:.1%}", f"{check['gain']:+.1%}", f"{check['late_gain']:+.1%}"),
                "yes" if check["valid"] else "**no**",
                *(f"{tool[0]:.1%}, {max(tool):.1%}", f"{max(text):.1%}"),
                " / ".join(_text(ratios[level]) for level in ("25%", "50%", "75%")),
                f"**{_text(ratios['best'])}**",
                *(_text(figures[f"{unit}_ratio"]) for unit in ("tokens", "seconds")),
                " vs ".join(f"{figures['area'][arm]:.3f}" for arm in figures["arms"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _text(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"
