"""What a policy gets of a model that is trained."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import LlamaForCausalLM

from agents.tiny import make_model
from retool_env.integrations.weights import is_sharded, trained_weights


def shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(5, 25)[None]).logits.clone()


def test_of_a_plain_model_they_are_its_own():
    model, _ = make_model(seed=0)
    weights = dict(trained_weights(model))
    assert weights.keys() == model.state_dict().keys() and not is_sharded(model)
    assert all(torch.equal(weights[name], each) for name, each in model.state_dict().items())


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["v_proj"], "modules_to_save": ["norm", "lm_head"]},
    ],
)
def test_adapters_are_added_to_what_they_adapt_and_the_model_stays_as_it_was(config):
    torch.manual_seed(0)
    model, _ = make_model(seed=0)
    untied = copy.deepcopy(model.config)
    untied.tie_word_embeddings = False
    model, plain = LlamaForCausalLM(untied), LlamaForCausalLM(untied)
    adapted = shaken(get_peft_model(model, LoraConfig(r=4, **config)))
    before, state = logits(adapted), copy.deepcopy(adapted.state_dict())
    weights = dict(trained_weights(adapted))
    assert weights.keys() == plain.state_dict().keys()
    plain.load_state_dict(weights)
    torch.testing.assert_close(logits(plain), before, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(state[name], tensor) for name, tensor in adapted.state_dict().items())


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"target_modules": ["q_proj"], "use_dora": True}, "no plain LoRA"),
        ({"target_modules": ["q_proj"], "lora_bias": True}, "no plain LoRA"),
        ({"target_modules": ["embed_tokens"]}, "untie the model's embeddings"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "untie"),
    ],
)
def test_adapters_that_can_not_be_added_are_refused(config, said):
    model, _ = make_model(seed=0)
    adapted = get_peft_model(model, LoraConfig(r=4, **config))
    with pytest.raises(ValueError, match=said):
        dict(trained_weights(adapted))


def test_of_several_copies_of_a_layer_the_active_adapters_is_taken():
    torch.manual_seed(0)
    model, _ = make_model(seed=0)
    config = LoraConfig(r=4, target_modules=["v_proj"], modules_to_save=["norm"])
    adapted = get_peft_model(model, config)
    adapted.add_adapter("ref", config)
    adapted.set_adapter("default")
    shaken(adapted)
    norm = model.model.norm.modules_to_save
    assert not torch.equal(norm["default"].weight, norm["ref"].weight)
    assert torch.equal(dict(trained_weights(adapted))["model.norm.weight"], norm["default"].weight)


def test_names_are_plain_under_activation_checkpointing():
    torch.manual_seed(0)
    model, _ = make_model(seed=0)
    adapted = shaken(get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])))
    before = dict(trained_weights(adapted))
    layers = model.model.layers
    for index in range(len(layers)):
        layers[index] = checkpoint_wrapper(layers[index])
    after = dict(trained_weights(adapted))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
