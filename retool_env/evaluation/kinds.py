"""Kinds: what the folder of a record holds, in words for error texts."""

from __future__ import annotations

import json
from pathlib import Path

from retool_env.evaluation.records import EVAL, OLD_EPISODES, OLD_EVAL
from retool_env.files import read_text

_FILES = {
    "recover.json": "a record of `retool recover`",
    EVAL: "an evaluation",
}


def kind_of(folder: Path) -> str:
    """The kind of the record in a folder, with its article; empty if the folder holds none.

    Example:
        >>> kind_of(Path("runs"))
        ''
    """
    for name, kind in _FILES.items():
        if (folder / name).exists():
            return kind
    if _is_training(folder):  # it may also hold `transcripts.jsonl`
        return "a training run"
    old = any((folder / name).exists() for name in (OLD_EVAL, OLD_EPISODES))
    return "an evaluation of an earlier version" if old else ""


def _is_training(folder: Path) -> bool:
    """Whether the folder's `config.json` is of a training run, and not of a model."""
    try:
        return "algorithm" in json.loads(read_text(folder / "config.json"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False
