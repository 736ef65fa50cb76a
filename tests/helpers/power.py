"""A power failure in tests: which files and folders it would lose."""

from __future__ import annotations

import os


class Disk:
    """Notes what was synced. A file that has changed since its last sync can be lost.

    Args:
        monkeypatch: The fixture of pytest.
    """

    def __init__(self, monkeypatch):
        self._synced = {}
        before = os.fsync

        def fsync(file):
            before(file)
            found = os.fstat(file)
            self._synced[found.st_ino] = _state(found)

        monkeypatch.setattr(os, "fsync", fsync)

    def lost(self, *paths):
        """The names of the files and folders, among the paths and in them, that can be lost."""
        every = [inner for path in paths for inner in (path, *path.rglob("*"))]
        return sorted(
            path.name
            for path in every
            for found in [path.stat()]
            if self._synced.get(found.st_ino) != _state(found)
        )


def _state(found):
    return found.st_size, found.st_mtime_ns
