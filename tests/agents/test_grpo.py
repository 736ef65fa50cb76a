"""GRPO end to end on the tiny model, with real programs in the real jail."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from helpers.small_runs import make_small
from peft import PeftModel
from transformers import AutoModelForCausalLM

from agents import grpo
from agents.base import session
from agents.base.presets import load_settings
from agents.base.settings import SettingsError
from agents.models.tiny import make_checkpoint
from retool_env.integrations.trl import EngineRollouts
from retool_env.rollout import ScriptedPolicy
from retool_env.rollout.transformers import policy as policies
from retool_env.transcript import check_transcript, read_transcripts


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("initial"), seed=1))


def settings(initial, **overrides):
    values = {
        "model": initial,
        "name": "g",
        "steps": 4,
        "prompts": 2,
        "rollouts": 4,
        "micro_batch": 4,
        "save_steps": 1,
        "env.max_tokens": 60,
        **overrides,
    }
    return load_settings(
        grpo.Settings, "grpo", "tiny", [f"{k}={json.dumps(v)}" for k, v in values.items()]
    )


def transcripts(folder):
    return list(read_transcripts(folder / "transcripts.jsonl"))


@pytest.fixture
def solving(monkeypatch):
    """Gives the untrained model's rollouts a program to run: it writes code half of the time."""

    class Half(policies.TransformersPolicy):
        async def act(self, token_ids, stop, budget, seed):
            text = self.tokenizer.decode(token_ids)

            def script(_):
                if "<interpreter>" in text:
                    return f"<answer>{text.split('<interpreter>')[1].split()[0]}</answer>"
                expression = text.removeprefix("Compute ").split(".")[0]
                right = f"<code>\nprint({expression})\n</code>"
                return right if seed % 2 else f"<answer>{seed}</answer>"

            generation = await ScriptedPolicy(script, self.tokenizer).act(
                token_ids, stop, budget, seed
            )
            return type(generation)(
                generation.token_ids, (-5.0,) * len(generation.token_ids), generation.stop_reason
            )

    monkeypatch.setattr(policies, "TransformersPolicy", Half)


def weights(folder):
    return list(AutoModelForCausalLM.from_pretrained(folder).parameters())


def stop_at(patch, step):
    """A Ctrl-C as that step begins."""
    original = EngineRollouts.__call__

    def stopping(self, prompts, trainer):
        if trainer.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, prompts, trainer)

    patch.setattr(EngineRollouts, "__call__", stopping)


def test_a_run_leaves_all_its_records(initial, tmp_path, solving):
    folder = tmp_path / "g"
    checkpoint = grpo.train(settings(initial), folder)
    assert any(
        not torch.equal(a, b) for a, b in zip(weights(initial), weights(checkpoint), strict=True)
    )
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [record["step"] for record in metrics] == [1, 2, 3, 4]
    assert all(
        record["env/call_pass_rate"] == 1.0 for record in metrics if "env/call_pass_rate" in record
    )
    transcripts = list(read_transcripts(folder / "transcripts.jsonl"))
    assert len(transcripts) == 4 * 8
    for transcript in transcripts:
        check_transcript(transcript)
        assert transcript.reward == (1.0 if transcript.correct else -1.0)
    assert {t.weight_version for t in transcripts} == {0, 1, 2, 3}
    assert any(t.correct and t.calls for t in transcripts)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["seed"] == 0 and "trl" in config["versions"]


