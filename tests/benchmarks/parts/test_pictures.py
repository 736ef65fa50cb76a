"""Pictures: panels are written to a PNG file."""

from __future__ import annotations

import pytest

from benchmarks.parts.pictures import panels


def test_a_picture_has_its_panels(tmp_path) -> None:
    path = tmp_path / "a.png"
    with panels(path, 1, 2, figsize=(2, 1)) as axes:
        assert axes.shape == (1, 2)
        axes[0, 1].plot([0, 1], [1, 0])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_can_not_be_drawn_is_not_written(tmp_path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(RuntimeError, match="no data"), panels(path, 1, 1):
        raise RuntimeError("no data")
    assert not path.exists()
