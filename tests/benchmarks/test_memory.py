"""The plan of memory: parameters of real architectures, and measured activations of small models.

Shards, gradients and moments are measured in two processes, in test_fsdp.py.
"""

from __future__ import annotations

import gc
import json

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


def test_a_shard_is_the_largest_part_with_padding():
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
def test_the_planned_activations_are_the_saved_tensors_of_autograd(kv_heads):
    config, tokens = small(kv_heads=kv_heads), 96
    model = make(config)
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hidden = torch.randn(1, tokens, config.hidden_size, dtype=torch.bfloat16)
    hidden.requires_grad_()
    positions = model.model.rotary_emb(hidden, torch.arange(tokens)[None])
    known |= {p.untyped_storage().data_ptr() for p in positions}
    known.add(hidden.untyped_storage().data_ptr())
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.model.layers[0](hidden, position_embeddings=positions)
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
    # The head of a critic has one row of 64 weights and one bias; each process holds them whole.
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
    inputs = "activations: layers' inputs"
    assert rows(tokens=2 * 18_432)[inputs] == 2 * plain[inputs]
    assert rows(micro_batch=2)[inputs] == 2 * plain[inputs]
    assert rows(budget=3 * 18_432, micro_batch=2)[inputs] == 3 * plain[inputs]
    assert rows(budget=100)[inputs] == plain[inputs]  # the longest episode has a pass of its own
    head = "gathered: heads after a forward pass alone"
    assert head not in plain and head not in rows(lora=8, kl=True)
    # The last norm has 64 weights, the head 64 of each of 64 tokens.
    assert rows(kl=True)[head] == critic[head] == 2 * (64 + 64 * 64)
    assert rows(algorithm="ppo", kl=True)[head] == 2 * critic[head]
    assert head not in rows(algorithm="ppo", kl=True, sharded=False)  # one GPU gathers nothing
    offloaded = rows(offload=True)
    assert sum(size for name, size in offloaded.items() if name.startswith("actor")) == 0


def test_the_command_prints_a_32b_and_whether_it_fits(capsys):
    assert memory.main(["--model", "qwen2.5-32b", "--algorithm", "ppo", "--gpus", "16"]) == 0
    text = capsys.readouterr().out
    assert "the first node: 122 GiB while a model loads" in text
    assert "32,763,876,352 parameters" in text and "does NOT fit into 80 GiB" in text
    # 32.76e9 parameters * 4 bytes / 16 GPUs
    assert any(line.split()[-1] == "7.63" for line in text.splitlines() if "actor: weights" in line)
    assert memory.main(["--algorithm", "dapo", "--gpus", "16"]) == 0
    assert "That fits into 80 GiB" in capsys.readouterr().out


def test_short_lived_memory_is_the_largest_moment():
    config = small(layers=2)

    def moment(**more):
        setup = memory.Setup(**{"algorithm": "grpo", "gpus": 2, "tokens": 96, **more})
        return memory.plan(config, setup)[memory.MOMENT]

    model = memory.build(config)
    layer, head = memory.gathered(model)
    compute = memory.layer_activations(config, 96) + memory.layer_gradients(config, 96)
    assert moment() == compute + 8 * layer  # two layers in bfloat16, one layer's sum
    assert moment(sharded=False) == compute
    assert moment(lora=8) == compute + 4 * layer  # a frozen layer has no gradient
    config.vocab_size = 16_000  # now the head is larger
    head = memory.gathered(memory.build(config))[1]
    at_head = memory.head_buffers(config, 96) + 8 * 64 * 96
    assert moment() == at_head + 10 * head
    # With one token nothing is larger than the optimizer's step, which works on whole models.
    config = small(layers=64)
    size = memory.shard(memory.build(config).parameters(), 2)
    assert moment(tokens=1) == 4 * size


def test_what_stands_around_the_plan_grows_with_the_mask_of_packed_rows():
    plain, packed = (
        memory.around(memory.Setup("grpo", 2, 1000, budget=budget), 0) for budget in (0, 4000)
    )
    assert plain == 1000 * 64 + 2 * memory.GIB
    assert packed - 2 * memory.GIB == 4000 * (64 + 3 * 1000)
    assert memory.around(memory.Setup("grpo", 2, 1000), 100) == plain + 5


def test_host_memory_is_one_copy_of_the_model_and_the_offloaded_shards():
    config = small(layers=2)
    size = memory.count(memory.build(config).parameters())
    assert memory.host(config, memory.Setup("grpo", 2), 8) == (4 * size, 4 * size, 0)
    assert memory.host(config, memory.Setup("grpo", 2, lora=8), 8)[:2] == (2 * size, 4 * size)
    offloaded = memory.Setup("ppo", 16, offload=True)
    rows = memory.plan(config, memory.Setup("ppo", 16))
    lasting = sum(bytes for row, bytes in rows.items() if row.startswith(("actor", "critic")))
    assert memory.host(config, offloaded, 8)[2] == 8 * lasting


def test_the_check_prints_both_and_fails_if_they_differ(monkeypatch, tmp_path, capsys):
    config, out = small(layers=2), tmp_path / "memory.json"
    planned = sum(memory.plan(config, memory.Setup("grpo", 4, 96)).values())
    monkeypatch.setattr(memory, "read_config", lambda name: config)
    arguments = ["--model", "small", "--tokens", "96", "--check", "4", "--out", str(out)]
    for factor, status in ((1.05, 0), (1.2, 1), (0.85, 1)):
        monkeypatch.setattr(memory, "track", lambda *_, f=factor: {"Total": planned / f})
        assert memory.main(arguments) == status
        said = capsys.readouterr().out
        assert f"  {factor:.3f}" in said and "GRPO" in said
    (compared,) = json.loads(out.read_text())["compared"]
    assert compared["gpus"] == 4 and compared["ratio"] == pytest.approx(0.85)


@pytest.mark.slow
def test_the_plan_of_a_32b_is_that_of_a_simulated_rank(tmp_path):
    assert memory.main(["--check", "16", "32", "64", "--out", str(tmp_path / "memory.json")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "at least 1"),
        (["--check", "0"], "at least 1"),
        (["--budget", "-1"], "not negative"),
        (["--check", "4", "--lora", "8"], "full fine-tuning"),
        (["--check", "4", "--algorithm", "ppo"], "simulates GRPO"),
        (["--check", "4", "--kl"], "simulates GRPO"),
        (["--check", "4", "--offload"], "simulates GRPO"),
        (["--model", "./none"], "none"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        memory.main(arguments)
    assert message in capsys.readouterr().err
