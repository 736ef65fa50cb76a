"""The weights of a trained model, as a policy gets them."""

from __future__ import annotations

import copy
import json
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from agents.base.model import save_checkpoint
from agents.models.tiny import make_model
from retool_env.rollout.engine import run_blocking
from retool_env.rollout.transformers.policy import TransformersPolicy, load_policy
from retool_env.training.trained_weights import is_sharded, trained_adapter, trained_weights


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


def adapted_in_bfloat16(update):
    """A model in bfloat16 whose adapters add so much at most."""
    torch.manual_seed(0)
    model, tokenizer = make_model(seed=0)
    model = model.to(torch.bfloat16)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(update * torch.randn_like(parameter))
    return adapted, tokenizer


def test_a_small_update_of_a_model_in_bfloat16_is_kept_whole():
    adapted, _ = adapted_in_bfloat16(1e-5)
    weights = dict(trained_weights(adapted))
    for name, module in adapted.get_base_model().named_modules():
        if name.endswith("q_proj"):
            delta = module.get_delta_weight("default")
            found = weights[f"{name}.weight"]
            assert found.dtype == torch.float32 and delta.abs().max() > 0
            torch.testing.assert_close(
                found, module.base_layer.weight.float() + delta, atol=0, rtol=0
            )


def test_a_merged_model_is_saved_in_float32_and_evaluated_in_it(tmp_path):
    adapted, tokenizer = adapted_in_bfloat16(1e-5)
    accelerator = Accelerator(cpu=True)
    trainer = SimpleNamespace(model=adapted, accelerator=accelerator)
    save_checkpoint(trainer, tokenizer, tmp_path / "checkpoint")
    policy = load_policy(str(tmp_path / "checkpoint"), device="cpu")
    for name, tensor in trained_weights(adapted):
        assert torch.equal(policy.model.state_dict()[name], tensor.float())
    assert policy.model.dtype == torch.float32
    assert adapted.dtype == torch.bfloat16  # the one that is trained


@pytest.mark.parametrize("lora", [True, False])
def test_a_model_saved_in_bfloat16_is_half_as_large_and_the_trained_one_stays(tmp_path, lora):
    adapted, tokenizer = adapted_in_bfloat16(1e-5) if lora else make_model(seed=0)
    before = adapted.dtype
    trainer = SimpleNamespace(model=adapted, accelerator=Accelerator(cpu=True))
    save_checkpoint(trainer, tokenizer, tmp_path / "half", dtype="bfloat16")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "half")  # in the saved type
    assert saved.dtype == torch.bfloat16 and adapted.dtype == before
    for name, tensor in trained_weights(adapted):
        assert torch.equal(saved.state_dict()[name], tensor.to(torch.bfloat16))


@pytest.mark.parametrize(("update", "least", "most"), [(1e-5, 0.9, 1.0), (1.0, 0.0, 0.1)])
def test_a_sampler_in_bfloat16_says_how_many_weights_an_update_did_not_move(update, least, most):
    adapted, tokenizer = adapted_in_bfloat16(update)
    served = make_model(seed=0)[0].to(torch.bfloat16)
    before = copy.deepcopy(served.state_dict())
    policy = TransformersPolicy(served, tokenizer)
    with pytest.warns(UserWarning, match="the weights that the update changed keep") as caught:
        run_blocking(policy.update_weights(1, trained_weights(adapted)))
    said = float(re.search(r"(\d+)%", re.sub(r" %", "%", str(caught[0].message)))[1]) / 100
    changed = unmoved = 0
    for name, tensor in trained_weights(adapted):
        if "q_proj" in name:
            differs = tensor != before[name].float()
            changed += int(differs.sum())
            unmoved += int((differs & (served.state_dict()[name] == before[name])).sum())
    assert said == pytest.approx(unmoved / changed, abs=0.006) and least <= said <= most
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        run_blocking(policy.update_weights(2, trained_weights(adapted)))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target_modules": ["q_proj"], "use_dora": True}, "not plain LoRA"),
        ({"target_modules": ["q_proj"], "lora_bias": True}, "not plain LoRA"),
        ({"target_modules": ["embed_tokens"]}, "untie the model's embeddings"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "untie"),
    ],
)
def test_adapters_that_can_not_be_added_are_refused(config, message):
    model, _ = make_model(seed=0)
    adapted = get_peft_model(model, LoraConfig(r=4, **config))
    with pytest.raises(ValueError, match=message):
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


def test_the_adapter_of_a_model_in_training_is_the_one_that_peft_saves(tmp_path):
    torch.manual_seed(0)
    model, _ = make_model(seed=0)
    config = LoraConfig(r=4, lora_alpha=7, target_modules=["q_proj", "up_proj"], use_rslora=True)
    adapted = shaken(get_peft_model(model, config))
    adapted.save_pretrained(tmp_path)
    model.model.layers[0] = checkpoint_wrapper(model.model.layers[0])
    adapter = trained_adapter(adapted)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    tensors = dict(adapter.tensors)
    assert tensors.keys() == saved.keys() and saved
    assert all(torch.equal(tensors[name], each) for name, each in saved.items())
    read = json.loads((tmp_path / "adapter_config.json").read_text())
    written = json.loads(json.dumps(adapter.config))
    for name in ("r", "lora_alpha", "use_rslora", "bias", "peft_type", "modules_to_save"):
        assert written[name] == read[name]
    assert sorted(read["target_modules"]) == written["target_modules"]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "this model has 0"),
        ({"target_modules": ["q_proj"], "use_dora": True}, "plain LoRA on linear layers only"),
        ({"target_modules": ["embed_tokens"]}, "plain LoRA on linear layers only"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, "linear layers only"),
    ],
)
def test_adapters_that_servers_can_not_apply_are_refused(config, message):
    model, _ = make_model(seed=0)
    adapted = model if config is None else get_peft_model(model, LoraConfig(r=4, **config))
    with pytest.raises(ValueError, match=message):
        trained_adapter(adapted)


def test_weights_are_cast_once_their_sums_are_made():
    adapted, _ = adapted_in_bfloat16(1e-2)
    whole = dict(trained_weights(adapted))
    for name, tensor in trained_weights(adapted, torch.bfloat16):
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, whole[name].to(torch.bfloat16))
