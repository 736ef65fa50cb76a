"""Kills before a certain change of the file system, for tests of what a killed process leaves."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from unittest import mock


class Killed(BaseException):
    """The process received SIGKILL."""


@contextmanager
def killed_before(number):
    """End the block before its change of this number, counted from 0, or at its end.

    Changes are renamings, deletions, syncs, and copies, which end after half of their bytes. The
    block receives a list, which holds the names of the changes that were made.
    """
    made = []

    def counted(module, name, before=lambda *_: None):
        change = getattr(module, name)

        def changing(*given, **named):
            if len(made) == number:
                before(*given)
                raise Killed
            made.append(name)
            return change(*given, **named)

        return mock.patch.object(module, name, changing)

    def half(source, target, *_):
        content = source.read()
        target.write(content[: len(content) // 2])

    with (
        counted(os, "rename"),
        counted(os, "replace"),
        counted(os, "unlink"),
        counted(os, "fsync"),
        counted(shutil, "copyfileobj", half),
        suppress(Killed),
    ):
        yield made
