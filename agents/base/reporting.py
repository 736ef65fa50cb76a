"""Reporting: figures also go to TensorBoard, trackio or W&B, where the setting `report_to` says so.

TRL's trainers report themselves (`report_to` of its configurations); what has a loop of its own reports through accelerate's
trackers, under the same names and steps. `metrics.jsonl` is always written.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from transformers.integrations.integration_utils import default_logdir

from agents.base.settings import SettingsError, nearest
from agents.base.sharding import processes

PROJECT = "retool-env"
"""The project's name on trackio and, unless WANDB_PROJECT says otherwise, on W&B."""

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Of each, the packages of which one must be installed."""


def check_report_to(setting: str | Sequence[str]) -> list[str]:
    """The names in the setting `report_to`.

    Raises:
        SettingsError: If one is unknown, or its package is not installed.
    """
    names = [setting] if isinstance(setting, str) else list(setting)
    names = [name for name in names if name != "none"]
    for name in names:
        if not isinstance(name, str) or name not in PACKAGES:
            raise SettingsError(
                f"report_to: there is no {name!r}{nearest(str(name), PACKAGES)}; there are none, {', '.join(PACKAGES)}"
            )
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise SettingsError(
                f"report_to={name} needs a package that is not installed: pip install {PACKAGES[name][0]}"
            )
    if "wandb" in names:
        os.environ.setdefault("WANDB_PROJECT", PROJECT)
    return names


class Reporter:
    """Reports a run's figures through accelerate's trackers. Of several processes the first one does.

    Args:
        report_to: See `check_report_to`.
        name: The run's.
        folder: Where TensorBoard's files go, as those of TRL's trainers do: into `runs/` and a folder a start.
        settings: The run's, noted with its figures.
    """

    def __init__(
        self,
        report_to: str | Sequence[str],
        name: str,
        folder: Path,
        settings: Mapping[str, Any],
    ) -> None:
        self._trackers = []
        names = check_report_to(report_to)
        for each in names if processes().is_main_process else ():
            if each == "tensorboard":
                tracker = LOGGER_TYPE_TO_CLASS[each](".", folder / default_logdir())
            else:
                project = os.environ.get("WANDB_PROJECT", PROJECT) if each == "wandb" else PROJECT
                tracker = LOGGER_TYPE_TO_CLASS[each](project, name=name)
            tracker.start()
            if each != "tensorboard":  # whose table of settings takes numbers and texts alone
                tracker.store_init_configuration(dict(settings))
            self._trackers.append(tracker)

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Report a step's figures."""
        for tracker in self._trackers:
            tracker.log(dict(figures), step=step)

    def close(self) -> None:
        """Let the trackers write what they hold."""
        for tracker in self._trackers:
            tracker.finish()