def test_a_stopped_run_goes_on_to_the_same_curve(initial, tmp_path, monkeypatch):
    """The model itself samples, so seeds, problems, weights and optimizer must all come back."""
    whole = grpo.train(settings(initial, save_steps=2), tmp_path / "whole")

    with monkeypatch.context() as patch:
        stop_at(patch, 3)  # after the last checkpoint: that step's records must not stay
        with pytest.raises(KeyboardInterrupt):
            grpo.train(settings(initial, save_steps=2), tmp_path / "cut")
    (
        tmp_path / "cut" / "trainer" / "checkpoint-3"
    ).mkdir()  # as a stop in the middle of saving leaves it
    with pytest.raises(SettingsError, match="--resume"):
        grpo.train(settings(initial, save_steps=2), tmp_path / "cut")
    resumed = grpo.train(settings(initial, save_steps=2), tmp_path / "cut", resume=True)
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    pairs = zip(transcripts(tmp_path / "whole"), transcripts(tmp_path / "cut"), strict=True)
    for one, other in pairs:
        assert one.prompt_ids + one.completion_ids == other.prompt_ids + other.completion_ids
        assert one.reward == other.reward and one.trained_version == other.trained_version
        # What shares a batch, and so the rounding, hangs on when requests come.
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").open()]
    assert steps == [1, 2, 3, 4]
    for transcript in transcripts(tmp_path / "cut"):  # in two passes, shuffled
        for span in transcript.response:
            if span.author == "model":  # sampled from the weights that were then trained
                assert span.trained_logprobs == pytest.approx(span.logprobs, abs=1e-3)
            else:
                assert span.trained_logprobs is None


@pytest.mark.parametrize(
    ("every", "kept"), [(1, {0: 16, 2: 16}), (2, {0: 16, 2: 16}), (3, {0: 16})]
)
def test_batches_that_serve_several_steps_are_kept_the_last_cut_short_too(
    initial, tmp_path, every, kept
):
    chosen = settings(initial, steps=3, transcripts_every=every, trl={"generation_batch_size": 16})
    grpo.train(chosen, tmp_path / "g")
    found = transcripts(tmp_path / "g")
    assert Counter(t.trained_version for t in found) == kept
    trained = Counter(t.trained_version for t in found if t.response[0].trained_logprobs)
    assert trained == {step: 16 if step == 0 else 8 for step in kept}


def test_the_first_process_decides_from_which_batch_on_the_steps_count(
    initial, tmp_path, monkeypatch
):
    monkeypatch.setattr(grpo, "everywhere", lambda own: [0, own])  # this process has no file yet
    grpo.train(settings(initial, transcripts_every=3), tmp_path / "g")
    assert {t.trained_version for t in transcripts(tmp_path / "g")} == {3}


def test_a_run_that_goes_on_from_its_last_step_makes_no_further_one(initial, tmp_path, monkeypatch):
    chosen = settings(initial, steps=3, trl={"generation_batch_size": 16})

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(session, "save_checkpoint", full)
        with pytest.raises(OSError, match="no space"):
            grpo.train(chosen, tmp_path / "g")
    checkpoint = grpo.train(chosen, tmp_path / "g", resume=True)
    assert [json.loads(line)["step"] for line in (tmp_path / "g" / "metrics.jsonl").open()] == [
        1,
        2,
        3,
    ]
    assert len(transcripts(tmp_path / "g")) == 32
    last = AutoModelForCausalLM.from_pretrained(tmp_path / "g" / "trainer" / "checkpoint-3")
    for a, b in zip(last.parameters(), weights(checkpoint), strict=True):
        assert torch.equal(a, b)


def test_lora_trains_the_adapter_and_leaves_a_merged_model(initial, tmp_path, solving):
    folder = tmp_path / "lora"
    checkpoint = grpo.train(settings(initial, lora_rank=4, steps=2), folder)
    changed = [
        not torch.equal(a, b) for a, b in zip(weights(initial), weights(checkpoint), strict=True)
    ]
    assert any(changed) and not all(changed)  # norms and embeddings stay as they were
    merged = AutoModelForCausalLM.from_pretrained(checkpoint)
    base = AutoModelForCausalLM.from_pretrained(initial)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = base(ids).logits.clone()
        apart = PeftModel.from_pretrained(base, folder / "adapter")(ids).logits
        torch.testing.assert_close(merged(ids).logits, apart, atol=1e-4, rtol=1e-4)
    assert not torch.equal(before, apart)


