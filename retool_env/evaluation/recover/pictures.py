"""Pictures of the benchmark as PNG bytes: heat map, dose curves, recovery, outcome curves."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from retool_env.errors import MissingPackage
from retool_env.faults import KINDS

Results = Mapping[str, Any]
"""The content of a `results.json`."""

STATUSES = {
    **{"right": "#2a9d5c", "wrong answer": "#d1495b", "gave up": "#edae49"},
    **{"cut": "#8d99ae", "going on": "#d7e3f4"},
}
"""The states of an outcome curve, each with its colour."""

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


@contextmanager
def _panels(pictures: dict[str, bytes], name: str, count: int, **options: Any) -> Iterator[Any]:
    """Draws panels, up to four in a row, and adds their PNG bytes to the pictures at the end."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackage(
            f"{error}: to draw pictures, pip install 'retool-env[report]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(rows, columns, squeeze=False, layout="constrained", **options)
    try:
        for axis in axes.flat[count:]:
            axis.set_axis_off()
        yield axes.flat[:count]
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
        pictures[name] = file.getvalue()
    finally:
        pyplot.close(figure)


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
        _heat_map(pictures, by_model, kinds)
    if any(f"fault/{kind}" in figures for figures in by_model.values() for kind in kinds):
        _recovery(pictures, by_model, kinds)
    if any("dose/0/accuracy" in figures for figures in by_model.values()):
        _dose(pictures, by_model)
    for number, (title, figures) in enumerate(by_model.items(), 1):
        _outcomes(pictures, f"outcomes-{number}", title, figures)
    return pictures


def _heat_map(
    pictures: dict[str, bytes], by_model: Mapping[str, Any], kinds: Sequence[str]
) -> None:
    """Faults x models: the colour is the effect; the text has the effect and the ratio."""
    effects = [
        (kind, [figures.get(f"effect/{kind}", {}).get("mean") for figures in by_model.values()])
        for kind in kinds
    ]
    rows = [(kind, some) for kind, some in effects if any(mean is not None for mean in some)]
    size = (2.6 + 1.5 * len(by_model), 1.2 + 0.32 * len(rows))
    with _panels(pictures, "heat-map", 1, figsize=size) as (axis,):
        numbers = [[float("nan") if x is None else x for x in some] for _, some in rows]
        image = axis.imshow(numbers, vmin=-1, vmax=1, cmap="RdBu", aspect="auto")
        for y, (kind, some) in enumerate(rows):
            for x, figures in enumerate(by_model.values()):
                colour = "white" if abs(some[x] or 0.0) > 0.6 else "black"
                text = _cell(figures, kind)
                axis.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
        axis.set_yticks(range(len(rows)), [kind for kind, _ in rows], fontsize=9)
        axis.set_xticks(range(len(by_model)), [_short(name) for name in by_model], fontsize=9)
        axis.xaxis.tick_top()
        bar = axis.figure.colorbar(image, ax=axis, ticks=[-1, -0.5, 0, 0.5, 1], shrink=0.8)
        bar.ax.set_yticklabels(["−100", "−50", "0", "+50", "+100"], fontsize=8)


def _short(title: str, most: int = 18) -> str:
    """A title in lines that fit a column."""
    return "\n".join(title[i : i + most] for i in range(0, len(title), most))


def _cell(figures: Mapping[str, Any], kind: str) -> str:
    effect, ratio = (figures.get(f"{name}/{kind}") for name in ("effect", "ratio"))
    if effect is None:
        return "–"
    points = f"{round(100 * effect['mean']) + 0:+d}".replace("-", "−")
    return points + (f"  (×{ratio['mean']:.2f})" if ratio else "")


def _dose(pictures: dict[str, bytes], by_model: Mapping[str, Any]) -> None:
    """Accuracy and calls against the rate of faults."""
    with _panels(pictures, "dose", 2, figsize=(9, 3.6)) as axes:
        for axis, name in zip(axes, ("accuracy", "calls"), strict=True):
            for title, figures in by_model.items():
                points = sorted(
                    (float(key.split("/")[1]), figure)
                    for key, figure in figures.items()
                    if re.fullmatch(rf"dose/[\d.]+/{name}", key)
                )
                _line(axis, points, title)
            axis.set(xlabel="rate of faults", ylabel="right" if name == "accuracy" else "calls")
            axis.set_ylim(bottom=0, top=1 if name == "accuracy" else None)
        axes[0].legend(fontsize=7)


