"""Pictures of the benchmark as PNG bytes: heat map, dose curves, recovery, outcome curves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from retool_env.faults import KINDS
from retool_env.pictures import (
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    curve,
    look,
    picture,
    share_axis,
)

Results = Mapping[str, Any]
"""The content of a `results.json`."""

STATUSES = {
    "right": (GREEN, ""),
    "wrong answer": (VERMILION, "///"),
    "gave up": (ORANGE, "..."),
    "cut": (GREY, "xxx"),
    "going on": ("white", ""),
}
"""The states of an outcome curve, each with its colour and its hatching."""

_COLUMNS = 4
"""The most panels in a row."""

_OUTCOME = re.compile(r"outcome/(\w+)/(\d+)/(.+)")


def shown_figures(results: Results) -> dict[str, Mapping[str, Any]]:
    """The figures that are shown and have a value, by key."""
    return {
        figure["key"]: figure
        for figure in results["figures"]
        if figure.get("shown", True) and figure["mean"] is not None
    }


def title_of(results: Results) -> str:
    """The title of the model."""
    return str(results["model"]["title"])


def titles_of(results: Sequence[Results]) -> list[str]:
    """The titles of several models, numbered from 1 where there is more than one model."""
    if len(results) == 1:
        return [title_of(results[0])]
    return [f"{number}. {title_of(one)}" for number, one in enumerate(results, 1)]


def kinds_of(results: Sequence[Results]) -> list[str]:
    """The kinds of faults in several results, in the order of `KINDS`."""
    present = {kind for one in results for kind in one["kinds"]}
    return [kind for kind in KINDS if kind in present]


def draw(results: Sequence[Results]) -> dict[str, bytes]:
    """The pictures by name; a picture without a figure is left out.

    Args:
        results: The results of each model.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    pictures: dict[str, bytes] = {}
    by_model = dict(zip(titles_of(results), map(shown_figures, results), strict=True))
    kinds = kinds_of(results)
    if any(f"effect/{kind}" in figures for figures in by_model.values() for kind in kinds):
        pictures["heat-map"] = _heat_map(by_model, kinds)
    if any(f"fault/{kind}" in figures for figures in by_model.values() for kind in kinds):
        pictures["recovery"] = _recovery(by_model, kinds)
    if any("dose/0/accuracy" in figures for figures in by_model.values()):
        pictures["dose"] = _dose(by_model)
    for number, (title, figures) in enumerate(by_model.items(), 1):
        if data := _outcomes(title, figures):
            pictures[f"outcomes-{number}"] = data
    return pictures


def _heat_map(by_model: Mapping[str, Any], kinds: Sequence[str]) -> bytes:
    """Faults x models: the colour is the effect; the text has the effect and the ratio."""
    effects = [
        (kind, [figures.get(f"effect/{kind}", {}).get("mean") for figures in by_model.values()])
        for kind in kinds
    ]
    rows = [(kind, some) for kind, some in effects if any(mean is not None for mean in some)]
    size = (2.8 + 1.6 * len(by_model), 1.2 + 0.32 * len(rows))
    with picture(size=size) as made:
        axis = made.axes[0, 0]
        axis.grid(False)
        numbers = [[float("nan") if x is None else x for x in some] for _, some in rows]
        image = axis.imshow(numbers, vmin=-1, vmax=1, cmap="RdBu", aspect="auto")
        for y, (kind, some) in enumerate(rows):
            for x, figures in enumerate(by_model.values()):
                colour = "white" if abs(some[x] or 0.0) > 0.6 else "black"
                text = _cell(figures, kind)
                axis.text(x, y, text, ha="center", va="center", fontsize=8.5, color=colour)
        axis.set_yticks(range(len(rows)), [kind for kind, _ in rows], fontsize=9)
        axis.set_xticks(range(len(by_model)), [_short(name) for name in by_model], fontsize=9)
        axis.xaxis.tick_top()
        bar = made.figure.colorbar(image, ax=axis, ticks=[-1, -0.5, 0, 0.5, 1], shrink=0.8)
        bar.ax.set_yticklabels(["−100", "−50", "0", "+50", "+100"])
        bar.set_label("effect in points")
    return made.png


def _short(title: str, most: int = 18) -> str:
    """A title in lines that fit a column."""
    return "\n".join(title[i : i + most] for i in range(0, len(title), most))


