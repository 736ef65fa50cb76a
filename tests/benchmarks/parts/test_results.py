"""The file of a benchmark's figures, and ratios of two series."""

from __future__ import annotations

import json

import pytest

from benchmarks.parts.results import ratios, write_results


def test_figures_stand_below_the_circumstances_in_a_new_folder(tmp_path) -> None:
    path = tmp_path / "new" / "found.json"
    write_results(path, {"name": "größer", "value": 1})
    report = json.loads(path.read_text(encoding="utf-8"))
    assert list(report)[-2:] == ["name", "value"] and report["name"] == "größer"
    assert {"date", "device", "versions", "revision"} < set(report)


def test_ratios_are_of_the_same_round() -> None:
    spread = ratios([2.0, 3.0, 9.0], [4.0, 3.0, 10.0])
    assert spread == {"median": 0.9, "min": 0.5, "max": 1.0}
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])
