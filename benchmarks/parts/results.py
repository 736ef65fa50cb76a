"""What benchmarks write: their figures, below the circumstances that they were taken in."""

import json
from pathlib import Path
from typing import Any

from benchmarks.parts.machine import circumstances

RESULTS = Path(__file__).parents[1] / "results"
"""Where figures go if the command names no other place."""


def write_results(path: Path, figures: dict[str, Any], indent: int = 2) -> None:
    """Write figures as JSON, with date, machine and versions; a missing folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**circumstances(), **figures}, indent=indent, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
