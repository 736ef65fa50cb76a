"""The pictures of `benchmarks.recovery`: recovery along a training, and false values."""

from __future__ import annotations

from typing import Any

from benchmarks.parts.study_figures import counted, kinds_of, pairs_of, recovery
from benchmarks.parts.study_plan import SEEDS
from benchmarks.parts.study_values import DISTANCES
from retool_env.pictures import Point, curve, look, picture, share_axis, whole_numbers

Results = dict[str, dict[str, Any]]
"""The results of the parts that are done, by the name of the part."""


OBSERVED = {"next_call_ok": "failed calls whose next call ran", "accuracy": "right after failure"}
"""The observed figures of the picture, and their names in it."""
CAUSAL = {"seen kinds": True, "held-out kinds": False}
"""The groups of kinds in the picture, and whether training may use them."""
Panel = dict[str, list[Point]]
"""The curves of a panel, by their names in the legend."""


def along_run(results: Results, run: str, seed: int) -> list[tuple[int, dict[str, Any]]]:
    """The evaluations of a run on the problems along it: before it, half way and at its end.

    Args:
        results: The results.
        run: A run of RL that is done.
        seed: A seed of which the cold start is done.

    Returns:
        The steps and the evaluations.
    """
    part = results[f"{run}-{seed}"]
    end = int(list(part["training"])[-1])
    before = results[f"cold-{seed}"]["evaluations"]["end"]
    return [(0, before), *zip((end // 2, end), _named(part, "half", "end"), strict=True)]


def _named(part: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    return [part["evaluations"][name] for name in names]


def observed_and_causal(results: Results) -> dict[str, list[Panel]]:
    """The curves of the picture: the observed and the causal recovery along GRPO, by seed.

    Args:
        results: The results.

    Returns:
        Three panels for each seed. The first has the observed figures of the training rollouts, by
        thirds. The second has the recovery ratios of the seen and of the held-out kinds along the
        run, and the third has the ratios of the whole suite before and after it. A kind is in a
        curve if it counts at each of its points.
    """
    made: dict[str, list[Panel]] = {}
    for seed in SEEDS:
        part, cold = results.get(f"grpo-{seed}"), results.get(f"cold-{seed}")
        if part is None or cold is None:
            continue
        along = along_run(results, "grpo", seed)
        wholes = [*_named(cold, "whole"), *_named(part, "whole")]
        whole = [(0, wholes[0]), (along[-1][0], wholes[1])]
        made[f"seed {seed}"] = [_observed(part["training"]), _causal(along), _causal(whole)]
    return made


def _observed(training: dict[str, Any]) -> Panel:
    made: Panel = {name: [] for name in OBSERVED.values()}
    begin = 0
    for last, summary in training.items():
        for key, name in OBSERVED.items():
            interval = summary["recovery"][key]["interval"]
            if interval is not None:
                bounds = interval["mean"], interval["low"], interval["high"]
                made[name].append(((begin + int(last)) / 2, *bounds))
        begin = int(last)
    return made


def _causal(evaluations: list[tuple[int, dict[str, Any]]]) -> Panel:
    made: Panel = {}
    for name, seen in CAUSAL.items():
        kinds = kinds_of(seen)
        common = counted(*(pairs_of([each], kinds) for _, each in evaluations))
        ratios = ((step, recovery([each], common)) for step, each in evaluations if common)
        made[name] = [
            (step, ratio.mean, ratio.low, ratio.high)
            for step, ratio in ratios
            if ratio.mean is not None
        ]
    return made


def draw(series: dict[str, list[Panel]]) -> bytes:
    """Draw the observed and the causal recovery side by side; returns the PNG.

    Args:
        series: The result of `observed_and_causal`.
    """
    titles = ("observed", "causal, staged problems", "causal, whole suite")
    with picture(len(series), 3, (9.6, 2.5 * len(series) + 0.4), sharey=True, sharex=True) as made:
        for row, (name, panels) in zip(made.axes, series.items(), strict=True):
            first = 0
            for axis, panel, title in zip(row, panels, titles, strict=True):
                for number, (label, some) in enumerate(panel.items(), first):
                    curve(axis, some, number, label)
                if not any(panel.values()):
                    text = "too few problems are right\nfor the ratio of any kind"
                    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
                axis.set_title(title)
                first = len(OBSERVED)  # the causal panels have the same curves
            row[0].set_ylabel(name)
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
            row[0].set_ylabel("points above the true value")
        for axis in made.axes[-1]:
            axis.set_xlabel("false value")
        made.legend()
    return made.png


def _draw_values(axis: Any, part: dict[str, Any], key: str) -> None:
    models = part["values"].items()
    for number, (model, measured) in enumerate(models):
        means = [measured["figures"][name][key] for name in DISTANCES]
        some = [(at, mean) for at, mean in enumerate(means) if mean["mean"] is not None]
        widths = [  # below and above; an unknown interval has none
            [
                0 if mean[bound] is None else 100 * abs(mean[bound] - mean["mean"])
                for _, mean in some
            ]
            for bound in ("low", "high")
        ]
        aside = 0.15 * (number - (len(models) - 1) / 2)  # so that intervals do not cover each other
        axis.errorbar(
            [at + aside for at, _ in some],
            [100 * mean["mean"] for _, mean in some],
            widths,
            label=model.rpartition("-")[0],
            **{**look(number), "linestyle": "none"},
        )
    axis.set_xticks(range(len(DISTANCES)), list(DISTANCES))
    title = {"noticed": "noticed", "contagion": "adopted"}[key]
    axis.set_title(f"{title}, seed {part['seed']}")
    axis.axhline(0, color="black", linewidth=0.6)
