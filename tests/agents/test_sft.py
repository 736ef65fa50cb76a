from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from agents import sft
from agents.settings import SettingsError, load_settings
from agents.tiny import make_model, make_tokenizer
from agents.traces import make_traces
from retool_env.episode import Rules
from retool_env.problems import arithmetic
from retool_env.transcript import write_transcripts

RULES = Rules(max_tokens=200, max_calls=3, prompt_template="{query}\n")
TOKENIZER = make_tokenizer()


@pytest.fixture(scope="module")
def traces(sandbox):
    problems = [arithmetic(difficulty=(1, 4))[i] for i in range(12)]
    return make_traces(
        problems, {"tool": 1, "mended": 1, "worked": 1}, RULES, TOKENIZER, sandbox, 0
    )


def test_labels_are_the_models_own_tokens_and_nothing_else(traces):
    rows = sft.sft_dataset(traces)
    for row, trace in zip(rows, traces, strict=True):
        at = 0
        for span in trace.spans:
            labels = row["labels"][at : at + len(span.token_ids)]
            expected = list(span.token_ids) if span.author == "model" else [-100] * len(labels)
            assert labels == expected
            at += len(span.token_ids)
        assert at == len(row["labels"]) == len(row["input_ids"])
        text = TOKENIZER.decode([i for i in row["labels"] if i != -100])
        assert "<interpreter>" not in text and "Compute" not in text


def test_the_gradient_at_interpreter_tokens_logits_is_exactly_zero(traces, tmp_path):
    """Through TRL's own preparation, collator and shift, so that a mask off by one would show."""
    trainer = SFTTrainer(
        model=make_model(0)[0],
        args=SFTConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=len(traces),
            train_sampling_strategy="sequential",
            max_length=None,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            report_to="none",
        ),
        train_dataset=sft.sft_dataset(traces),
        processing_class=TOKENIZER,
    )
    [batch] = trainer.get_train_dataloader()
    output = trainer.model(**batch)
    output.logits.retain_grad()
    output.loss.backward()
    # TRL's fused head builds no logits; its loss is the same one.
    torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)), output.loss)
    gradient = output.logits.grad.abs().sum(-1)
    for i, trace in enumerate(traces):
        at = 0
        for span in trace.spans:
            size = len(span.token_ids)
            predicting = gradient[
                i, max(at - 1, 0) : at + size - 1
            ]  # position t predicts token t + 1
            assert (
                torch.all(predicting > 0) if span.author == "model" else torch.all(predicting == 0)
            )
            at += size
        assert torch.all(gradient[i, at - 1 :] == 0)


def settings(**overrides):
    pairs = ["traces=24", "epochs=1", "batch_size=8", "save_steps=1", "name=s"]
    pairs += [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    return load_settings(sft.Settings, "sft", "tiny", pairs)


def test_a_run_leaves_a_checkpoint_that_evaluation_loads_and_all_records(tmp_path):
    folder = tmp_path / "s"
    checkpoint = sft.train(settings(), folder)
    AutoModelForCausalLM.from_pretrained(checkpoint)
    assert AutoTokenizer.from_pretrained(checkpoint).encode(
        "<code>\n```python\n"
    ) == TOKENIZER.encode("<code>\n```python\n")
    config = json.loads((folder / "config.json").read_text())
    assert (
        config["settings"]["traces"] == 24
        and config["versions"]["torch"] == torch.__version__.split("+")[0]
    )
    assert len((folder / "traces.jsonl").read_text().splitlines()) == 24
    with pytest.raises(SettingsError, match="--resume"):
        sft.train(settings(), folder)
    assert sft.train(settings(), folder, resume=True) == checkpoint
    with pytest.raises(SettingsError, match=r"other settings \(epochs\)"):
        sft.train(settings(epochs=2.0), folder, resume=True)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    whole = AutoModelForCausalLM.from_pretrained(sft.train(settings(), tmp_path / "whole"))

    class Stop(KeyboardInterrupt):
        pass

    def stop_at_2(self, args, state, control, logs=None, **_):
        original(self, args, state, control, logs, **_)
        if state.global_step == 2:
            raise Stop

    original = sft.BarCallback.on_log
    with monkeypatch.context() as patch:
        patch.setattr(sft.BarCallback, "on_log", stop_at_2)
        with pytest.raises(Stop):
            sft.train(settings(trl={"logging_steps": 1}), tmp_path / "cut")
    resumed = sft.train(settings(trl={"logging_steps": 1}), tmp_path / "cut", resume=True)
    again = AutoModelForCausalLM.from_pretrained(resumed)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").open()]
    assert steps == [1, 2, 3]


def test_a_file_of_traces_is_trained_on_if_it_is_right(traces, tmp_path):
    path = tmp_path / "traces.jsonl"
    wrong = dataclasses.replace(traces[0], correct=False, reward=-1.0)
    write_transcripts(path, [*traces, wrong])
    assert sft.read_traces(path, TOKENIZER) == traces
    sft.train(settings(data=str(path), batch_size=4), tmp_path / "run")
    assert not (tmp_path / "run" / "traces.jsonl").exists()

    write_transcripts(tmp_path / "wrong.jsonl", [wrong])
    with pytest.raises(SettingsError, match="no trace"):
        sft.read_traces(tmp_path / "wrong.jsonl", TOKENIZER)
    spans = tuple(dataclasses.replace(s, token_ids=s.token_ids[::-1]) for s in traces[0].spans)
    write_transcripts(tmp_path / "other.jsonl", [dataclasses.replace(traces[0], spans=spans)])
    with pytest.raises(SettingsError, match="tokenizer"):
        sft.read_traces(tmp_path / "other.jsonl", TOKENIZER)
    path.write_text(path.read_text()[:-40])  # as a full disk leaves it
    with pytest.raises(SettingsError, match=r"traces\.jsonl, line 13: not a transcript"):
        sft.read_traces(path, TOKENIZER)
    with pytest.raises(SettingsError, match="no file"):
        sft.train(settings(data="nowhere.jsonl"), tmp_path / "x")
    assert not (tmp_path / "x").exists()
