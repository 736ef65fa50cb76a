"""Plans the memory of each GPU in training from a model's configuration; it needs no GPU.

    python -m benchmarks.memory --model qwen2.5-32b --algorithm ppo --gpus 16
    python -m benchmarks.memory --model qwen2.5-32b --algorithm grpo --gpus 8 --lora 64
    python -m benchmarks.memory --model FOLDER_OR_HUB_ID --algorithm sft --gpus 4 --tokens 8192
    python -m benchmarks.memory --check 16 32 64

The model is built on the meta device: its parameters have shapes but no memory. The plan assumes
the settings of `agents/launch/`: FSDP2 shards with weights, gradients and Adam's moments in
float32; the current layer in bfloat16; activation checkpoints per layer; a head that never holds
all logits.

`--check` simulates a rank of GRPO with PyTorch's `FSDPMemTracker` for each number of GPUs, and
compares its peak with the plan: see `benchmarks.parts.tracked_memory`. Tests compare the lasting
memory (shards, gradients, moments, checkpoints, a layer's activations) with small models on two CPU
processes.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, Qwen2Config
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from agents.base.model import lora_config
from benchmarks.parts.results import RESULTS, write_results
from benchmarks.parts.tracked_memory import track

GIB = 2**30

_SIZES = (
    *("num_hidden_layers", "hidden_size", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads"),
)
MODELS: dict[str, dict[str, Any]] = {
    "qwen2.5-7b": dict(zip(_SIZES, (28, 3_584, 18_944, 28, 4), strict=True)),
    "qwen2.5-32b": dict(zip(_SIZES, (64, 5_120, 27_648, 40, 8), strict=True)),
}
"""Architectures of Qwen2.5 (arXiv 2412.15115, table 1, and the checkpoints' configurations)."""

MOMENT = "for a moment: a layer, the head, or the step"
"""The name of the plan's row of short-lived memory."""
AROUND = "around it, estimated: batch, CUDA, NCCL, gaps"
"""The name of the row that `around` computes."""
TOLERANCE = 0.1
"""The largest relative difference between the plan and a simulated rank."""

ALGORITHMS = ("sft", "grpo", "dapo", "ppo")


@dataclass(frozen=True)
class Setup:
    """The training set-up."""

    algorithm: str
    """One of `ALGORITHMS`. For other algorithms without a critic, use `grpo`."""
    gpus: int
    """The number of GPUs that share the shards."""
    tokens: int = 18_432
    """Tokens of an episode, prompt and response. The default is the longest of the presets."""
    micro_batch: int = 1
    """Episodes per GPU in one forward and backward pass, without `budget`."""
    budget: int = 0
    """The setting `tokens`: the tokens of a pass per GPU; 0: a pass has `micro_batch` episodes."""
    lora: int = 0
    """The rank of LoRA adapters; 0: full fine-tuning."""
    kl: bool = False
    """Whether there is a reference model. With LoRA, it is the model without adapters."""
    sharded: bool = True
    """Whether FSDP2 shards the model; `False`: one GPU holds all of it and gathers nothing."""
    offload: bool = False
    """Whether shards, gradients and moments are in host memory (`fsdp_offload_params`)."""

    @property
    def pass_tokens(self) -> int:
        """Tokens of a pass per GPU. An episode above the budget has a pass of its own."""
        return max(self.budget, self.tokens) if self.budget else self.tokens * self.micro_batch


def read_config(name: str) -> PretrainedConfig:
    """Read the configuration of one of `MODELS`, of a checkpoint's folder, or of a Hub id.

    Raises:
        OSError: If the configuration was not found.
    """
    if name not in MODELS:
        return AutoConfig.from_pretrained(name).get_text_config()
    return Qwen2Config(vocab_size=152_064, tie_word_embeddings=False, **MODELS[name])


def build(config: PretrainedConfig) -> Any:
    """Build the model on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def count(parameters: Iterable[torch.Tensor]) -> int:
    """The number of elements of all parameters.

    Args:
        parameters: Tensors of any shape.
    """
    return sum(p.numel() for p in parameters)


def shard(parameters: Iterable[torch.Tensor], gpus: int) -> int:
    """The number of elements in the shard of one GPU, padding included.

    FSDP2 cuts each parameter along its first dimension. Of d rows, each of N GPUs gets ceil(d / N);
    the last shards are padded (`FSDPParam._init_sharded_param` of PyTorch).

    Args:
        parameters: Tensors of any shape but a scalar's.
        gpus: The number of GPUs.
    """
    return sum(-(-p.shape[0] // gpus) * (p.numel() // p.shape[0]) for p in parameters)


def kept(weights: int, trained: int, bytes_frozen: int = 4) -> dict[str, int]:
    """The bytes that stay on a GPU: 16 per parameter with full fine-tuning.

    The count follows ZeRO (arXiv 1910.02054, section 3.1), but with all values in float32.

    Args:
        weights: The number of elements of the GPU's shards, frozen and trained.
        trained: The number of trained elements among them.
        bytes_frozen: Bytes per frozen element; 4 means float32.
    """
    return {
        "weights": 4 * trained + bytes_frozen * (weights - trained),
        "gradients": 4 * trained,
        "Adam's moments": 8 * trained,
    }


def checkpoints(config: PretrainedConfig, tokens: int) -> int:
    """The bytes of activation checkpoints: the input of each layer (arXiv 1604.06174)."""
    return 2 * config.num_hidden_layers * tokens * config.hidden_size


def layer_activations(config: PretrainedConfig, tokens: int) -> int:
    """The bytes of activations of one layer while its backward pass recomputes them.

    The count follows arXiv 2205.05198 (section 4.1), for a Llama layer in bfloat16 as transformers
    computes it. Let h be the hidden size, q and k the widths of queries and keys, f the width of
    the MLP, and n the number of heads. A token needs

    - in each of two norms: the input in float32 (4 h), the normalised input (2 h), one number (4);
    - the inputs of attention and MLP (4 h);
    - queries, keys, values (2 q + 4 k), the output of attention (2 q), one float32 per head (4 n);
    - in the MLP: the gate, its activation, the other factor and the product (8 f).
    """
    keys = config.num_key_value_heads * head_size(config)
    queries = config.num_attention_heads * head_size(config)
    norms = 2 * (6 * config.hidden_size + 4)
    attention = 4 * queries + 4 * keys + 4 * config.num_attention_heads
    return tokens * (norms + 4 * config.hidden_size + attention + 8 * config.intermediate_size)


def layer_gradients(config: PretrainedConfig, tokens: int) -> int:
    """The maximum bytes of gradients of a layer's activations at once.

    They are three gradients of the MLP, and two of the norm in float32.
    """
    return tokens * (6 * config.intermediate_size + 8 * config.hidden_size)


def head_size(config: PretrainedConfig) -> int:
    """The width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def head_buffers(config: PretrainedConfig, tokens: int) -> int:
    """The bytes of the head's loss: gradients of input and weight in float32, and a tile of logits.

    TRL's `ChunkedLogProbFunction` computes the logits tile by tile, and does not keep them.
    """
    tile = min(tokens, TOKEN_CHUNK_SIZE) * min(config.vocab_size, _CHUNKED_LOGPROB_CHUNK_SIZE)
    return 4 * config.hidden_size * (tokens + config.vocab_size) + 2 * tile


def gathered(model: Any) -> tuple[int, int]:
    """The numbers of elements that FSDP2 gathers at once.

    Returns:
        The elements of the largest decoder layer, and of the head with the last norm.
    """
    layers = model.base_model.layers
    head = [*model.base_model.norm.parameters(), *model.get_output_embeddings().parameters()]
    return max(count(layer.parameters()) for layer in layers), count(head)


def parameters(model: torch.nn.Module, lora: int) -> list[torch.Tensor]:
    """The parameters of a model, with LoRA adapters as the trainers add them.

    Args:
        model: The model.
        lora: The rank of the adapters; 0: no adapters.
    """
    if lora:
        kind = lora_config(lora)
        kind.task_type = None  # so that peft accepts a critic without a head
        model = get_peft_model(model, kind, low_cpu_mem_usage=True)
    return list(model.parameters())


def plan(config: PretrainedConfig, setup: Setup) -> dict[str, float]:
    """Plan the bytes on each GPU by purpose.

    The row of short-lived memory is the largest of three moments:

    - A layer's backward pass. FSDP2 holds in bfloat16 this layer and the next one, which it gathers
      ahead, and in float32 the gradients of the layer before, until their sum over GPUs is done
      (arXiv 2304.11277, section 3.3).
    - The head's backward pass. FSDP2 holds in bfloat16 the head and the buffer into which it was
      gathered, and the head's gradient in bfloat16 and, for the sum over GPUs, in float32.
    - The optimizer's step, which has a float32 value for each trained element of a model.

    Args:
        config: The model's configuration.
        setup: The training set-up.
    """
    model = build(config)
    layer, head = gathered(model)
    parts = {"actor": parameters(model, setup.lora)}
    if setup.algorithm == "ppo":
        head_of_critic = torch.nn.Linear(config.hidden_size, 1, device="meta")
        parts["critic"] = parameters(build(config).base_model, setup.lora)
        parts["critic"] += head_of_critic.parameters()
    rows: dict[str, float] = {}
    steps = [0]
    for name, part in parts.items():
        trained = shard((p for p in part if p.requires_grad), setup.gpus)
        steps.append(4 * trained)
        sizes = kept(shard(part, setup.gpus), trained, 2 if setup.lora else 4)
        rows |= {f"{name}: {purpose}": size for purpose, size in sizes.items()}
    if setup.kl and not setup.lora:
        rows["reference: weights"] = 4 * shard(build(config).parameters(), setup.gpus)
    if setup.offload:
        rows, steps = dict.fromkeys(rows, 0), [0]
    summed = int(not setup.lora)
    if not setup.sharded:
        layer = head = summed = 0
    others = (setup.algorithm == "ppo") + (setup.kl and not setup.lora)
    if others and head:  # until its next backward pass, which a reference model never has
        rows["gathered: heads after a forward pass alone"] = 2 * others * head
    tokens = setup.pass_tokens
    rows["activations: layers' inputs"] = checkpoints(config, tokens)
    in_layer = 2 * 2 * layer + summed * 4 * layer
    in_layer += layer_activations(config, tokens) + layer_gradients(config, tokens)
    at_head = 2 * 2 * head + summed * (2 + 4) * head
    at_head += head_buffers(config, tokens) + 8 * config.hidden_size * tokens
    rows[MOMENT] = max(in_layer, at_head, *steps)
    return rows


def around(setup: Setup, planned: float) -> float:
    """The bytes that PyTorch's tensors in training don't account for. They are not measured.

    They are the batch, with three bytes for each pair of places in packed rows (the mask, as bool
    and as bfloat16; kernels of flash attention need none); 2 GiB of CUDA and NCCL; and 5 % of the
    plan, which the allocator loses to gaps between tensors.

    Args:
        setup: The training set-up.
        planned: The sum of the plan's rows.
    """
    batch = setup.pass_tokens * (64 + (3 * setup.tokens if setup.budget else 0))
    return batch + 2 * GIB + 0.05 * planned


def table(rows: dict[str, float]) -> str:
    """The rows and their sum, in GiB."""
    rows = {**rows, "together": sum(rows.values())}
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {size / GIB:>7.2f}" for name, size in rows.items()]
    return "\n".join([f"{'GiB on each GPU':<{width}}", *lines])


def main(arguments: list[str] | None = None) -> int:
    """Print the plan, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="qwen2.5-32b", help=f"{', '.join(MODELS)}, a folder, or a Hub id"
    )
    parser.add_argument("--algorithm", choices=ALGORITHMS, help="(ppo)")
    parser.add_argument("--gpus", type=int, default=16, help="GPUs that train (16)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="GPUs of a machine (8)")
    parser.add_argument("--memory", type=float, default=80, help="GiB of each GPU (80)")
    parser.add_argument("--tokens", type=int, default=18_432, help="tokens of an episode (18432)")
    parser.add_argument("--micro-batch", type=int, default=1, help="episodes of a pass (1)")
    parser.add_argument(
        "--budget", type=int, default=0, help="the setting tokens; 0: micro-batch counts (0)"
    )
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: no LoRA (0)")
    parser.add_argument("--kl", action="store_true", help="add a reference model")
    parser.add_argument("--offload", action="store_true", help="fsdp_offload_params: true")
    parser.add_argument(
        "--check", type=int, nargs="+", metavar="GPUS", help="compare the plan with a simulation"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json", help="file of --check")
    options = vars(parser.parse_args(arguments))
    name, memory = options.pop("model"), options.pop("memory")
    ranks, out, node = (options.pop(key) for key in ("check", "out", "gpus_per_node"))
    least = (*(options[key] for key in ("gpus", "tokens", "micro_batch")), node, *(ranks or ()))
    if min(least) < 1 or min(options["lora"], options["budget"]) < 0:
        parser.error(
            "numbers of GPUs, --tokens and --micro-batch must be at least 1, --lora and --budget "
            "not negative"
        )
    try:
        config = read_config(name)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if ranks and (options["algorithm"] or options["kl"] or options["offload"]):
        parser.error(
            "--check simulates GRPO without a reference model and without offloading: leave out "
            "--algorithm, --kl and --offload"
        )
    setup = Setup(**{**options, "algorithm": options["algorithm"] or "ppo"})
    if ranks:
        if setup.lora or setup.budget or setup.micro_batch > 1:
            parser.error("--check simulates full fine-tuning with one row a pass")
        return check(name, config, ranks, setup.tokens, out)
    rows = plan(config, setup)
    rows[AROUND] = around(setup, sum(rows.values()))
    size = count(build(config).parameters())
    print(f"{name}: {size:,} parameters, {config.num_hidden_layers} layers; {setup}\n")
    print(table(rows))
    verdict = "fits" if sum(rows.values()) <= memory * GIB else "does NOT fit"
    loading, saving, offloaded = host(config, setup, node)
    print(
        f"\nThat {verdict} into {memory:g} GiB."
        "\nOne copy of all logits in float32: "
        f"{4 * setup.pass_tokens * config.vocab_size / GIB:.1f} GiB."
        f"\nHost memory of the first node: {loading / GIB:.0f} GiB while a model loads, "
        f"{saving / GIB:.0f} GiB to save it; other nodes load and save nothing."
        f"\nHost memory of each node for offloaded shards: {offloaded / GIB:.0f} GiB."
        f"\nA server in bfloat16: {2 * size / GIB:.1f} GiB of weights, and "
        f"{cached(config, setup.tokens) / GIB:.2f} GiB of keys and values per such episode."
    )
    return 0


def host(config: PretrainedConfig, setup: Setup, gpus: int) -> tuple[int, int, int]:
    """The bytes of host memory of a node, by purpose.

    Only the first process of all reads a model. It holds one copy, which shrinks while the shards
    are sent, and nothing but pages of the file if the file has the same data type. The same process
    gathers the trained model to save it, in float32.

    Args:
        config: The model's configuration.
        setup: The training set-up.
        gpus: The number of GPUs of a node.

    Returns:
        The bytes while a model loads, the bytes to save a model, both in the first node alone; and
        the bytes of all offloaded shards of a node.
    """
    size = count(build(config).parameters())
    offloaded = 0
    if setup.offload:
        rows = plan(config, replace(setup, offload=False))
        lasting = [rows[row] for row in rows if row.startswith(("actor", "critic", "reference"))]
        offloaded = min(gpus, setup.gpus) * int(sum(lasting))
    return (2 if setup.lora else 4) * size, 4 * size, offloaded


def check(name: str, config: PretrainedConfig, gpus: Sequence[int], tokens: int, out: Path) -> int:
    """Print and write the plan of GRPO with full fine-tuning beside the peak of a simulated rank.

    Args:
        name: The name of the model, for the table and the file.
        config: The model's configuration.
        gpus: The numbers of GPUs.
        tokens: The tokens of a pass.
        out: The JSON file.

    Returns:
        The exit status: 1 if a plan is off by more than `TOLERANCE`.
    """
    compared, same = [], True
    print(f"{name}, GRPO, {tokens:,} tokens a pass\n GPUs  planned GiB  tracked GiB  ratio")
    for number in gpus:
        planned = plan(config, Setup("grpo", number, tokens))
        tracked = track(config, number, tokens)
        ratio = sum(planned.values()) / tracked["Total"]
        sums = [rows / GIB for rows in (sum(planned.values()), tracked["Total"])]
        print(f"{number:>5}  {sums[0]:>11.2f}  {sums[1]:>11.2f}  {ratio:>5.3f}", flush=True)
        same = same and abs(ratio - 1) <= TOLERANCE
        compared.append({"gpus": number, "planned": planned, "tracked": tracked, "ratio": ratio})
    write_results(out, {"model": name, "tokens": tokens, "compared": compared})
    return int(not same)


def cached(config: PretrainedConfig, tokens: int) -> int:
    """The bytes of keys and values of some tokens in bfloat16."""
    return 4 * config.num_hidden_layers * config.num_key_value_heads * head_size(config) * tokens


if __name__ == "__main__":
    sys.exit(main())
