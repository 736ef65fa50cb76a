"""What child processes inherit of this process's environment, where they need none of its keys and tokens."""

from __future__ import annotations

import os

_NAMES = (
    *("PATH", "LD_LIBRARY_PATH", "TMPDIR", "HOME", "LANG", "LC_ALL", "LC_CTYPE"),
    *("SYSTEMROOT", "TEMP", "TMP"),  # on Windows
)


def child_environment(*, python: bool = False, **more: str) -> dict[str, str]:
    """The environment of a child process: where programs, libraries and temporary files are, and the language.

    Args:
        python: Whether the child is a Python that finds its modules as this one does (`PYTHONPATH` and the like).
        **more: Further variables.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in _NAMES or (python and name.startswith("PYTHON"))
    }
    return inherited | more
