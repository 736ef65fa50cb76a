"""The identity of an evaluation: its model, its problems and the version of the code."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from retool_env.problem import Problem

_WEIGHTS = ("*.safetensors", "*.bin")
_HUB_CACHE = "models--"


@dataclass(frozen=True)
class ModelIdentity:
    """Tells a model from others, also from others of its name."""

    name: str
    """The folder, Hub id or name behind an API, as the command names it."""
    kind: Literal["checkpoint", "hub", "api"]
    """Where the model is: a local folder, the Hub, or an API."""
    revision: str | None = None
    """The commit on the Hub; `None` elsewhere."""
    weights: str | None = None
    """SHA-256 of a folder's weight files, in the order of their names; `None` elsewhere."""
    url: str | None = None
    """The address of the API; `None` elsewhere."""

    @property
    def title(self) -> str:
        """A short name for tables: `tiny/checkpoint`, not `checkpoint`."""
        parts = Path(self.name).parts
        generic = self.kind == "checkpoint" and parts[-1:] and len(parts) > 1
        if generic and parts[-1].startswith(("checkpoint", "final", "best", "last", "step")):
            return "/".join(parts[-2:])
        return parts[-1] if parts else self.name

    @property
    def fingerprint(self) -> str:
        """The first characters of the weights' hash or of the Hub's commit; empty for an API."""
        return (self.weights or self.revision or "")[:8]

    @classmethod
    def of(cls, name: str, url: str | None = None) -> Self:
        """Identifies a model. A folder's weight files are read.

        Args:
            name: A checkpoint's folder, a Hub id, or the model's name behind an API.
            url: The API's address; `None` for a local model.

        Raises:
            OSError: A weight file cannot be read.
        """
        if url is not None:
            return cls(name, "api", url=url)
        if Path(name).is_dir():
            return cls(name, "checkpoint", weights=weights_hash(Path(name)))
        return cls(name, "hub", revision=_hub_revision(name))

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Rebuilds an identity from its fields as plain JSON values.

        Raises:
            TypeError: A field is missing or unknown, or its value is not a text.
        """
        for name, value in record.items():
            if not isinstance(value, str) and (value is not None or name in ("name", "kind")):
                raise TypeError(f"the model's {name} has the wrong value {value!r:.40}")
        return cls(**record)


def weights_hash(folder: Path) -> str | None:
    """SHA-256 of a checkpoint's weight files; `None` for a folder without such files."""
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _hub_revision(name: str) -> str | None:
    """The commit of a model of the Hub that lies in the cache, and is therefore the one loaded."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return None
    reference = Path(HF_HUB_CACHE, _HUB_CACHE + name.replace("/", "--"), "refs", "main")
    try:
        return reference.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def fingerprint(problems: Iterable[Problem]) -> str:
    """SHA-256 of problems in their order: ids, questions and answers."""
    digest = hashlib.sha256()
    for problem in problems:
        row = [problem.id, problem.question, problem.answer]
        digest.update(json.dumps(row, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()


def commit() -> str | None:
    """The git commit of the clone that this code runs from, with `+` if it was changed since.

    Returns:
        The commit; `None` for an installed package.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + "+" * bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
