"""Config: `config.json` of a run's folder, the record of how the run was started."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from agents.base.records import check_kinds, intact, read_object, write_atomically
from retool_env.provenance import REVISION

RESTART_CURE = "start anew with another name=..."
"""The advice of an error about a `config.json` that can't be restored."""

_KINDS = {
    "algorithm": str,
    "settings": dict,
    "processes": int,
    "changes": list[dict],
    "revision": int,
    "earlier_revisions": list[int],
}
"""The kind of each value in `config.json`."""
_CHANGE_KINDS = {"setting": str, "from": object, "to": object}
"""The kind of each value in a recorded change of a setting."""


def accept_revision(folder: Path) -> None:
    """Let a run continue with episodes of the current revision.

    `config.json` then names the current revision, and lists the earlier ones.

    Args:
        folder: The run's folder. Without a `config.json` nothing happens.

    Raises:
        SettingsError: If `config.json` is damaged.
    """
    path = folder / "config.json"
    if not os.path.lexists(path):
        return
    record = read_config(folder)
    before = record.get("revision", 1)
    if before != REVISION:
        record["earlier_revisions"] = [*record.get("earlier_revisions", []), before]
        record["revision"] = REVISION
        write_atomically(path, json.dumps(record, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """The checked object in a run's `config.json`.

    Args:
        folder: The run's folder.

    Raises:
        SettingsError: If `config.json` is missing or damaged.
    """
    path = folder / "config.json"
    record = read_object(path, RESTART_CURE)
    with intact(path, RESTART_CURE):
        check_kinds(record, _KINDS, ["settings"])
        for change in record.get("changes", []):
            check_kinds(change, _CHANGE_KINDS, _CHANGE_KINDS)
    return record
