"""The settings that a trained checkpoint carries to users without this package."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from agents.base.model import save_checkpoint
from agents.models import tiny
from retool_env.rollout.transformers.policy import load_policy
from retool_env.rules import Rules

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "


class Dictated(LogitsProcessor):
    """The model says what it is told to."""

    def __init__(self, ids, prompt):
        self.ids, self.prompt = ids, prompt

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.ids[input_ids.shape[1] - self.prompt]] = 0.0
        return forced


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
    assert model.generation_config.top_k == 20  # the one that is trained stays as it is
    return folder


def test_transformers_alone_stops_where_a_turn_ends(saved):
    tokenizer = AutoTokenizer.from_pretrained(saved)
    model = AutoModelForCausalLM.from_pretrained(saved)
    message = [{"role": "user", "content": "6 * 7?"}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt")
    prompt = prompt if isinstance(prompt, torch.Tensor) else prompt["input_ids"]
    assert tokenizer.decode(prompt[0]) == "[user] 6 * 7?\n[assistant] "
    for said, end in {
        "So <code>\n```python\nprint(6 * 7)\n```\n</code>\nand more": "</code>",
        "<answer>\n\\boxed{42}\n</answer> and more": "</answer>",
    }.items():
        dictated = Dictated(tokenizer.encode(said), prompt.shape[1])
        ids = model.generate(
            prompt,
            tokenizer=tokenizer,
            max_new_tokens=60,
            logits_processor=LogitsProcessorList([dictated]),
        )
        text = tokenizer.decode(ids[0, prompt.shape[1] :])
        assert text.endswith(end) and said.startswith(text)


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
