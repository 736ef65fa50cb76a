"""The benchmark of sampling ahead, in a short run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.vllm_servers import Served, serving

from agents.models.tiny import make_checkpoint, make_tokenizer
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


@pytest.mark.slow
def test_a_short_run_on_servers(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(asynchrony, "PROMPTS", 2)
    monkeypatch.setattr(asynchrony, "ROLLOUTS", 2)
    checkpoint = make_checkpoint(tmp_path / "checkpoint", seed=0)
    out = tmp_path / "found.json"
    answer = make_tokenizer().encode("<answer>1</answer>")
    few = ["--timed", "5", "--staleness", "2", "--load-seconds", "0.2", "--out", str(out)]
    with serving(Served(root=str(checkpoint), written=answer, delay=0.6)) as url:
        options = ["--servers", url, "--weights-folder", str(tmp_path / "weights")]
        assert asynchrony.main(["--checkpoint", str(checkpoint), *options, *few]) == 0
    found = json.loads(out.read_text())["staleness"]["2"]
    for way, row in found.items():
        assert row["first_token_s"] > row["update_s"] >= 0.2
        assert (row["cut_turns"] > 0, row["reread_tokens"] > 0) == (way == "cut",) * 2
    assert "| 2 | wait |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_short_run_with_dynamic_sampling(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(asynchrony, "PAIRS", 2)
    checkpoint = make_checkpoint(tmp_path / "checkpoint", seed=0)
    out = tmp_path / "found.json"
    few = ["--timed", "5", "--staleness", "2", "--resample", "2", "--out", str(out)]
    assert asynchrony.main(["--checkpoint", str(checkpoint), *few]) == 0
    found = json.loads(out.read_text())["staleness"]["2"]
    # A random model gives no right answer, so that all groups are replaced twice.
    assert [row["resampled"] for row in found.values()] == [4.0, 4.0]
    assert found["waited for"]["carried"] == 0 < found["carried"]["carried"]
    assert "| 2 | carried |" in capsys.readouterr().out


def test_servers_need_a_folder_for_weights(tmp_path: Path, capsys) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", seed=0)
    with pytest.raises(SystemExit):
        asynchrony.main(["--checkpoint", str(checkpoint), "--servers", "http://h:1"])
    assert "--weights-folder" in capsys.readouterr().err


def test_a_missing_checkpoint_says_what_makes_one(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        asynchrony.main(["--checkpoint", str(tmp_path)])
    assert "python -m agents sft" in capsys.readouterr().err
