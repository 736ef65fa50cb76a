"""The environment variables of child processes, without the keys and tokens of this process."""

from __future__ import annotations

import os

_NAMES = (
    *("PATH", "LD_LIBRARY_PATH", "TMPDIR", "HOME", "LANG", "LC_ALL", "LC_CTYPE"),
    *("SYSTEMROOT", "TEMP", "TMP"),  # on Windows
)


def child_environment(*, python: bool = False, **more: str) -> dict[str, str]:
    """The environment of a child process: paths of programs and libraries, and the language.

    Args:
        python: Whether the child is a Python process, which also inherits `PYTHONPATH` and the
            other variables that begin with `PYTHON`.
        **more: Further variables.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in _NAMES or (python and name.startswith("PYTHON"))
    }
    return inherited | more
