"""Inherited: a run takes the environment's settings from the model with which it starts.

A checkpoint records its task in `retool.json`. The task's settings override the preset's `env`, and
the command line overrides both. If the run's environment is another one than the checkpoint's, the
run only takes the protocol and the prompt. A resumed run keeps the `env` with which it started,
even if the checkpoint's task has changed since.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.base.config import read_config
from agents.base.presets import override_env
from agents.base.settings import SettingsError
from agents.base.sharding import processes
from retool_env.checkpoint_task import differences, read_task
from retool_env.key_values import merge
from retool_env.training.processes import everywhere


def inherit_task(
    values: Mapping[str, Any],
    asked: Mapping[str, Any],
    model: object,
    id: object,
    folder: Path,
    resume: bool,
    cure: str = "",
) -> dict[str, Any]:
    """Merge the setting `env` of a run, and print where it differs from the preset.

    All processes call this function together. The first process reads the files and prints.

    Args:
        values: The preset's `env`.
        asked: The part of `env` that the command line sets.
        model: The setting `model`, a folder or a Hub id.
        id: The environment's id that the user chose, on the command line or with a preset; `None`
            if the user chose none of them.
        folder: The run's folder.
        resume: Whether the run in this folder is resumed.
        cure: Further advice for the error about a wrong `retool.json`.

    Raises:
        SettingsError: If the checkpoint's `retool.json` is wrong, or the run's `config.json` is
            damaged.
    """
    error, env = "", dict[str, Any]()
    if processes().is_main_process:
        try:
            if resume and os.path.lexists(folder / "config.json"):
                env = _of_run(values, asked, folder)
            else:
                env = _of_checkpoint(values, asked, model, id, cure)
        except (ValueError, OSError) as fault:
            error = str(fault)
    error, env = everywhere((error, env))[0]
    if error:
        raise SettingsError(error)
    return env


def _of_run(values: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The `env` with which a run started, overridden by the command line."""
    usual = override_env(values, asked)
    started = read_config(folder)["settings"].get("env")
    if not isinstance(started, dict) or usual == started:
        return usual
    env = merge(started, asked)
    if differ := differences(usual, env, "the preset"):
        print(f"{folder} keeps the environment with which it started: {differ}", flush=True)
    return env


def _of_checkpoint(
    values: Mapping[str, Any], asked: Mapping[str, Any], model: object, id: object, cure: str
) -> dict[str, Any]:
    usual = override_env(values, asked)
    task = read_task(model, cure) if isinstance(model, str) else None
    if task is None:
        return usual
    id = id or task.id or usual.get("id")
    if not isinstance(id, str):
        return usual
    # The preset's settings may be of another environment.
    preset = {} if id == task.id != values.get("id") else override_env(values, {"id": id})
    taken = {"id": id, **task.settings_for(id)}
    print(task.summary(id, str(model)), flush=True)
    if warning := task.revision_warning(str(model)):
        print(warning, flush=True)
    if differ := differences(preset, taken, "the preset"):
        print(f"these settings of the task replace the preset's: {differ}", flush=True)
    if differ := differences(taken, asked, "the task"):
        print(f"the command line overrides the task: {differ}", flush=True)
    return merge({**preset, **taken}, asked)
