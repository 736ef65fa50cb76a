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

SHOWN = {
    "reward": "reward",
    "env/accuracy": "accuracy",
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
    panels = {key: title for key, title in PANELS.items() if key in logged}
    if not panels:
        return
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), squeeze=False)
    for axis, (key, title) in zip(axes[0], panels.items(), strict=True):
        for number, (name, records) in enumerate(arms.items()):
            points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
            if not points:
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
