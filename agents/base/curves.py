"""Curves: the file of a run's learning curves, and the figures that the board shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retool_env.training import curves
from retool_env.training.curves import HELD_OUT

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


def write_curves(arms: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Write the learning curves of one or several runs against optimizer steps.

    If no record has a figure that is drawn, no file is written.

    Args:
        arms: The records of each run's `metrics.jsonl`. The keys are the names in the legend.
        path: The PNG file.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if data := curves.draw_curves(arms):
        temporary = path.with_name("part-" + path.name)
        temporary.write_bytes(data)
        temporary.replace(path)
