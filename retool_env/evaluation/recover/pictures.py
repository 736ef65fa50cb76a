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
    **{"right": "tab:green", "wrong answer": "tab:red", "gave up": "tab:orange"},
    **{"cut": "tab:gray", "going on": "tab:blue"},
}
"""The states of an outcome curve, each with its colour."""

_COLUMNS = 6
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


def kinds_of(results: Sequence[Results]) -> list[str]:
    """The kinds of faults in several results, in the order of `KINDS`."""
    present = {kind for one in results for kind in one["kinds"]}
    return [kind for kind in KINDS if kind in present]


@contextmanager
def _panels(pictures: dict[str, bytes], name: str, count: int, **options: Any) -> Iterator[Any]:
    """Draws panels, up to six in a row, and adds their PNG bytes to the pictures at the end."""
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
    by_model = {f"{n}. {title_of(one)}": shown_figures(one) for n, one in enumerate(results, 1)}
    if len(results) == 1:
        by_model = {title_of(results[0]): shown_figures(results[0])}
    kinds = kinds_of(results)
    if any(f"effect/{kind}" in figures for figures in by_model.values() for kind in kinds):
        _heat_map(pictures, by_model, kinds)
        _recovery(pictures, by_model, kinds)
    if any("dose/0/accuracy" in figures for figures in by_model.values()):
        _dose(pictures, by_model)
    for number, (title, figures) in enumerate(by_model.items(), 1):
        _outcomes(pictures, f"outcomes-{number}", title, figures)
    return pictures


def _heat_map(
    pictures: dict[str, bytes], by_model: Mapping[str, Any], kinds: Sequence[str]
) -> None:
    """Models x faults: the colour is the effect; the text has the effect and the ratio."""
    size = (3 + 0.8 * len(kinds), 1.8 + 0.7 * len(by_model))
    with _panels(pictures, "heat-map", 1, figsize=size) as (axis,):
        rows = [
            [figures.get(f"effect/{kind}", {}).get("mean", float("nan")) for kind in kinds]
            for figures in by_model.values()
        ]
        image = axis.imshow(rows, vmin=-1, vmax=1, cmap="RdBu", aspect="auto")
        for y, figures in enumerate(by_model.values()):
            for x, kind in enumerate(kinds):
                text = _cell(figures, kind)
                dark = abs(figures.get(f"effect/{kind}", {}).get("mean", 0.0)) > 0.6
                colour = "white" if dark else "black"
                axis.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
        axis.set_xticks(range(len(kinds)), kinds, rotation=45, ha="right", fontsize=8)
        axis.set_yticks(range(len(by_model)), list(by_model), fontsize=8)
        axis.set_title("effect in points, below it the recovery ratio", fontsize=8)
        axis.figure.colorbar(image, ax=axis, shrink=0.8)


def _cell(figures: Mapping[str, Any], kind: str) -> str:
    effect, ratio = (figures.get(f"{name}/{kind}") for name in ("effect", "ratio"))
    if effect is None:
        return "–"
    return f"{100 * effect['mean']:+.0f}" + (f"\n{ratio['mean']:.2f}" if ratio else "\n–")


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
            axis.set(xlabel="rate of faults", ylabel=name)
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
            for c, f, kind in pairs:
                axis.annotate(kind, (c, f), fontsize=5)
        axis.set(xlabel="right with the true result", ylabel="right after the fault")
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.legend(fontsize=7)


def _outcomes(
    pictures: dict[str, bytes], name: str, title: str, figures: Mapping[str, Any]
) -> None:
    """Shares of right, wrong, given up, cut and unfinished continuations by further calls."""
    curves: dict[str, dict[int, dict[str, float]]] = {}
    for key, figure in figures.items():
        if match := _OUTCOME.fullmatch(key):
            arm, call, status = match.groups()
            curves.setdefault(arm, {}).setdefault(int(call), {})[status] = figure["mean"]
    if not curves:
        return
    size = (2.1 * min(len(curves), _COLUMNS) + 1, 2.6 * -(-len(curves) // _COLUMNS))
    with _panels(pictures, name, len(curves), figsize=size, sharey=True) as axes:
        for axis, (arm, by_call) in zip(axes, curves.items(), strict=True):
            calls = sorted(by_call)
            bottom = [0.0] * len(calls)
            for status, colour in STATUSES.items():
                heights = [by_call[call].get(status, 0.0) for call in calls]
                axis.bar(calls, heights, bottom=bottom, color=colour, label=status)
                bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
            axis.set_title(arm, fontsize=8)
            axis.set_xlabel("further calls", fontsize=7)
            axis.set_xticks(calls)
        axes[0].set_ylabel(f"share ({title})", fontsize=7)
        axes[-1].legend(fontsize=5)
