from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PhiConfig, PhiForCausalLM
from trl.trainer import utils
from trl.trainer.utils import add_fused_lm_head

from agents.models.tiny import make_model
from retool_env.integrations.fused_head import skip_unwanted

OUTPUTS = ("log_probs", "entropy", "is_top1")


def phi():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = PhiForCausalLM(PhiConfig(vocab_size=50, num_attention_heads=2, **shape))
    torch.nn.init.normal_(model.lm_head.bias)
    return model


def llama():
    return make_model(seed=0)[0]


def adapted():
    torch.manual_seed(0)
    add_fused_lm_head(model := llama(), 0.7, outputs=OUTPUTS)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))


def batch(wanted):
    ids = torch.arange(24).view(2, 12) + 3
    return ids, (ids + 1).masked_fill(~torch.tensor(wanted).expand(2, 12), -100)


SOME = [False] * 7 + [True] * 3 + [False] * 2


@pytest.mark.parametrize("make", [phi, llama, adapted])
@pytest.mark.parametrize("wanted", [SOME, [True] * 12, [False] * 12])
def test_what_the_head_returns_and_its_gradient_stay_the_same(make, wanted):
    found = []
    for skips in (False, True):
        model = make().eval()
        if make is not adapted:
            add_fused_lm_head(model, 0.7, outputs=OUTPUTS)
        if skips:
            skip_unwanted(model)
        ids, labels = batch(wanted)
        output = model(input_ids=ids, shift_labels=labels, fused_lm_head=True)
        (output.log_probs.sum() + output.entropy.sum()).backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        found.append((output, grads))
    (one, one_grads), (other, other_grads) = found
    for name in ("log_probs", "entropy", "is_top1", "label_mask", "loss"):
        torch.testing.assert_close(other[name], one[name], atol=1e-5, rtol=1e-4)
    for expected, grad in zip(one_grads, other_grads, strict=True):
        grad = torch.zeros_like(expected) if grad is None else grad
        torch.testing.assert_close(grad, expected, atol=1e-5, rtol=1e-4)


def test_the_head_is_given_only_what_is_wanted(monkeypatch):
    rows, original = [], utils._ChunkedLogProbFunction.apply

    def apply(hidden, *arguments):
        rows.append(hidden.shape[0])
        return original(hidden, *arguments)

    monkeypatch.setattr(utils._ChunkedLogProbFunction, "apply", apply)
    model = llama()
    add_fused_lm_head(model)
    skip_unwanted(model)
    ids, labels = batch(SOME)
    model(input_ids=ids, shift_labels=labels, fused_lm_head=True)
    assert rows == [2 * 3]


def test_without_the_fused_head_the_model_is_as_it_was():
    model = llama().eval()
    expected = model(torch.arange(5, 15)[None]).logits
    add_fused_lm_head(model)
    skip_unwanted(model)
    assert torch.equal(model(torch.arange(5, 15)[None]).logits, expected)
