"""Config: `config.json` of a run's folder, the record of how the run was started."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.base.records import check_kinds, intact, read_object, write_atomically
from retool_env.provenance import REVISION, versions

RESTART_CURE = "start anew with another name=..."
"""The advice of an error about a `config.json` that can't be restored."""

_KINDS = {
    "id": str,
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


def begin_config(folder: Path, algorithm: str, settings: Mapping[str, Any], processes: int) -> None:
    """Write the record of a run that begins.

    Args:
        folder: The run's folder.
        algorithm: The name of the algorithm.
        settings: All settings of the run, as JSON values.
        processes: The number of processes.
    """
    record = {
        "id": secrets.token_hex(8),  # no other run has it, on no machine
        "algorithm": algorithm,
        "settings": settings,
        "versions": versions(),
        "processes": processes,
        "revision": REVISION,
    }
    write_atomically(folder / "config.json", json.dumps(record, indent=2) + "\n")


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