def _cell(figures: Mapping[str, Any], kind: str) -> str:
    effect, ratio = (figures.get(f"{name}/{kind}") for name in ("effect", "ratio"))
    if effect is None:
        return "–"
    points = f"{round(100 * effect['mean']) + 0:+d}".replace("-", "−")
    return points + (f"  (×{ratio['mean']:.2f})" if ratio else "")


def _dose(by_model: Mapping[str, Any]) -> bytes:
    """Accuracy and calls against the rate of faults."""
    with picture(1, 2, (7.2, 3.4)) as made:
        for axis, name in zip(made.axes[0], ("accuracy", "calls"), strict=True):
            for number, (title, figures) in enumerate(by_model.items()):
                points = sorted(
                    (float(key.split("/")[1]), figure["mean"], figure["low"], figure["high"])
                    for key, figure in figures.items()
                    if re.fullmatch(rf"dose/[\d.]+/{name}", key)
                )
                curve(axis, points, number, title)
            axis.set(xlabel="rate of faults", title={"accuracy": "right", "calls": "calls"}[name])
        share_axis(made.axes[0, 0].yaxis)
        made.axes[0, 1].set_ylim(bottom=0)
        made.legend()
    return made.png


def _recovery(by_model: Mapping[str, Any], kinds: Sequence[str]) -> bytes:
    """Accuracy with the true result and after the fault, joined by a line; a row for each kind."""
    rows = [
        (kind, number, figures[f"control/{kind}"]["mean"], figures[f"fault/{kind}"]["mean"])
        for kind in kinds
        for number, figures in enumerate(by_model.values())
        if f"control/{kind}" in figures and f"fault/{kind}" in figures
    ]
    names = list(dict.fromkeys(kind for kind, *_ in rows))
    step = 0.7 / len(by_model)
    size = (6.4, 1.3 + max(0.3, 0.16 * len(by_model)) * len(names))
    with picture(size=size) as made:
        axis = made.axes[0, 0]
        for model, title in enumerate(by_model):
            some = [row for row in rows if row[1] == model]
            ys = [names.index(kind) + (model - (len(by_model) - 1) / 2) * step for kind, *_ in some]
            style = look(model) | {"linestyle": ""}
            controls, faults = [row[2] for row in some], [row[3] for row in some]
            axis.hlines(ys, controls, faults, color=style["color"], linewidth=1, alpha=0.6)
            label = f"{title}: with the true result"
            axis.plot(controls, ys, markerfacecolor="white", label=label, **style)
            axis.plot(faults, ys, label=f"{title}: after the fault", **style)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)
        share_axis(axis.xaxis)
        axis.set_xlabel("right")
        made.legend()
    return made.png


def _outcomes(title: str, figures: Mapping[str, Any]) -> bytes:
    """Shares of right, wrong, given up, cut and unfinished continuations by further calls."""
    curves: dict[str, dict[int, dict[str, float]]] = {}
    sizes: dict[str, int] = {}
    for key, figure in figures.items():
        if match := _OUTCOME.fullmatch(key):
            arm, call, status = match.groups()
            curves.setdefault(arm, {}).setdefault(int(call), {})[status] = figure["mean"]
            sizes[arm] = figure["count"]
    if not curves:
        return b""
    columns = min(len(curves), _COLUMNS)
    rows = -(-len(curves) // columns)
    with picture(rows, columns, (2 * columns + 0.6, 1.9 * rows + 0.9), sharey=True) as made:
        for axis in made.axes.flat[len(curves) :]:
            axis.set_axis_off()
        for axis, (arm, by_call) in zip(made.axes.flat, curves.items(), strict=False):
            calls = sorted(by_call)
            bottom = [0.0] * len(calls)
            for status, (colour, hatch) in STATUSES.items():
                heights = [by_call[call].get(status, 0.0) for call in calls]
                style = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.4}
                axis.bar(calls, heights, bottom=bottom, label=status, **style)
                bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
            share_axis(axis.yaxis)
            axis.set_ylim(0, 1)
            axis.set_title(f"{arm} ({sizes[arm]})")
            axis.set_xlim(-0.6, max(calls[-1], 2) + 0.6)
            axis.set_xticks(calls)
        for axis in made.axes[-1]:
            axis.set_xlabel("further calls")
        made.figure.supylabel(f"share ({title})", fontsize=9)
        made.legend()
    return made.png
