"""Signals at a known moment of a run in this process, and the status in which the run ends."""

from __future__ import annotations

import json
import os
import signal


def told_at(monkeypatch, owner, name, call=1):
    """Send this process SIGTERM before a call of a function, counted from 1; returns the calls."""
    function, calls = getattr(owner, name), []

    def telling(*given, **more):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*given, **more)

    monkeypatch.setattr(owner, name, telling)
    return calls


def status_of(folder):
    """The state, the code and the saved step in a run's `status.json`."""
    found = json.loads((folder / "status.json").read_text())
    return found["state"], found["code"], found["saved"]
