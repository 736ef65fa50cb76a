"""Batches of episodes: made with given lengths, or read from a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.models.tiny import make_tokenizer
from benchmarks.parts import batches
from retool_env.transcript import check_transcript, write_transcripts


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
