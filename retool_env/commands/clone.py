"""Commands that run in a clone of the repository, which holds the trainers."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

CLONE = (
    "`{}` runs from a clone of the repository, which holds the trainers: clone it, then, in its "
    "folder, `make setup` and `python -m agents grpo --preset tiny`"
)


def forward(command: str, words: Sequence[str]) -> int:
    """Continues as `python -m agents`; outside a clone, says how to get one.

    Args:
        command: The command, for the message.
        words: The arguments of `python -m agents`.

    Returns:
        The exit status outside a clone. In a clone the call does not return.
    """
    if not Path("agents/presets").is_dir():
        print(CLONE.format(command), file=sys.stderr)
        return 1
    os.execv(sys.executable, [sys.executable, "-m", "agents", *words])
