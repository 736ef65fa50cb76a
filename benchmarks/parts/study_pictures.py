"""The pictures of `benchmarks.recovery`: recovery along a training, and false values."""

from __future__ import annotations

from typing import Any

from benchmarks.parts.study_figures import counted, kinds_of, pairs_of, recovery
from benchmarks.parts.study_plan import SEEDS
from benchmarks.parts.study_values import DISTANCES
from retool_env.pictures import Point, curve, picture, share_axis, whole_numbers

Results = dict[str, dict[str, Any]]
"""The results of the parts that are done, by the name of the part."""


def observed_and_causal(results: Results) -> dict[str, dict[str, list[Point]]]:
    """The points of the picture: the observed and the causal recovery along GRPO, by seed.

    Observed is the share of failed calls whose next call ran, in the rollouts of each third.
    Causal is the recovery ratio of the seen and of the held-out kinds along the run. A kind is
    in the ratio if it counts at each point of the run.

    Args:
        results: The results.
    """
    made: dict[str, dict[str, list[Point]]] = {}
    for seed in SEEDS:
        part, cold = results.get(f"grpo-{seed}"), results.get(f"cold-{seed}")
        if part is None or cold is None:
            continue
        thirds = [(int(last), summary) for last, summary in part["training"].items()]
        begins = [0, *(last for last, _ in thirds[:-1])]
        observed: list[Point] = []
        for begin, (last, summary) in zip(begins, thirds, strict=True):
            interval = summary["recovery"]["next_call_ok"]["interval"]
            if interval is not None:
                bounds = interval["mean"], interval["low"], interval["high"]
                observed.append(((begin + last) / 2, *bounds))
        end = thirds[-1][0]
        along = [
            (0, cold["evaluations"]["end"]),
            (end // 2, part["evaluations"]["half"]),
            (end, part["evaluations"]["end"]),
        ]
        series = {"failed calls whose next call ran": observed}
        for name, seen in (("seen kinds", True), ("held-out kinds", False)):
            kinds = kinds_of(seen)
            common = counted(*(pairs_of([each], kinds) for _, each in along))
            ratios = ((step, recovery([each], common)) for step, each in along if common)
            series[name] = [
                (step, ratio.mean, ratio.low, ratio.high)
                for step, ratio in ratios
                if ratio.mean is not None
            ]
        made[f"seed {seed}"] = series
    return made


def draw(series: dict[str, dict[str, list[Point]]]) -> bytes:
    """Draw the observed and the causal recovery side by side; returns the PNG.

    Args:
        series: The result of `observed_and_causal`.
    """
    with picture(len(series), 2, (7.2, 2.6 * len(series) + 0.3), sharey=True, sharex=True) as made:
        for row, (name, of_seed) in zip(made.axes, series.items(), strict=True):
            for number, (label, some) in enumerate(of_seed.items()):
                curve(row[min(number, 1)], some, number, label)
            if not any(some for _, some in list(of_seed.items())[1:]):
                text = "too few problems are right\nfor the ratio of any kind"
                row[1].text(0.5, 0.5, text, ha="center", va="center", transform=row[1].transAxes)
            row[0].set_title(f"observed, {name}")
            row[1].set_title(f"recovery ratio, {name}")
            share_axis(row[0].yaxis)
            whole_numbers(row[0].xaxis)
        for axis in made.axes[-1]:
            axis.set_xlabel("optimizer steps")
        made.legend()
    return made.png


def draw_values(results: Results) -> bytes:
    """Draw study D: noticed and adopted by the distance of the false value; returns the PNG.

    Each seed has a row of panels.

    Args:
        results: The results.
    """
    parts = [part for part in results.values() if "values" in part]
    with picture(len(parts), 2, (7.2, 2.6 * len(parts) + 0.4), sharey=True, sharex=True) as made:
        for row, part in zip(made.axes, parts, strict=True):
            for axis, key in zip(row, ("noticed", "contagion"), strict=True):
                _draw_values(axis, part, key)
            row[0].set_ylabel("share, minus the true value's")
        made.legend()
    return made.png


def _draw_values(axis: Any, part: dict[str, Any], key: str) -> None:
    for number, (model, measured) in enumerate(part["values"].items()):
        means = [measured["figures"][name][key] for name in DISTANCES]
        some: list[Point] = [
            (at, mean["mean"], mean["low"], mean["high"])
            for at, mean in enumerate(means)
            if mean["mean"] is not None
        ]
        curve(axis, some, number, model.rpartition("-")[0])
    axis.set_xticks(range(len(DISTANCES)), list(DISTANCES))
    title = {"noticed": "checked again", "contagion": "adopted"}[key]
    axis.set_title(f"{title}, seed {part['seed']}")
    axis.axhline(0, color="black", linewidth=0.6)
