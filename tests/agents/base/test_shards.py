"""Shards: what the first process sends, what the others build, and the memory of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from helpers import HELPERS, ROOT
from helpers.small_runs import make_small
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM

from agents.base import shards
from agents.base.settings import SettingsError
from agents.models.tiny import make_model


@pytest.fixture(scope="module", params=[False, True], ids=["two heads", "tied"])
def tied(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tied, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    return make_small(path, num_hidden_layers=2, tie_word_embeddings=tied)


def in_process(monkeypatch, first, sent=None):
    """Let this process be the first or another process; returns what is sent to all."""
    messages = []

    def everywhere(message):
        messages.append(message)
        return [message if sent is None else sent]

    monkeypatch.setattr(shards, "PartialState", lambda: SimpleNamespace(is_main_process=first))
    monkeypatch.setattr(shards, "everywhere", everywhere)
    return messages


def read(monkeypatch, folder, dtype=torch.float32):
    """The model of the first process, and that of another process."""
    messages = in_process(monkeypatch, True)
    whole = shards.read_by_first(folder, dtype, None)
    in_process(monkeypatch, False, messages[0])
    return whole, shards.read_by_first(folder, dtype, "sdpa")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_process_builds_the_same_model_without_weights(folder, tied, dtype, monkeypatch):
    whole, empty = read(monkeypatch, folder, dtype)
    ours, theirs = whole.state_dict(), empty.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (theirs[name].shape, theirs[name].dtype) == (tensor.shape, dtype)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert (empty.lm_head.weight is empty.model.embed_tokens.weight) is tied
    buffers = dict(empty.named_buffers())  # rotary frequencies, which are in no file
    assert buffers and buffers.keys() == dict(whole.named_buffers()).keys()
    for name, buffer in whole.named_buffers():
        assert buffers[name].dtype == buffer.dtype and torch.equal(buffers[name], buffer)


def test_data_types_are_those_of_the_first_process(folder, monkeypatch):
    messages = in_process(monkeypatch, True)
    shards.read_by_first(folder, torch.bfloat16, None)
    name = "model.norm.weight"
    messages[0][1][name] = (messages[0][1][name][0], torch.float32)
    in_process(monkeypatch, False, messages[0])
    empty = shards.read_by_first(folder, torch.bfloat16, None)
    assert empty.model.norm.weight.dtype == torch.float32
    assert empty.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


def test_weights_that_do_not_belong_to_the_configuration_are_refused(folder, monkeypatch):
    messages = in_process(monkeypatch, True)
    shards.read_by_first(folder, torch.float32, None)
    messages[0][1]["model.layers.0.mlp.extra"] = (torch.Size([3]), torch.float32)
    in_process(monkeypatch, False, messages[0])
    with pytest.raises(SettingsError, match=r"layers\.0\.mlp\.extra.*ram_efficient_loading: false"):
        shards.read_by_first(folder, torch.float32, None)


def test_all_processes_hear_that_the_first_could_not_read(tmp_path, monkeypatch):
    model, _ = make_model(0)
    model.config.save_pretrained(tmp_path)
    messages = in_process(monkeypatch, True)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        shards.read_by_first(str(tmp_path), torch.float32, None)
    in_process(monkeypatch, False, messages[0])
    with pytest.raises(OSError, match=r"model\.safetensors"):
        shards.read_by_first(str(tmp_path), torch.float32, None)


def test_a_copy_shares_the_weights_and_nothing_else(folder, tied, monkeypatch):
    whole, empty = read(monkeypatch, folder)
    copy = shards.copied(whole)
    pairs = list(zip(whole.parameters(), copy.parameters(), strict=True))
    assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert (copy.lm_head.weight is copy.model.embed_tokens.weight) is tied
    copy.to("meta")
    assert {p.device.type for p in whole.parameters()} == {"cpu"}
    ids = torch.arange(5)[None]
    assert shards.copied(whole)(ids).logits.equal(whole(ids).logits)
    assert {p.device.type for p in shards.copied(empty).parameters()} == {"meta"}


def test_parameters_without_memory_have_numbers_of_their_own():
    with torch.device("meta"):
        model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(3)))
    found = []
    prepare = shards.prepared(lambda *given: found.extend(p.data_ptr() for p in model.parameters()))
    prepare("accelerator", model, torch.optim.SGD(model.parameters()))
    assert len(set(found)) == 6 and 0 not in found


@pytest.fixture
def mesh(tmp_path):
    """A mesh of one process."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_each_tensor_is_freed_when_it_is_sent(folder, tied, mesh, monkeypatch):
    whole, empty = read(monkeypatch, folder)
    empty.model.register_buffer("kept", torch.zeros(3))  # in the file, and not sharded
    whole.model.register_buffer("kept", torch.arange(3.0))
    empty = empty.to("meta")
    empty.tie_weights()
    for layer in empty.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(empty, mesh=mesh)
    expected = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    tensors = {name: tensor.clone() for name, tensor in expected.items()}
    if tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    kept = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors.values()]
    number, send, living = len({ref.cdata for ref in kept}), shards.distribute_tensor, []

    def counted(*given):
        living.append(len({ref.cdata for ref in kept if not ref.expired()}))
        return send(*given)

    monkeypatch.setattr(shards, "distribute_tensor", counted)
    shards.hand_over(Accelerator(cpu=True), empty, tensors)
    # The tensor in hand, those to come, and sometimes one that gloo is about to release.
    assert len(living) == number - 1 and living[-1] <= 3
    assert all(count <= number - sent + 1 for sent, count in enumerate(living))
    assert not tensors
    for name, tensor in empty.state_dict().items():
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        assert torch.equal(full, expected[name])


