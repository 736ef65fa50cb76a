"""Loads and shards models in several processes, and measures the memory of each process.

`accelerate launch --config_file CONFIG --num_processes N` runs it, with
agents/launch/cpu2_fsdp2.yaml as CONFIG and these arguments: tests/helpers/loading_runs.py FOLDER
KIND ... FOLDER holds the models, and each KIND is a name of `KINDS`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch
import trl.trainer.grpo_trainer
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import get_peft_model
from torch.distributed.tensor import DTensor

from agents.base.critic import Critic
from agents.base.model import load_model, lora_config
from agents.base.sharding import (
    leave_process_group,
    processes,
    read_by_all,
    reference_of,
    shard_frozen,
)
from benchmarks.parts.machine import growth
from retool_env.training.packing import pack
from retool_env.training.trained_weights import whole


def state(model):
    """All parameters and buffers of a sharded model, whole and on the CPU."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: whole(tensor.detach()).clone() for name, tensor in named.items()}


def shards(model):
    """Bytes of the model's shards in this process."""
    parts = (p.to_local() for p in model.parameters() if isinstance(p, DTensor))
    return sum(part.untyped_storage().nbytes() for part in parts)


def trained(model, accelerator):
    """Shard a model together with its optimizer, as all trainers do."""
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    model, optimizer = accelerator.prepare(model, optimizer)
    held = optimizer.param_groups[0]["params"]
    assert [id(p) for p in held] == [id(p) for p in model.parameters() if p.requires_grad]
    return model


def adapted(model, accelerator):
    torch.manual_seed(0)
    model = get_peft_model(model, lora_config(4))
    return trained(model, accelerator)


def critic(model, accelerator):
    return trained(Critic(model), accelerator)


def reference(model, accelerator):
    """GRPO's reference model, while the trained model is still whole."""
    with reference_of(model):
        copy = trl.trainer.grpo_trainer.create_model_from_path(model.name_or_path)
    return shard_frozen(copy, accelerator)


KINDS = {
    "trained": trained,
    "bfloat16": trained,
    "tied": trained,
    "adapted": adapted,
    "critic": critic,
    "reference": reference,
}
"""How a model is sharded. `bfloat16`: from a file in bfloat16."""


def measure(folder, kind):
    """Load and shard a model; returns the bytes of each part, the loss and the model."""
    model_folder = folder / (kind if kind in ("bfloat16", "tied") else "plain")
    AcceleratorState._reset_state(True)
    processes()
    accelerator = Accelerator(cpu=True)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with growth() as loading:
        with growth() as reading:
            model, _ = load_model(str(model_folder), "float32")
        kept = model if kind == "reference" else None
        model = KINDS[kind](model, accelerator)
    held = shards(model)
    ids = torch.arange(3, 35)[None]
    if kind == "critic":
        rows = pack(ids, torch.ones_like(ids), torch.ones_like(ids))
        model(rows).sum().backward()
        # All values are 0 at first; this gradient depends on the trunk.
        output = whole(model.head.weight.grad).norm().item()
    else:
        output = model(input_ids=ids, labels=ids).loss.item()
    del kept
    return {"reading": reading, "loading": loading, "shards": held, "loss": output}, model


def main(folder: Path, kinds: list[str]) -> None:
    """Measure each kind, then compare it with reading by all processes."""
    rank, found = processes().process_index, {}
    for kind in kinds:
        figures, model = measure(folder, kind)
        ours = state(model)
        del model
        with read_by_all():
            theirs, model = measure(folder, kind)
        expected = state(model)
        del model
        figures["equal"] = ours.keys() == expected.keys() and all(
            torch.equal(ours[name], expected[name]) for name in ours
        )
        del ours, expected
        found[kind] = {**figures, "read by all": theirs}
    (folder / f"{rank}-of-{processes().num_processes}.json").write_text(json.dumps(found))
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
