"""A model is checked when it is loaded; a saved checkpoint works without this package."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from helpers.power import Disk
from helpers.small_runs import make_small, settings
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2Config,
)

from agents import grpo, ppo, sft
from agents.base.model import check_learning_rate, export, load_model, save_checkpoint
from agents.base.settings import SettingsError
from agents.models import tiny
from retool_env.rollout.transformers.policy import load_policy
from retool_env.rules import Rules
from retool_env.transcript import read_transcripts

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "


class Dictated(LogitsProcessor):
    """Forces the model to write a given text."""

    def __init__(self, ids, prompt):
        self.ids, self.prompt = ids, prompt

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.ids[input_ids.shape[1] - self.prompt]] = 0.0
        return forced


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a model whose own settings name another sampling and end of sequence."""
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    model, tokenizer = tiny.make_model(seed=0)
    tokenizer.chat_template = TEMPLATE
    model.generation_config = GenerationConfig(
        eos_token_id=[7], pad_token_id=0, repetition_penalty=1.05, top_k=20, do_sample=True
    )
    trainer = SimpleNamespace(model=model, accelerator=Accelerator(cpu=True))
    save_checkpoint(trainer, tokenizer, folder, Rules().turn_protocol().stop)
    assert model.generation_config.top_k == 20  # the trained model is not changed
    return folder


def test_transformers_alone_stops_where_a_turn_ends(saved):
    tokenizer = AutoTokenizer.from_pretrained(saved)
    model = AutoModelForCausalLM.from_pretrained(saved)
    message = [{"role": "user", "content": "6 * 7?"}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt")
    prompt = prompt if isinstance(prompt, torch.Tensor) else prompt["input_ids"]
    assert tokenizer.decode(prompt[0]) == "[user] 6 * 7?\n[assistant] "
    for dictate, end in {
        "So <code>\n```python\nprint(6 * 7)\n```\n</code>\nand more": "</code>",
        "<answer>\n\\boxed{42}\n</answer> and more": "</answer>",
    }.items():
        dictated = Dictated(tokenizer.encode(dictate), prompt.shape[1])
        ids = model.generate(
            prompt,
            tokenizer=tokenizer,
            max_new_tokens=60,
            logits_processor=LogitsProcessorList([dictated]),
        )
        text = tokenizer.decode(ids[0, prompt.shape[1] :])
        assert text.endswith(end) and dictate.startswith(text)


def test_both_ends_of_sequence_are_kept_and_sampling_is_not(saved):
    config = GenerationConfig.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert config.eos_token_id == [tokenizer.eos_token_id, 7]
    assert config.pad_token_id == tokenizer.pad_token_id
    assert config.stop_strings == ["</code>", "</answer>"]
    assert not config.do_sample and config.top_k != 20
    assert config.repetition_penalty in (None, 1.0)
    policy = load_policy(str(saved), device="cpu")
    assert policy.checkpoint == str(saved)
    assert policy.eos_token_ids == {tokenizer.eos_token_id, 7}


def test_without_the_interpreter_only_an_answer_ends_a_turn(tmp_path):
    model, tokenizer = tiny.make_model(seed=0)
    trainer = SimpleNamespace(model=model, accelerator=Accelerator(cpu=True))
    stop = Rules(interpreter=False).turn_protocol().stop
    save_checkpoint(trainer, tokenizer, tmp_path / "checkpoint", stop)
    assert GenerationConfig.from_pretrained(tmp_path / "checkpoint").stop_strings == ["</answer>"]


def test_a_power_failure_keeps_saved_models(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    model, tokenizer = tiny.make_model(seed=0)
    trainer = SimpleNamespace(model=model, accelerator=Accelerator(cpu=True))
    save_checkpoint(trainer, tokenizer, tmp_path / "checkpoint")
    assert disk.lost(tmp_path) == []
    export(trainer, tokenizer, tmp_path / "checkpoints" / "1", ())
    assert disk.lost(tmp_path / "checkpoints") == []


def test_without_a_pad_token_the_eos_token_pads_and_nothing_changes(model, tmp_path):
    """Padding is told by its position, so a token that ends responses can also pad them."""

    def without(tokenizer):
        tokenizer.pad_token = None

    other = make_small(tmp_path / "other", without)
    assert AutoTokenizer.from_pretrained(other).pad_token is None
    for name, module in {"grpo": grpo, "ppo": ppo}.items():
        more = {"steps": 2, "env.max_tokens": 90}  # some responses end before this limit
        plain = module.train(settings(name, model=model, **more), tmp_path / f"{name}-plain")
        episodes = list(read_transcripts(tmp_path / f"{name}-plain" / "transcripts.jsonl"))
        assert len({len(t.completion_ids) for t in episodes}) > 2
        with pytest.warns(UserWarning, match=r"no pad_token, so its eos_token '<\|end\|>' pads"):
            bare = module.train(settings(name, model=other, **more), tmp_path / f"{name}-bare")
        for a, b in zip(
            *(AutoModelForCausalLM.from_pretrained(f).parameters() for f in (plain, bare)),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: setattr(t, "eos_token", None), "no eos_token.*save_pretrained"),
        (lambda t: t.add_special_tokens({"pad_token": "<new>"}), "embeds .* tokens: set another"),
        (lambda t: t.add_special_tokens({"eos_token": "<new>"}), "the eos_token '<new>'"),
    ],
)
def test_a_tokenizer_that_does_not_suit_is_refused(change, message, tmp_path):
    folder = make_small(tmp_path / "model", change)
    with pytest.raises(SettingsError, match=message):
        load_model(folder, "float32")


def test_attention_is_chosen_by_name_and_kernels_that_are_missing_are_named(tmp_path):
    folder = make_small(tmp_path / "model")
    for name in ("sdpa", "eager"):
        assert load_model(folder, "float32", name)[0].config._attn_implementation == name
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="attention=flash_attention_2 does not work on"):
            load_model(folder, "float32", "flash_attention_2")
    with pytest.raises(SettingsError, match=r"attention=flash_3: .*flash_attention_3"):
        settings("grpo", model=folder, attention="flash_3")


def parameters(**size):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(Qwen2Config(**size)).num_parameters()


def test_a_learning_rate_is_measured_by_the_size_of_the_model():
    def check(rate, size, **more):
        check_learning_rate(sft.Settings(learning_rate=rate, **more), size)

    seven = parameters(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    )
    assert 7e9 < seven < 8e9
    with pytest.raises(
        SettingsError, match=r"learning_rate=0.001 is far too high .* 7,616 million"
    ):
        check(1e-3, seven)
    check(1e-3, seven, allow_high_learning_rate=True)
    check(1e-3, seven, lora_rank=16)  # adapters
    check(1e-3, seven, trl={"optim": "sgd"})
    with pytest.raises(SettingsError, match="set allow_high_learning_rate=true"):
        check(2e-3, seven, lora_rank=16, trl={"optim": "adamw_torch"})
    for rate, size in ((1e-6, seven), (1e-5, 32e9), (1e-4, seven), (6e-4, 125e6), (2e-3, 1e6)):
        check(rate, int(size))  # rates in use
    with pytest.raises(SettingsError, match=r"^sft\.learning_rate must be above 0"):
        made = sft.Settings(learning_rate=0.0, allow_high_learning_rate=True)
        check_learning_rate(made, 1, section="sft.")
