"""Files that survive a power failure."""

from __future__ import annotations

import errno
import os

import pytest
from helpers.power import Disk

from retool_env.durable import replace_durably, sync, sync_tree


def test_a_tree_is_synced_with_its_own_entry(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    inner = tmp_path / "folder" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("text")
    assert disk.lost(tmp_path) == sorted([tmp_path.name, "folder", "inner", "file"])
    sync_tree(tmp_path / "folder")
    assert disk.lost(tmp_path) == []
    (inner / "file").write_text("longer text")
    assert disk.lost(tmp_path) == ["file"]


def test_a_replaced_file_and_its_name_are_synced(tmp_path, monkeypatch):
    disk, order = Disk(monkeypatch), []
    (tmp_path / "part").write_text("new")
    replace = os.replace
    monkeypatch.setattr(
        "pathlib.os.replace",
        lambda part, path: (order.append(disk.lost(part)), replace(part, path)),
    )
    replace_durably(tmp_path / "part", tmp_path / "file")
    assert order == [[]]  # the content before the name
    assert (tmp_path / "file").read_text() == "new" and disk.lost(tmp_path) == []


def test_a_file_system_without_syncs_is_no_error_and_a_broken_disk_is(tmp_path, monkeypatch):
    sync(tmp_path / "missing")

    def failing(number):
        def fsync(file):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    failing(errno.EINVAL)
    sync(tmp_path)
    failing(errno.EIO)
    with pytest.raises(OSError, match=f"{tmp_path}"):
        sync(tmp_path)