SIZE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 24_001,
    "initializer_range": 0.02,
}
"""184 million parameters. The vocabulary has an odd size, so its shards are padded."""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Models in several files: in float32, in bfloat16, and with tied embeddings."""
    folder = tmp_path_factory.mktemp("large")
    for name, dtype in (("plain", "float32"), ("bfloat16", "bfloat16"), ("tied", "float32")):
        model, tokenizer = make_model(0, **SIZE, tie_word_embeddings=name == "tied")
        model.to(getattr(torch, dtype)).save_pretrained(folder / name, max_shard_size="100MB")
        assert len(list((folder / name).glob("*.safetensors"))) > 3
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "kind"),
    [
        *((2, kind) for kind in ("trained", "bfloat16", "tied", "adapted", "critic", "reference")),
        *((4, kind) for kind in ("trained", "bfloat16")),
    ],
)
def test_a_node_holds_one_copy(ranks, kind, large):
    """Memory that is no page of a file, sampled while a model of 184 million parameters loads."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(ROOT / "agents" / "launch" / "cpu2_fsdp2.yaml")]
    command += ["--num_processes", str(ranks), str(HELPERS / "loading_runs.py"), str(large), kind]
    ran = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{HELPERS.parent}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 0, ran.stderr[-5000:]
    name = kind if kind in ("bfloat16", "tied") else "plain"
    whole = 4 * AutoModelForCausalLM.from_pretrained(large / name).num_parameters()
    first, *others = (
        json.loads((large / f"{rank}-of-{ranks}.json").read_text())[kind] for rank in range(ranks)
    )
    for figures in (first, *others):
        assert figures["equal"]  # weights and buffers are those of reading in each process
        assert figures["loss"] == figures["read by all"]["loss"] != 0
        assert figures["loading"]["end"] < figures["shards"] + 0.1 * whole
    assert first["loading"]["most"] < 1.2 * whole
    for figures in others:
        assert figures["reading"]["most"] < 0.1 * whole
        assert figures["loading"]["most"] < figures["shards"] + 0.2 * whole
