from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import SFTConfig, SFTTrainer

from agents import sft
from agents.base.presets import load_settings
from agents.base.run import dry_run
from agents.base.settings import SettingsError
from agents.models.tiny import make_model, make_tokenizer
from agents.traces.scripted import make_traces
from retool_env.problems import arithmetic
from retool_env.rules import Rules
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
    with pytest.raises(SettingsError, match=r"other settings \(batch_size\)"):
        sft.train(settings(batch_size=4), folder, resume=True)


@pytest.mark.slow
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


def trainer_of(traces, folder, **config):
    return SFTTrainer(
        model=make_model(0)[0],
        args=SFTConfig(
            output_dir=str(folder),
            train_sampling_strategy="sequential",
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            report_to="none",
            **config,
        ),
        train_dataset=sft.sft_dataset(traces),
        processing_class=TOKENIZER,
    )


def loss_and_gradients(trainer):
    """Over all its batches, as over one optimizer step."""
    batches = list(trainer.get_train_dataloader())
    tokens = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    losses = [trainer.compute_loss(trainer.model, b, num_items_in_batch=tokens) for b in batches]
    sum(losses).backward()
    gradients = [p.grad for p in trainer.model.parameters()]
    return batches, sum(losses).item(), gradients


@pytest.mark.parametrize("size", [4000, 200])
def test_packing_changes_neither_masks_nor_loss_nor_gradient(traces, tmp_path, size):
    traces = traces[:6]
    padded = trainer_of(traces, tmp_path, per_device_train_batch_size=len(traces), max_length=None)
    packed = trainer_of(
        traces, tmp_path, per_device_train_batch_size=1, packing=True, max_length=size
    )
    [_], loss, gradients = loss_and_gradients(padded)
    packs, packed_loss, packed_gradients = loss_and_gradients(packed)
    assert len(packs) == 1 if size == 4000 else 1 < len(packs) < len(traces)
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    for ours, theirs in zip(packed_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)

    found = []
    for pack in packs:
        assert "attention_mask" not in pack and pack["input_ids"].shape[0] == 1
        starts = (pack["position_ids"][0] == 0).nonzero().flatten().tolist()
        ends = [*starts[1:], pack["input_ids"].shape[1]]
        for start, end in zip(starts, ends, strict=True):
            assert pack["position_ids"][0, start:end].tolist() == list(range(end - start))
            found.append(
                (pack["input_ids"][0, start:end].tolist(), pack["labels"][0, start:end].tolist())
            )
    rows = sft.sft_dataset(traces)
    assert sorted(found) == sorted(zip(rows["input_ids"], rows["labels"], strict=True))


def test_a_model_in_which_packed_traces_would_see_each_other_is_refused():
    model = make_model(0)[0]
    sft.check_packing(model)
    # A kind of attention for which transformers makes no mask: it is causal, and nothing else.
    ALL_ATTENTION_FUNCTIONS.register("unmasked", sdpa_attention_forward)
    model.set_attn_implementation("unmasked")
    with pytest.raises(SettingsError, match=r"llama, unmasked .*: set packing=0 and tokens=0"):
        sft.check_packing(model)


def test_a_run_packs_and_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    chosen = settings(traces=10, epochs=2.0, packing=200, batch_size=1, trl={"logging_steps": 1})
    whole = AutoModelForCausalLM.from_pretrained(sft.train(chosen, tmp_path / "whole"))
    records = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").open()]
    assert 2 < len(records) < 10  # twice ten traces, of which a pack holds several

    def stop_at_2(self, args, state, control, logs=None, **_):
        original(self, args, state, control, logs, **_)
        if state.global_step == 2:
            raise KeyboardInterrupt

    original = sft.BarCallback.on_log
    with monkeypatch.context() as patch:
        patch.setattr(sft.BarCallback, "on_log", stop_at_2)
        with pytest.raises(KeyboardInterrupt):
            sft.train(chosen, tmp_path / "cut")
    again = AutoModelForCausalLM.from_pretrained(sft.train(chosen, tmp_path / "cut", resume=True))
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_pack_that_a_trace_does_not_fit_into_is_refused(traces, tmp_path):
    path = tmp_path / "traces.jsonl"
    write_transcripts(path, traces)
    longest = max(len(trace.prompt_ids) + len(trace.completion_ids) for trace in traces)
    said = f"packing={longest - 1} would cut off .* {longest} tokens"
    with pytest.raises(SettingsError, match=said):
        sft.train(settings(data=str(path), packing=longest - 1), tmp_path / "run")
    sft.train(settings(data=str(path), packing=longest, batch_size=4), tmp_path / "run")
    for key in ("packing", "packing_strategy", "max_length"):
        with pytest.raises(SettingsError, match=rf"trl\.{key} follows from"):
            sft.train(settings(trl={key: 1}), tmp_path / "other")


def test_a_run_that_was_refused_for_its_own_traces_lengths_starts_again(tmp_path):
    """The refusal comes after the start, since the traces are made there."""
    for packing, said in ((20, "packing=20 would cut off"), (30, "packing=30 would cut off")):
        with pytest.raises(SettingsError, match=said):
            sft.train(settings(traces=4, packing=packing, batch_size=1), tmp_path / "run")
    sft.train(settings(traces=4, batch_size=4, epochs=1.0), tmp_path / "run")


@pytest.mark.parametrize(
    ("wrong", "said"), [({"mix": {"tol": 1.0}}, "mix: .*tol"), ({"traces": 10**9}, "too large")]
)
def test_a_dry_run_refuses_problems_and_styles_that_make_no_traces(wrong, said, tmp_path):
    env = {"id": "ReTool-Arithmetic-v0", "max_tokens": 64, "size": 100}
    with pytest.raises(SettingsError, match=said), dry_run():
        sft.train(settings(env=env, **wrong), tmp_path / "run")


def test_a_file_of_messages_is_trained_on(tmp_path):
    path = tmp_path / "data.jsonl"
    row = {
        "messages": [
            {"role": "user", "content": "Compute 1 + 1.\n"},
            {
                "role": "assistant",
                "content": "<code>\n```python\nprint(1 + 1)\n```\n</code>\n"
                "<interpreter>\n2\n</interpreter>\n\n"
                "<answer>\n\\boxed{2}\n</answer>",
            },
        ]
    }
    path.write_text((json.dumps(row) + "\n") * 4)
    [labels] = {
        tuple(labels) for labels in sft.sft_dataset(sft.read_traces(path, TOKENIZER))["labels"]
    }
    assert TOKENIZER.decode([i for i in labels if i != -100]) == (
        "<code>\n```python\nprint(1 + 1)\n```\n</code><answer>\n\\boxed{2}\n</answer>"
    )
    sft.train(settings(data=str(path), batch_size=4), tmp_path / "run")
    path.write_text(json.dumps({**row, "messages": row["messages"][:1]}))
    with pytest.raises(SettingsError, match=r"data: .*data\.jsonl, line 1: "):
        sft.read_traces(path, TOKENIZER)
