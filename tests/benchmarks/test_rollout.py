"""The benchmark of rollouts as a whole."""

import json
from pathlib import Path

import pytest

from benchmarks import rollout
from benchmarks.parts.overlap import BARRIER, ENGINE, ONE_SHOT, SLOWEST, TRL


@pytest.mark.timeout(200)
def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(rollout, "TOOL_ROLLOUTS", 4)
    out = tmp_path / "rollout.json"
    few = ["--episodes", "4", "--turn-tokens", "20", "--at-once", "64", "--rounds", "1"]
    fast = ["--tool-median", "0.01", "--tool-p99", "0.05", "--tool-scale", "0", "1"]
    assert rollout.main([*few, *fast, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    found = report["overlap"]
    assert [setting["tool_scale"] for setting in found["settings"]] == [0, 1]
    for setting in found["settings"]:
        assert list(setting["seconds"]) == [ONE_SHOT, SLOWEST, ENGINE, BARRIER, TRL]
        assert min(setting["seconds"].values()) > 0
        longer = max(setting["seconds"][ONE_SHOT], setting["seconds"][SLOWEST])
        assert setting["reference_s"] == longer
        assert setting["engine_over"]["reference"]["median"] == pytest.approx(
            setting["seconds"][ENGINE] / longer, abs=0.01
        )
    light, heavy = found["settings"]
    assert light["programs_s"][TRL] == 0 < heavy["programs_s"][BARRIER] < heavy["programs_s"][TRL]
    assert light["programs_at_least_generation"][TRL] is False
    assert heavy["seconds"][TRL] > heavy["programs_s"][TRL]
    assert {row["differ"] for row in found["exactness"].values()} == {0}
    assert found["exactness"][TRL]["episodes"] == 8
    for way in found["read"]["ways"].values():
        assert way["beyond_incomplete_blocks"] == 0
    assert report["natural"]["tiny"]["differ"] == 0
    assert report["overhead"]["short"]["episodes"] == 64
    assert report["overhead"]["long"]["context_tokens"] > 4000
    printed = capsys.readouterr().out
    for words in ("engine / reference", "blocks of 16", "again beyond these: TRL's loop"):
        assert words in printed
