"""The task of the checkpoint that a command line names, and the lines that report it."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retool_env.errors import MissingFile

if TYPE_CHECKING:
    from retool_env.checkpoint_task import CheckpointTask

IGNORE = "--ignore-retool-json"


def add_ignore(parser: argparse.ArgumentParser) -> None:
    """Adds the option that ignores a checkpoint's task."""
    parser.add_argument(IGNORE, action="store_true", help="ignore the model's retool.json")


def checkpoint_task(arguments: argparse.Namespace) -> tuple[CheckpointTask | None, list[str]]:
    """The task of the model that the command line names, and lines for the reader.

    Returns:
        The task, or `None` without a `retool.json`; and a line where the file is ignored.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: Its `retool.json` is wrong.
    """
    from retool_env.checkpoint_task import read_task
    from retool_env.rollout.checkpoint_files import check_no_run

    model = arguments.model
    if _names_a_folder(model) and not Path(model).is_dir():
        raise MissingFile(
            f"the checkpoint folder {model!r} does not exist; "
            "a finished training saves its model in runs/NAME/checkpoint"
        )
    check_no_run(model)
    if arguments.ignore_retool_json:
        return None, [f"{IGNORE}: what {model} says of its task is passed over"]
    task = read_task(model, f", or pass over it with {IGNORE}")
    if task and (warning := task.revision_warning(model)):
        print(warning, file=sys.stderr)
    return task, []


def _names_a_folder(model: str) -> bool:
    """Whether a name can't be a Hub id, or begins with a folder that exists here."""
    parts = Path(model).parts
    begun = len(parts) == 2 and Path(parts[0]).is_dir()
    return model.startswith((".", "/", "~")) or len(parts) > 2 or begun


def task_lines(
    task: CheckpointTask | None, arguments: argparse.Namespace, given: dict[str, Any]
) -> list[str]:
    """Lines that say which settings come from a checkpoint.

    Args:
        task: The checkpoint's task, or `None`.
        arguments: The command line, with the environment's id.
        given: The settings of the command line, its sampling included.
    """
    from retool_env.checkpoint_task import differences

    if task is None:
        local = arguments.model and not getattr(arguments, "api", None)
        if not local or arguments.ignore_retool_json:
            return []
        return [f"{arguments.model} has no retool.json: the settings are {arguments.env}'s own"]
    lines = [task.summary(arguments.env, arguments.model)]
    before = task.settings_for(arguments.env)
    if arguments.env == task.id:
        before |= task.sampling
    if differ := differences(before, given, "there"):
        lines.append(f"the command line differs from it: {differ}")
    return lines


def say(lines: Sequence[str]) -> None:
    """Prints lines at once, since slow work follows."""
    for line in lines:
        print(line, flush=True)


def with_test_split(id: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of an environment, with the split `test` where no split is named.

    Args:
        id: The id of the environment.
        settings: The settings so far. Sources without splits keep them unchanged.
    """
    from retool_env.problems import SOURCES
    from retool_env.task import registered_settings

    registered = registered_settings(id)
    source = (
        SOURCES.get(registered["problems"]) if isinstance(registered["problems"], str) else None
    )
    named = {"split", "path"} & {*registered, *settings}  # a file has no splits
    if named or source is None or "split" not in inspect.signature(source).parameters:
        return settings
    return {**settings, "split": "test"}
