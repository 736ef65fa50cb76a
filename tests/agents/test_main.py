"""`python -m agents` as a program."""

from __future__ import annotations

import gc
import sys

from agents.__main__ import main


def test_only_a_program_of_its_own_freezes_what_was_imported(monkeypatch, capsys):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    assert main(["grpo", "--help"]) == 0 and not frozen
    monkeypatch.setattr(sys, "argv", ["agents", "grpo", "--help"])
    assert main() == 0 and frozen
    assert "settings of grpo:" in capsys.readouterr().out
