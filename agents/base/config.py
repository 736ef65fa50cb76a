"""Config: what `config.json` says of a run, which is how it was started."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from agents.base.records import check_kinds, damaged, read_object, write_atomically
from retool_env.provenance import REVISION

ANEW = "start anew with another name=..."
"""What to do about a `config.json` that can't be restored."""


def accept_revision(folder: Path) -> None:
    """Let a run go on with episodes of this revision; `config.json` keeps those of before.

    Args:
        folder: The run's folder; nothing happens where there is none.

    Raises:
        SettingsError: If its `config.json` is damaged.
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
    """What `config.json` says of a run.

    Raises:
        SettingsError: If it is damaged.
    """
    path = folder / "config.json"
    record = read_object(path, ANEW)
    try:
        kinds = {"settings": dict, "processes": int, "changes": list[dict]}
        kinds |= {"revision": int, "earlier_revisions": list[int]}
        check_kinds(record, kinds, ["settings"])
        for change in record.get("changes", []):
            check_kinds(
                change, {"setting": str, "from": float, "to": float}, ["setting", "from", "to"]
            )
    except ValueError as error:
        raise damaged(path, str(error), ANEW) from None
    return record