def _line(axis: Any, points: Sequence[tuple[float, Mapping[str, Any]]], title: str) -> None:
    """A curve with its intervals, where they are bounded."""
    xs, means = [x for x, _ in points], [figure["mean"] for _, figure in points]
    lows, highs = (
        [figure["mean"] if figure[bound] is None else figure[bound] for _, figure in points]
        for bound in ("low", "high")
    )
    below = [mean - low for mean, low in zip(means, lows, strict=True)]
    above = [high - mean for mean, high in zip(means, highs, strict=True)]
    axis.errorbar(xs, means, yerr=[below, above], marker="o", capsize=3, label=title)


def _recovery(
    pictures: dict[str, bytes], by_model: Mapping[str, Any], kinds: Sequence[str]
) -> None:
    """Accuracy after a fault against accuracy with the true result, a point a kind."""
    with _panels(pictures, "recovery", 1, figsize=(5.2, 4.6)) as (axis,):
        axis.plot([0, 1], [0, 1], color="lightgray", linewidth=1)
        for title, figures in by_model.items():
            pairs = [
                (figures[f"control/{kind}"]["mean"], figures[f"fault/{kind}"]["mean"], kind)
                for kind in kinds
                if f"control/{kind}" in figures and f"fault/{kind}" in figures
            ]
            axis.scatter([c for c, _, _ in pairs], [f for _, f, _ in pairs], s=18, label=title)
            for (c, f), names in _at_one_point(pairs).items():
                axis.annotate(names, (c, f), (4, 3), textcoords="offset points", fontsize=7)
        axis.set(xlabel="right with the true result", ylabel="right after the fault")
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.legend(fontsize=8, loc="upper left")


def _at_one_point(pairs: Sequence[tuple[float, float, str]]) -> dict[tuple[float, float], str]:
    """The label of each point; kinds whose labels would overlap share a point."""
    groups: dict[tuple[float, float], list[tuple[float, float, str]]] = {}
    for pair in pairs:
        near = (round(pair[0] / 0.12), round(pair[1] / 0.035))
        groups.setdefault(near, []).append(pair)
    labels = {}
    for some in groups.values():
        names = [kind for _, _, kind in some]
        more = f" + {len(names) - 2}" if len(names) > 2 else ""
        labels[max((c, f) for c, f, _ in some)] = ", ".join(names[:2]) + more
    return labels


def _outcomes(
    pictures: dict[str, bytes], name: str, title: str, figures: Mapping[str, Any]
) -> None:
    """Shares of right, wrong, given up, cut and unfinished continuations by further calls."""
    curves: dict[str, dict[int, dict[str, float]]] = {}
    sizes: dict[str, int] = {}
    for key, figure in figures.items():
        if match := _OUTCOME.fullmatch(key):
            arm, call, status = match.groups()
            curves.setdefault(arm, {}).setdefault(int(call), {})[status] = figure["mean"]
            sizes[arm] = figure["count"]
    if not curves:
        return
    size = (2.3 * min(len(curves), _COLUMNS) + 0.6, 2.1 * -(-len(curves) // _COLUMNS) + 0.6)
    with _panels(pictures, name, len(curves), figsize=size, sharey=True) as axes:
        for axis, (arm, by_call) in zip(axes, curves.items(), strict=True):
            calls = sorted(by_call)
            bottom = [0.0] * len(calls)
            for status, colour in STATUSES.items():
                heights = [by_call[call].get(status, 0.0) for call in calls]
                axis.bar(calls, heights, bottom=bottom, color=colour, label=status)
                bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
            axis.set_title(f"{arm} ({sizes[arm]})", fontsize=9)
            axis.set_xlim(-0.6, max(calls[-1], 2) + 0.6)
            axis.set_xticks(calls)
        figure = axes[0].figure
        figure.supxlabel("further calls", fontsize=9)
        figure.supylabel(f"share ({title})", fontsize=9)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=9)
