"""The benchmark of sampling ahead, in a short run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.models.tiny import make_checkpoint
from benchmarks import asynchrony


@pytest.mark.slow
def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(asynchrony, "PROMPTS", 2)
    monkeypatch.setattr(asynchrony, "ROLLOUTS", 2)
    checkpoint = make_checkpoint(tmp_path / "checkpoint", seed=0)
    out = tmp_path / "found.json"
    few = [
        "--steps",
        "3",
        "--timed",
        "3",
        "--staleness",
        "0",
        "1",
        "--tool-median",
        "0.01",
        "--tool-p99",
        "0.02",
    ]
    assert asynchrony.main(["--checkpoint", str(checkpoint), "--out", str(out), *few]) == 0
    found = json.loads(out.read_text())["staleness"]
    for figures in found["0"].values():
        assert figures["lag_max"] == 0
        assert figures["effective_tokens"] == pytest.approx(1.0, abs=1e-3)
    for figures in found["1"].values():
        assert figures["lag_max"] == 1 and figures["lag"] == 1 and figures["step_s"] > 0
    assert found["1"]["timed"]["difference"] < 1e-4  # timed runs do not learn
    assert "| 1 |" in capsys.readouterr().out


def test_a_missing_checkpoint_says_what_makes_one(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        asynchrony.main(["--checkpoint", str(tmp_path)])
    assert "python -m agents sft" in capsys.readouterr().err
