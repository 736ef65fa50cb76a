"""The benchmark of the training step: a short run, and the comparison of losses and gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import train_step
from benchmarks.parts import batches
from benchmarks.train_step import KINDS, OURS, TRL
from retool_env.integrations.trl import EngineGRPOTrainer
from retool_env.transcript import write_transcripts

FEW = ("--episodes=8", "--group=2", "--rounds=1", "--turn-tokens=8", "--prompt-tokens=8")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.timeout(200)
@pytest.mark.slow
def test_a_short_run_on_drawn_lengths(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    arguments = ["--model", checkpoint, "--drawn", "--out", str(out), *FEW]
    settings = ["one update", "four updates, KL"]
    assert train_step.main([*arguments, "--peak-flops", "1e12", "--settings", *settings]) == 0
    report = json.loads(out.read_text())
    assert list(report["sets"]) == ["equal lengths", "drawn"]
    for found in report["sets"].values():
        assert list(found) == settings
        for figures in found.values():
            assert figures["same"] and max(figures["gradient_difference"].values()) < 1e-4
            assert list(figures["trainers"]) == [TRL, *KINDS]
            for row in figures["trainers"].values():
                assert row["tokens_per_s"] == pytest.approx(
                    figures["tokens"] / row["seconds"][0], rel=0.01
                )
                assert row["peak_mb"] > 0 and 0 < row["mfu_percent"] < 100
            assert all(ratio["median"] > 0 for ratio in figures["sources"].values())
            assert figures["trainers"][TRL]["over_trl"] == {"median": 1, "min": 1, "max": 1}
    equal, drawn = (report["sets"][name]["one update"] for name in report["sets"])
    assert equal["padding"] < 0.05 < drawn["padding"]
    assert "each source alone: the engine's log-probs" in capsys.readouterr().out


@pytest.mark.timeout(200)
@pytest.mark.slow
def test_a_recorded_batch_and_one_of_a_runs_transcripts(
    checkpoint: str, tmp_path: Path, sandbox
) -> None:
    recorded = batches.record(checkpoint, 2, 4, seed=0)
    assert len(recorded.transcripts) == 8 and recorded.group == 4
    assert len({t.problem.id for t in recorded.transcripts}) == 2
    path, out = tmp_path / "transcripts.jsonl", tmp_path / "found.json"
    write_transcripts(path, recorded.transcripts)
    arguments = ["--model", checkpoint, "--transcripts", str(path), "--out", str(out), *FEW]
    assert train_step.main([*arguments, "--settings", "one update"]) == 0
    sets = json.loads(out.read_text())["sets"]
    assert sets["recorded"]["one update"]["tokens"] == sum(recorded.lengths)


def test_a_different_loss_or_gradient_is_noticed(
    checkpoint: str, batch: batches.Batch, tmp_path: Path, monkeypatch
) -> None:
    def compared():
        trainers = {
            kind: train_step.Steps(kind, checkpoint, batch, 4, 0.04, False, str(tmp_path))
            for kind in (TRL, *KINDS)
        }
        return train_step.compare(trainers, train_step.TOLERANCE)

    found = compared()
    assert found["same"] and found["gradient_norm"] > 0 and abs(found["loss"][TRL]) > 1e-3
    original = EngineGRPOTrainer.packed_logps

    def one_token_off(self, *args):
        logps, entropies, aux = original(self, *args)
        return logps.roll(1, 1), entropies, aux

    monkeypatch.setattr(EngineGRPOTrainer, "packed_logps", one_token_off)
    assert not compared()["same"]

    def without_gradient(self, *args):
        logps, entropies, aux = original(self, *args)
        return logps * 0.9 + logps.detach() * 0.1, entropies, aux

    monkeypatch.setattr(EngineGRPOTrainer, "packed_logps", without_gradient)
    found = compared()
    assert found["loss"][OURS] == pytest.approx(found["loss"][TRL], abs=1e-4)
    assert not found["same"]


def test_differing_losses_end_with_status_1(
    checkpoint: str, batch: batches.Batch, tmp_path: Path, monkeypatch
) -> None:
    original = train_step.compare
    monkeypatch.setattr(train_step, "make_sets", lambda options: {"made": batch})
    monkeypatch.setattr(train_step, "compare", lambda trainers, tolerance: original(trainers, 0.0))
    arguments = ["--model", checkpoint, "--drawn", "--out", str(tmp_path / "found.json"), *FEW]
    assert train_step.main([*arguments, "--settings", "one update"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "python -m agents sft"),
        (["--drawn", "--transcripts", "x"], "without --drawn"),
        (["--episodes", "7"], "whole groups"),
        (["--drawn", "--episodes", "6", "--group", "2"], "4 equal parts"),
        (["--transcripts", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_a_wrong_command_line_is_refused_with_the_cure(
    arguments, message, checkpoint, capsys
) -> None:
    with pytest.raises(SystemExit):
        train_step.main(["--model", checkpoint, *arguments])
    assert message in capsys.readouterr().err
