"""Curves: the picture of a run's learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = {
    "env/accuracy": "accuracy of rollouts",
    "env/code_ratio": "share of responses with code",
    "completions/mean_length": "tokens the model wrote",
    "mean_token_accuracy": "share of tokens predicted right",
}
"""The logged figures that are drawn, each in a panel with this title."""

BESIDE = {"env/accuracy": "eval/accuracy"}
"""For a figure of `PANELS`, the figure of evaluations that is drawn beside it, as dots."""

HELD_OUT = "held-out"
"""The name of the accuracy on held-out problems, on the board and in legends."""

SHOWN = {
    "reward": "reward",
    "env/accuracy": "accuracy",
    "eval/accuracy": HELD_OUT,
    "env/code_ratio": "with code",
    "env/call_pass_rate": "calls ok",
    "completions/mean_length": "tokens",
    "loss": "loss",
    "mean_token_accuracy": "tokens right",
    "kl": "KL",
    "offpolicy/kl": "off-policy KL",
    "rollout/seconds": "rollout s",
    "verified": "verified",
}
"""The logged figures that the progress board shows, each under this name."""

WINDOW = 5
"""The number of steps of the moving mean, which is drawn over the faint single steps."""


def draw_curves(arms: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw the learning curves of one or several runs against optimizer steps.

    If no record has a figure of `PANELS`, no file is written.

    Args:
        arms: The records of each run's `metrics.jsonl`. The keys are the names in the legend.
        path: The PNG file.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    logged = {key for records in arms.values() for record in records for key in record}
    panels = {k: title for k, title in PANELS.items() if not logged.isdisjoint((k, BESIDE.get(k)))}
    if not panels:
        return
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), squeeze=False)
    for axis, (key, title) in zip(axes[0], panels.items(), strict=True):
        for number, (name, records) in enumerate(arms.items()):
            if beside := _points(records, BESIDE.get(key)):
                label = f"{name}, {HELD_OUT}"
                axis.plot(*zip(*beside, strict=True), "o--", color=f"C{number}", label=label)
            if not (points := _points(records, key)):
                continue
            steps, values = zip(*points, strict=True)
            mean = [
                sum(values[max(0, i - WINDOW + 1) : i + 1]) / min(i + 1, WINDOW)
                for i in range(len(values))
            ]
            axis.plot(steps, values, color=f"C{number}", alpha=0.25)
            axis.plot(steps, mean, color=f"C{number}", label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("optimizer step")
        if "length" not in key:
            axis.set_ylim(-0.03, 1.03)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    temporary = path.with_name("part-" + path.name)
    figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
    temporary.replace(path)


def _points(records: Sequence[Mapping[str, Any]], key: str | None) -> list[tuple[int, float]]:
    """The steps and the values of the records that have a figure."""
    return [(r["step"], r[key]) for r in records if key and r.get(key) is not None]
