"""The task that a run takes over from the model that it goes on training.

A checkpoint says in `retool.json` what it was trained on. Its settings go over the preset's `env`, and the command line's
over both; where the run's environment is another one than the checkpoint's, only protocol and prompt are taken. A run that
goes on keeps the `env` it was started with, whatever the checkpoint says by then.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from agents.base.config import read_config
from agents.base.settings import SettingsError
from agents.base.sharding import processes
from retool_env.checkpoint_task import CheckpointTask, differences, read_task
from retool_env.key_values import merge


def inherit_task(
    values: Mapping[str, Any],
    asked: Mapping[str, Any],
    model: object,
    id: object,
    folder: Path,
    resume: bool,
    cure: str = "",
) -> dict[str, Any]:
    """The setting `env` of a run.

    Of several processes all call it; the first one reads, and speaks.

    Args:
        values: The setting as the preset has it.
        asked: What the command line says of it.
        model: The setting `model`, a folder or a Hub id.
        id: The environment's id, where the user has named one: on the command line, or by naming a preset.
        folder: Of the run.
        resume: Whether a run in that folder goes on.
        cure: What else can be done about a wrong `retool.json`, for the error.

    Raises:
        SettingsError: If the checkpoint's `retool.json` is wrong, or the run's `config.json` is damaged.
    """
    found: list[Any] = ["", None]
    if processes().is_main_process:
        try:
            if resume and os.path.lexists(folder / "config.json"):
                found[1] = _of_run(values, asked, folder)
            else:
                found[1] = _of_checkpoint(values, asked, model, id, cure)
        except (ValueError, OSError) as error:
            found[0] = str(error)
    broadcast_object_list(found)
    if found[0]:
        raise SettingsError(found[0])
    return found[1]


def _of_run(values: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The `env` that a run was started with, and what the command line says of it, which the run then accepts or not."""
    usual = merge(values, asked)
    started = read_config(folder)["settings"].get("env")
    if not isinstance(started, dict) or usual == started:
        return usual
    env = merge(started, asked)
    if differ := differences(usual, env, "the preset"):
        print(f"{folder} goes on with the environment it was started with: {differ}", flush=True)
    return env


def _of_checkpoint(
    values: Mapping[str, Any], asked: Mapping[str, Any], model: object, id: object, cure: str
) -> dict[str, Any]:
    usual = merge(values, asked)
    task = read_task(model, cure) if isinstance(model, str) else None
    if task is None:
        return usual
    id = id or task.id or usual.get("id")
    if not isinstance(id, str):
        return usual
    # Another environment's settings don't fit this one.
    preset = {} if id == task.id != values.get("id") else values
    taken = {"id": id, **task.settings_for(id)}
    env = merge({**preset, **taken}, asked)
    _say(task, str(model), id, preset, taken, asked)
    return env


def _say(
    task: CheckpointTask,
    model: str,
    id: str,
    preset: Mapping[str, Any],
    taken: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> None:
    """Say what is taken from a checkpoint, and what differs from it."""
    print(task.summary(id, model), flush=True)
    if warning := task.revision_warning(model):
        print(warning, flush=True)
    if differ := differences(preset, taken, "the preset"):
        print(f"it takes the place of the preset's settings: {differ}", flush=True)
    if differ := differences(taken, asked, "there"):
        print(f"the command line differs from it: {differ}", flush=True)