def test_a_stopped_lora_run_goes_on_to_the_same_weights(initial, tmp_path, monkeypatch):
    whole = grpo.train(settings(initial, lora_rank=4, steps=2), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            grpo.train(settings(initial, lora_rank=4, steps=2), tmp_path / "cut")
    resumed = grpo.train(settings(initial, lora_rank=4, steps=2), tmp_path / "cut", resume=True)
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_text_only_runs_no_program(initial, tmp_path, solving, monkeypatch):
    refuse = "retool_env.interpreter.make_sandbox"
    monkeypatch.setattr(refuse, lambda *_: pytest.fail("no sandbox is needed"))
    folder = tmp_path / "text"
    grpo.train(settings(initial, steps=1, **{"env.interpreter": False}), folder)
    assert not any(t.calls for t in read_transcripts(folder / "transcripts.jsonl"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"micro_batch": 3}, "micro_batch=3"),
        ({"micro_batch": 0}, "micro_batch must be at least 1"),
        ({"rollouts": 1, "micro_batch": 2}, "rollouts must be at least 2"),
        ({"transcripts_every": 0}, "transcripts_every must be at least 1"),
        ({"staleness": -1}, "staleness must be at least 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"ratio_cap": 1.1}, "above 1 . clip_high"),
        ({"kl": -1}, "kl must be at least 0"),
        ({"clip_low": -3}, "clip_low must be at least 0"),
        ({"clip_low": 1.5}, "clip_low must be from 0 to 1"),
        ({"clip_high": -0.1}, "clip_high must be at least 0"),
        ({"ratio_cap": 10.0, "loss": "cispo"}, "no effect with loss=cispo"),
        ({"dtype": "bfloat16"}, "rounding would discard"),
        ({"trl": {"scale_rewards": "none"}}, "follows from the algorithm"),
        ({"model": "runs/models/smollm2-none"}, "python -m agents smollm2"),
        ({"model": "runs/none/checkpoint"}, "python -m agents sft"),
        ({"dtype": "bf16"}, "bfloat16"),
        ({"trl": {"lerning_rate": 1}}, "did you mean 'learning_rate'"),
        ({"trl": {"temperature": 1}}, "another setting"),
        ({"env.max_callz": 1}, "did you mean 'max_calls'"),
        ({"env.id": "ReTool-None-v0"}, "no environment"),
        ({"env.prompt_template": "{query}" + "x" * 600}, "shorten"),
        ({"sandbox": "none"}, "no sandbox"),
        (
            {"engine": {"name": "transformers", "temperature": 0.5}},
            r"engine\.temperature can't be set: set temperature",
        ),
        (
            {"engine": {"name": "transformers", "model": "m"}},
            r"engine\.model can't be set: set model",
        ),
        ({"engine": {"name": "http://h:1", "urls": "http://h:2"}}, r"engine\.urls can't be set"),
        (
            {"engine": {"name": "transformers", "top_p": 0.9}},
            r"engine\.top_p=0\.9: training needs top_p=1",
        ),
        ({"engine": {"name": "vllm", "sleep_mode": True}, "staleness": 1}, "needs staleness=0"),
    ],
)
def test_mistakes_are_said_before_anything_is_made(initial, tmp_path, overrides, message):
    folder = tmp_path / "x"
    with pytest.raises(SettingsError, match=message):
        grpo.train(settings(initial, **overrides), folder)
    assert not folder.exists()


def test_settings_reach_the_engine_and_its_rollouts(initial, tmp_path, monkeypatch):
    given = {}

    class Enough(Exception):
        pass

    def rollouts(self, engine, problems, seed, **more):
        given.update(more, in_flight=engine.concurrency, tokens_in_flight=engine.tokens_in_flight)
        raise Enough

    monkeypatch.setattr(EngineRollouts, "__init__", rollouts)
    asked = {
        "in_flight": 7,
        "tokens_in_flight": 500,
        "deadline": 9.5,
        "oversample": 1.5,
        "resample": 3,
        "staleness": 2,
    }
    with pytest.raises(Enough):
        grpo.train(settings(initial, **asked), tmp_path / "g")
    assert {name: given[name] for name in asked} == asked


def test_the_trained_model_drops_nothing_out_as_the_sampled_one_does_not(tmp_path):
    model = make_small(tmp_path / "model", attention_dropout=0.5)
    grpo.train(settings(model, steps=1), tmp_path / "g")
    [record] = [json.loads(line) for line in (tmp_path / "g" / "metrics.jsonl").open()]
    assert record["offpolicy/difference_max"] < 1e-4
