"""The training step's benchmark, run small; and that it notices a loss which is another."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.models.tiny import make_checkpoint, make_tokenizer
from benchmarks import train_step
from benchmarks.parts import batches
from benchmarks.parts.chains import Turn
from benchmarks.train_step import KINDS, OURS, TRL
from retool_env.integrations.trl import EngineGRPOTrainer
from retool_env.transcript import check_transcript, write_transcripts

FEW = ("--episodes=8", "--group=2", "--rounds=1", "--turn-tokens=8", "--prompt-tokens=8")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint(tmp_path_factory.mktemp("tiny"), seed=0))


@pytest.fixture(scope="module")
def batch(checkpoint: str) -> batches.Batch:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    special = make_tokenizer().all_special_ids
    chains = [(Turn(5 + i, 0.0), Turn(3 * i + 1, None)) for i in range(8)]
    return batches.make(chains, 10, 4, model, special, seed=0)


def test_made_episodes_are_as_long_as_they_should_be_with_the_models_own_log_probs(
    batch: batches.Batch, checkpoint: str
) -> None:
    assert batch.lengths == [10 + 5 + i + batches.RESULT_TOKENS + 3 * i + 1 for i in range(8)]
    padded = 8 * max(batch.lengths)
    assert batch.padding == pytest.approx(1 - sum(batch.lengths) / padded)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    for number, transcript in enumerate(batch.transcripts):
        check_transcript(transcript)
        assert transcript.prompt_ids == batch.transcripts[number // 4 * 4].prompt_ids
        ids = [*transcript.prompt_ids, *transcript.completion_ids]
        assert not set(ids) & set(make_tokenizer().all_special_ids)
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for at, (mask, logprob) in enumerate(
            zip(transcript.loss_mask, transcript.logprobs, strict=True), len(transcript.prompt_ids)
        ):
            expected = logps[at - 1, ids[at]].item() if mask else 0.0
            assert logprob == pytest.approx(expected, abs=1e-5)


def test_episodes_of_equal_length_are() -> None:
    [chain, *others] = batches.equal(50, 6)
    assert len(others) == 5 and set(others) == {chain}
    assert sum(turn.tokens for turn in chain) + batches.RESULT_TOKENS == 50


def test_the_last_batch_of_a_run_is_taken(batch: batches.Batch, tmp_path: Path) -> None:
    path = tmp_path / "transcripts.jsonl"
    for step in (0, 1):
        rows = [dataclasses.replace(t, trained_version=step) for t in batch.transcripts]
        write_transcripts(path, rows)
    found = batches.read(path)
    assert found.group == 4 and found.lengths == batch.lengths
    assert {t.trained_version for t in found.transcripts} == {1}
    write_transcripts(path, rows[:3])
    with pytest.raises(batches.SettingsError, match=r"groups of \[3, 4\]"):
        batches.read(path)


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
        for each in found.values():
            assert each["same"] and max(each["gradient_difference"].values()) < 1e-4
            assert list(each["trainers"]) == [TRL, *KINDS]
            for row in each["trainers"].values():
                assert row["tokens_per_s"] == pytest.approx(
                    each["tokens"] / row["seconds"][0], rel=0.01
                )
                assert row["peak_mb"] > 0 and 0 < row["mfu_percent"] < 100
            assert all(ratio["median"] > 0 for ratio in each["sources"].values())
            assert each["trainers"][TRL]["over_trl"] == {"median": 1, "min": 1, "max": 1}
    equal, drawn = (report["sets"][name]["one update"] for name in report["sets"])
    assert equal["padding"] < 0.05 < drawn["padding"]
    assert "each alone: the engine's log-probs" in capsys.readouterr().out


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


def test_another_loss_or_gradient_is_noticed(
    checkpoint: str, batch: batches.Batch, tmp_path: Path, monkeypatch
) -> None:
    def compared():
        each = {
            kind: train_step.Steps(kind, checkpoint, batch, 4, 0.04, False, str(tmp_path))
            for kind in (TRL, *KINDS)
        }
        return train_step.compare(each, train_step.TOLERANCE)

    found = compared()
    assert found["same"] and found["gradient_norm"] > 0 and abs(found["loss"][TRL]) > 1e-3
    original = EngineGRPOTrainer._packed_logps

    def one_token_off(self, *args):
        logps, entropies, aux = original(self, *args)
        return logps.roll(1, 1), entropies, aux

    monkeypatch.setattr(EngineGRPOTrainer, "_packed_logps", one_token_off)
    assert not compared()["same"]

    def without_gradient(self, *args):
        logps, entropies, aux = original(self, *args)
        return logps * 0.9 + logps.detach() * 0.1, entropies, aux

    monkeypatch.setattr(EngineGRPOTrainer, "_packed_logps", without_gradient)
    found = compared()
    assert found["loss"][OURS] == pytest.approx(found["loss"][TRL], abs=1e-4)
    assert not found["same"]


def test_differing_losses_end_with_status_1(
    checkpoint: str, batch: batches.Batch, tmp_path: Path, monkeypatch
) -> None:
    original = train_step.compare
    monkeypatch.setattr(train_step, "make_sets", lambda options: {"made": batch})
    monkeypatch.setattr(train_step, "compare", lambda each, tolerance: original(each, 0.0))
    arguments = ["--model", checkpoint, "--drawn", "--out", str(tmp_path / "found.json"), *FEW]
    assert train_step.main([*arguments, "--settings", "one update"]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nowhere"], "python -m agents sft"),
        (["--drawn", "--transcripts", "x"], "not --drawn"),
        (["--episodes", "7"], "whole groups"),
        (["--drawn", "--episodes", "6", "--group", "2"], "4 equal parts"),
        (["--transcripts", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_can_not_be_run_says_what_to_change(arguments, said, checkpoint, capsys) -> None:
    with pytest.raises(SystemExit):
        train_step.main(["--model", checkpoint, *arguments])
    assert said in capsys.readouterr().err
