"""The file of a run's learning curves is replaced at once, and only if there is a curve."""

from __future__ import annotations

import pytest

from agents.base.curves import write_curves

pytest.importorskip("matplotlib")


def test_the_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"before")
    write_curves({"run": [{"step": 1, "env/accuracy": 0.5}]}, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_figure_to_draw_no_file_is_written(tmp_path):
    write_curves({"run": [{"step": 1, "loss": 2.0}]}, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())
