"""The memory plan: parameters of real architectures, activations of small models.

Shards, gradients and moments are measured in two processes, in test_fsdp.py.
"""

from __future__ import annotations

import gc

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks import memory


def exact(layers, hidden, heads, kv_heads, mlp, vocabulary):
    """Parameters of a Qwen2.5 without tied embeddings, counted by hand."""
    keys = hidden // heads * kv_heads
    attention = hidden * (hidden + 1) + 2 * keys * (hidden + 1) + hidden * hidden
    return layers * (attention + 3 * hidden * mlp + 2 * hidden) + hidden + 2 * vocabulary * hidden


@pytest.mark.parametrize(
    ("name", "shape", "published"),
    [
        ("qwen2.5-7b", (28, 3_584, 28, 4, 18_944, 152_064), 7.62e9),
        ("qwen2.5-32b", (64, 5_120, 40, 8, 27_648, 152_064), 32.8e9),
    ],
)
def test_the_real_architectures_have_their_parameters(name, shape, published):
    model = memory.build(memory.read_config(name))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    number = memory.count(model.parameters())
    assert number == exact(*shape)
    assert number == pytest.approx(published, rel=2e-3)


def test_a_shard_is_the_largest_of_fully_shards_parts():
    ten, vector, one = torch.empty(10, 3), torch.empty(7), torch.empty(1, 5)
    assert memory.shard([ten], 4) == 9  # three rows of ten: 3, 3, 3, 1
    assert memory.shard([ten, vector, one], 4) == 9 + 2 + 5
    assert memory.shard([ten, vector, one], 1) == memory.count([ten, vector, one])


def test_kept_bytes_are_sixteen_a_trained_parameter():
    assert sum(memory.kept(1000, 1000).values()) == 16_000
    assert memory.kept(1000, 10, bytes_frozen=2) == {
        "weights": 2 * 990 + 40,
        "gradients": 40,
        "Adam's moments": 80,
    }


def small(layers=1, kv_heads=2):
    return Qwen2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=False,
    )


def make(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_a_layers_activations_are_those_that_autograd_saves(kv_heads):
    config, tokens = small(kv_heads=kv_heads), 96
    model = make(config)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hidden = torch.randn(1, tokens, config.hidden_size, dtype=torch.bfloat16)
    hidden.requires_grad_()
    places = model.model.rotary_emb(hidden, torch.arange(tokens)[None])
    own |= {place.untyped_storage().data_ptr() for place in places}
    own.add(hidden.untyped_storage().data_ptr())
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.model.layers[0](hidden, position_embeddings=places)
    planned = memory.layer_activations(config, tokens)
    assert sum(saved.values()) == pytest.approx(planned, rel=0.02)


def alive():
    gc.collect()
    tensors = (
        o
        for o in gc.get_objects()
        if issubclass(type(o), torch.Tensor) and o.layout is torch.strided
    )
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def test_checkpointing_keeps_a_layers_input_and_nothing_else_of_it():
    grown, tokens = {}, 96
    for layers in (1, 5):
        model = make(small(layers))
        model.gradient_checkpointing_enable(
            {"use_reentrant": False, "preserve_rng_state": False}  # as under FSDP
        )
        before = alive()
        output = model(input_ids=torch.zeros(1, tokens, dtype=torch.long))
        grown[layers] = alive() - before
        del output, model
    planned = memory.checkpoints(small(5), tokens) - memory.checkpoints(small(1), tokens)
    assert grown[5] - grown[1] == planned == 4 * tokens * 64 * 2


def test_what_a_setup_adds_and_saves():
    config = small(layers=2)

    def rows(**more):
        return memory.plan(config, memory.Setup(**{"algorithm": "grpo", "gpus": 2, **more}))

    plain, size = rows(), memory.shard(memory.build(config).parameters(), 2)
    assert plain["actor: gradients"] == 4 * size and "critic: weights" not in plain
    # A critic has no head of words, but one of a number, of which each process has a row.
    trunk = memory.shard(memory.build(config).base_model.parameters(), 2)
    critic = rows(algorithm="ppo")
    assert critic["critic: weights"] == 4 * (trunk + 64 + 1)
    assert critic["actor: Adam's moments"] == 8 * size
    assert rows(kl=True)["reference: weights"] == 4 * size
    adapted = rows(lora=8, kl=True)
    assert "reference: weights" not in adapted
    shapes = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 160), (64, 160), (160, 64)]
    adapters = sum(8 // 2 * i + o // 2 * 8 for i, o in shapes) * 2
    assert adapted["actor: gradients"] == 4 * adapters
    assert adapted["actor: weights"] == 2 * size + 4 * adapters
    halved = rows(gpus=1)
    assert halved["actor: weights"] == 4 * memory.count(memory.build(config).parameters())
    longer = rows(tokens=2 * 18_432)
    assert longer["activations: layers' inputs"] == 2 * plain["activations: layers' inputs"]
    offloaded = rows(offload=True)
    assert sum(size for name, size in offloaded.items() if name.startswith("actor")) == 0


def test_the_command_prints_a_32b_and_whether_it_fits(capsys):
    assert memory.main(["--model", "qwen2.5-32b", "--algorithm", "ppo", "--gpus", "16"]) == 0
    text = capsys.readouterr().out
    assert "32,763,876,352 parameters" in text and "does NOT fit into 80 GiB" in text
    # 32.76e9 parameters * 4 bytes / 16 GPUs
    assert any(line.split()[-1] == "7.63" for line in text.splitlines() if "actor: weights" in line)
    assert memory.main(["--algorithm", "dapo", "--gpus", "16"]) == 0
    assert "That fits into 80 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--gpus", "0"], "at least 1"), (["--model", "./none"], "none")]
)
def test_mistakes_are_said(arguments, message, capsys):
    with pytest.raises(SystemExit):
        memory.main(arguments)
    assert message in capsys.readouterr().err
