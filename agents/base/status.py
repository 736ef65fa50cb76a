"""Status: `status.json` in a run's folder, for a scheduler or a script that starts the run again.

`torchrun` turns every failure of a process into exit status 1, so the reason is in this file:

state       code   meaning
running            the run is at work; `time` is at most a minute old, or its processes were killed
finished    0      the run reached its end
stopped     75     a signal stopped the run; `resume` continues it
failed      1      an error ended the run, with its text in `error`

The file is replaced atomically. On a full disk it is overwritten in place, so that it still tells
the end of the run.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shlex
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Literal

from agents.base.sharding import launched, processes
from retool_env.servers.address import redact

State = Literal["running", "finished", "stopped", "failed"]
"""The state of a run."""

CODES = {"finished": 0, "stopped": 75, "failed": 1}
"""The code of each state in which a run ends. 75 is EX_TEMPFAIL of sysexits.h: try again."""

_MOST_CHARACTERS = 4000
"""The longest error text that is kept."""


class Status:
    """Writes the status of a run.

    The first process writes the status. Any process writes a failure of a run at work, because the
    failure may have killed the first process. The first end is kept: later failures are mostly its
    consequences.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "status.json"
        self.step: int | None = None
        """The last step that was logged. The first process knows it."""
        self._lock = threading.Lock()
        self._ended = True

    def start(self) -> None:
        """Write that the run is at work. The first process writes it, before others can fail."""
        self._ended = False
        state = processes()
        if state.is_main_process:
            earlier = read_status(self.path)  # of the start that this one continues
            record = {
                "state": "running",
                "code": None,
                "step": earlier.get("step"),
                "saved": earlier.get("saved"),
                "error": None,
                "started": _now(),
                "time": _now(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "processes": state.num_processes,
                "resume": resume_command(),
            }
            with self._lock:
                self._write(record)

    def stopped_early(self) -> None:
        """Write that a signal stopped the run before its start, if the folder has no status yet."""
        if not self.path.exists():
            with contextlib.suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
            state: State = "stopped"
            self._write({"state": state, "code": CODES[state], "step": None, "saved": None})

    def refresh(self, saved: int | None) -> None:
        """Write the time and the step of a run at work. The first process calls it.

        Args:
            saved: The step of the last complete checkpoint.
        """
        with self._lock:
            if not self._ended:
                known = {"step": self.step, "saved": saved}
                known = {key: value for key, value in known.items() if value is not None}
                self._write(read_status(self.path) | known | {"time": _now()})

    def end(self, state: State, saved: int | None = None, error: str | None = None) -> None:
        """Write the end of the run. A second call has no effect.

        Args:
            state: The state of the run.
            saved: The step of the last complete checkpoint; `None`: as it was written last.
            error: The text of the error that ended the run.
        """
        with self._lock:
            if self._ended:
                return
            self._ended = True
            record = read_status(self.path)
            first = record.get("state") in (None, "running")
            if not first or (state != "failed" and not processes().is_main_process):
                return
            record |= {"state": state, "code": CODES[state], "time": _now()}
            if self.step is not None:
                record["step"] = self.step
            if saved is not None:
                record["saved"] = saved
                # A run may end before its first logged step.
                record["step"] = max(record.get("step") or 0, saved)
            if error is not None:
                record["error"] = redact(error)[:_MOST_CHARACTERS]
            self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        # Two processes may write at the same time. A full disk must not hide the run's own error.
        part = self.path.with_name(f"{self.path.name}.{processes().process_index}.part")
        try:
            part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            part.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                _overwrite(self.path, record)


def _overwrite(path: Path, record: dict[str, Any]) -> None:
    """Write a record over the old one, in the blocks that the file already has on a full disk."""
    with open(path, "r+b", buffering=0) as file:
        room = os.fstat(file.fileno()).st_blocks * 512
        for most in (_MOST_CHARACTERS, 1000, 0):  # characters of the error
            error = record["error"] and record["error"][:most]
            text = (json.dumps(record | {"error": error}, indent=2) + "\n").encode()
            if len(text) <= room:
                file.write(text)
                file.truncate()
                return


def read_status(path: Path) -> dict[str, Any]:
    """The object in a `status.json`; empty if the file is missing or damaged.

    Args:
        path: The file.
    """
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
    return {}


def resume_command() -> str | None:
    """The command that continues this run; `None` if this process was not started by a command.

    Under `torchrun` and `accelerate launch` it is the launcher's command.
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None or spec.name != "agents.__main__":
        return None
    words = sys.orig_argv
    if launched():  # the parent process is the launcher's agent
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8")
            words = line.rstrip("\0").split("\0")
    if "--resume" not in words:
        words = [*words, "--resume"]
    return redact(shlex.join(words))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
