"""The lock of a run's folder, also on a file system without locks."""

from __future__ import annotations

import datetime
import errno
import json
import os
import socket
import subprocess
import sys

import pytest

from agents.base import lock as locks
from agents.base.lock import lock
from agents.base.status import Status


@pytest.fixture(params=[errno.ENOLCK, errno.ENOTSUP])
def without_locks(request, monkeypatch):
    def lockf(file, how):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(locks.fcntl, "lockf", lockf)


def told(folder, age=0, **status):
    """The error of a start in a folder whose status was written some seconds ago."""
    time = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)
    record = {"state": "running", "host": socket.gethostname(), "time": time.isoformat()}
    (folder / "status.json").write_text(json.dumps(record | status))
    return lock(folder)


@pytest.fixture
def other():
    """The number of another process of this machine."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate()


def test_without_locks_the_status_tells_of_a_run_at_work(without_locks, other, tmp_path, capsys):
    assert f"process {other} on " in told(tmp_path, pid=other)
    assert str(tmp_path / "status.json") in told(tmp_path, pid=other)
    assert "process 1 on elsewhere is at work" in told(tmp_path, host="elsewhere", pid=1, age=60)
    assert capsys.readouterr().err == ""


def test_without_locks_a_run_that_was_killed_or_has_ended_goes_on(
    without_locks, other, tmp_path, capsys
):
    assert lock(tmp_path) is None
    assert f"warning: {tmp_path} can't be locked (" in capsys.readouterr().err
    assert told(tmp_path, pid=2**30) is None  # no process has this number
    assert told(tmp_path, pid=os.getpid()) is None
    assert told(tmp_path, pid=other, state="stopped") is None
    assert told(tmp_path, pid=1, host="elsewhere", age=600) is None
    for damaged in ({"time": 3}, {"time": "2026-01-01"}, {"pid": None}, {"time": None}):
        assert told(tmp_path, **{"pid": 1, "host": "elsewhere"} | damaged) is None
    (tmp_path / "status.json").write_text("")
    assert lock(tmp_path) is None


def test_the_status_that_a_run_writes_is_understood(without_locks, tmp_path, monkeypatch):
    Status(tmp_path).start()
    monkeypatch.setattr(locks.os, "getpid", lambda: 1)
    assert f"process {json.loads((tmp_path / 'status.json').read_text())['pid']}" in lock(tmp_path)
