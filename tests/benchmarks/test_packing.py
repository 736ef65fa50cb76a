"""The benchmark of planned passes: its table and its file of figures."""

from __future__ import annotations

import json

import pytest

from benchmarks import packing


def test_the_table_shows_the_worst_seed_and_the_file_holds_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(packing, "EPISODES", (64, 128))
    assert packing.main(["--seeds", "2", "--out", str(tmp_path / "packing.json")]) == 0
    report = json.loads((tmp_path / "packing.json").read_text())
    printed = capsys.readouterr().out
    for episodes in ("64", "128"):
        assert report[episodes]["one_episode_a_pass"] > report[episodes]["worst"] >= 1
        assert f"{report[episodes]['worst']:.4f}" in printed


def test_no_seed_is_refused(capsys):
    with pytest.raises(SystemExit):
        packing.main(["--seeds", "0"])
    assert "--seeds and --rounds must be at least 1" in capsys.readouterr().err
