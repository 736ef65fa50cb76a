"""Reporting: the setting `report_to` sends figures to TensorBoard, trackio or W&B.

TRL's trainers report by themselves (`report_to` of their configurations). Algorithms with a
training loop of their own report through accelerate's trackers, under the same names and steps.
`metrics.jsonl` is always written.
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
"""The project's name on trackio and W&B. The variable WANDB_PROJECT changes the name on W&B."""

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""For each tracker, its packages; one of them must be installed."""


def check_report_to(setting: str | Sequence[str]) -> list[str]:
    """The names of the trackers in the setting `report_to`; `none` is left out.

    Args:
        setting: The setting `report_to`.

    Raises:
        SettingsError: If a tracker is unknown, or its package is not installed.
    """
    names = [setting] if isinstance(setting, str) else list(setting)
    names = [name for name in names if name != "none"]
    for name in names:
        if not isinstance(name, str) or name not in PACKAGES:
            raise SettingsError(
                f"report_to: {name!r} is unknown{nearest(str(name), PACKAGES)}; "
                f"choose from none, {', '.join(PACKAGES)}"
            )
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise SettingsError(
                f"report_to={name} needs a package that is not installed: "
                f"pip install {PACKAGES[name][0]}"
            )
    if "wandb" in names:
        os.environ.setdefault("WANDB_PROJECT", PROJECT)
    return names


class Reporter:
    """Reports a run's figures through accelerate's trackers, from the first process only.

    Args:
        report_to: The setting `report_to`; see `check_report_to`.
        name: The run's name.
        folder: The folder of TensorBoard's files. Each start of the run has a folder below `runs/`
            there, as with TRL's trainers.
        settings: The run's settings, which trackio and W&B store with the figures.

    Raises:
        SettingsError: If a tracker is unknown, or its package is not installed.
    """

    def __init__(
        self, report_to: str | Sequence[str], name: str, folder: Path, settings: Mapping[str, Any]
    ) -> None:
        self._trackers = []
        kinds = check_report_to(report_to)
        for kind in kinds if processes().is_main_process else ():
            if kind == "tensorboard":
                tracker = LOGGER_TYPE_TO_CLASS[kind](".", folder / default_logdir())
            else:
                project = os.environ.get("WANDB_PROJECT", PROJECT) if kind == "wandb" else PROJECT
                tracker = LOGGER_TYPE_TO_CLASS[kind](project, name=name)
            tracker.start()
            if kind != "tensorboard":  # its table of settings only holds numbers and texts
                tracker.store_init_configuration(dict(settings))
            self._trackers.append(tracker)

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Report the figures of an optimizer step."""
        for tracker in self._trackers:
            tracker.log(dict(figures), step=step)

    def close(self) -> None:
        """Write the pending figures and close the trackers."""
        for tracker in self._trackers:
            tracker.finish()
