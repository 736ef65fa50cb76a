"""What training takes of each GPU's memory, worked out from a model's configuration before any GPU is there.

    python -m benchmarks.memory --model qwen2.5-32b --algorithm ppo --gpus 16
    python -m benchmarks.memory --model qwen2.5-32b --algorithm grpo --gpus 8 --lora 64
    python -m benchmarks.memory --model FOLDER_OR_HUB_ID --algorithm sft --gpus 4 --tokens 8192

The model is built on the meta device: its parameters have shapes and no memory. They are in shards of FSDP2, as the files in
`agents/launch/` say: weights, gradients and Adam's moments in float32, a layer at work in bfloat16, activations checkpointed
layer by layer, log-probs by a head that never holds all logits. The tests hold what is kept (shards, gradients, moments,
checkpoints, a layer's activations) against what small models really take on two processes of a CPU; what is there for a
moment only is an estimate, and so is the sum.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, Qwen2Config
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from agents.base.model import lora_config

GIB = 2**30

MODELS: dict[str, dict[str, Any]] = {
    "qwen2.5-7b": {
        "num_hidden_layers": 28,
        "hidden_size": 3_584,
        "intermediate_size": 18_944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "qwen2.5-32b": {
        "num_hidden_layers": 64,
        "hidden_size": 5_120,
        "intermediate_size": 27_648,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
}
"""Qwen2.5's architectures (arXiv 2412.15115, table 1, and the checkpoints' configurations)."""

ALGORITHMS = ("sft", "grpo", "dapo", "ppo")


@dataclass(frozen=True)
class Setup:
    """How a model is trained."""

    algorithm: str
    """Of `ALGORITHMS`; the others without a critic are as grpo."""
    gpus: int
    """Over which everything is sharded."""
    tokens: int = 18_432
    """Of an episode, prompt and response: the presets' longest."""
    micro_batch: int = 1
    """Episodes a forward and backward pass, of one GPU."""
    lora: int = 0
    """The adapters' rank; 0: full fine-tuning."""
    kl: bool = False
    """Whether there is a reference model; with adapters, it is the model without them."""
    offload: bool = False
    """Whether shards, gradients and moments lie in the host's memory (`fsdp_offload_params`)."""


def read_config(name: str) -> PretrainedConfig:
    """The configuration of one of `MODELS`, of a checkpoint's folder, or of a Hub id.

    Raises:
        OSError: If there is none.
    """
    if name not in MODELS:
        return AutoConfig.from_pretrained(name).get_text_config()
    return Qwen2Config(vocab_size=152_064, tie_word_embeddings=False, **MODELS[name])


def build(config: PretrainedConfig) -> Any:
    """The model, on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def count(parameters: Iterable[torch.Tensor]) -> int:
    """Their elements."""
    return sum(each.numel() for each in parameters)


def shard(parameters: Iterable[torch.Tensor], gpus: int) -> int:
    """Elements that a GPU has of them, padding included.

    FSDP2 cuts each parameter along its first dimension: of d rows, a GPU has ceil(d / N), the last ones fewer, which it fills
    up (`FSDPParam._init_sharded_param` of PyTorch).
    """
    return sum(-(-each.shape[0] // gpus) * (each.numel() // each.shape[0]) for each in parameters)


def kept(weights: int, trained: int, bytes_frozen: int = 4) -> dict[str, int]:
    """Bytes that stay on a GPU: with full fine-tuning 16 a parameter (ZeRO, arXiv 1910.02054, section 3.1, but in float32).

    Args:
        weights: Elements of its shards, frozen and trained.
        trained: Of these, the ones that are trained.
        bytes_frozen: Of an element of a frozen one.
    """
    return {
        "weights": 4 * trained + bytes_frozen * (weights - trained),
        "gradients": 4 * trained,
        "Adam's moments": 8 * trained,
    }


def checkpoints(config: PretrainedConfig, tokens: int) -> int:
    """Bytes of activations that are kept from the forward pass: each layer's input (arXiv 1604.06174), of so many tokens."""
    return 2 * config.num_hidden_layers * tokens * config.hidden_size


def layer_activations(config: PretrainedConfig, tokens: int) -> int:
    """Bytes of activations of one layer when it is computed again for its backward pass.

    The count of arXiv 2205.05198 (section 4.1) for a layer of the Llama kind, as transformers computes it in bfloat16. With h
    the hidden size, q and k the widths of queries and of keys, f that of the MLP, n the heads, a token has

    - in each of two norms: its input in float32 (4 h) and the same normalised (2 h), and one number in float32;
    - the inputs of the attention and of the MLP (4 h);
    - queries, keys and values (2 q + 4 k), of the attention their product (2 q) and one float32 a head (4 n);
    - in the MLP the gate, its activation, the other factor and the product (8 f).
    """
    keys = config.num_key_value_heads * head_size(config)
    queries = config.num_attention_heads * head_size(config)
    norms = 2 * (6 * config.hidden_size + 4)
    attention = 4 * queries + 4 * keys + 4 * config.num_attention_heads
    return tokens * (norms + 4 * config.hidden_size + attention + 8 * config.intermediate_size)


def layer_gradients(config: PretrainedConfig, tokens: int) -> int:
    """Bytes of gradients of a layer's activations, at most at once: the MLP's three, and the norm's two in float32."""
    return tokens * (6 * config.intermediate_size + 8 * config.hidden_size)


def head_size(config: PretrainedConfig) -> int:
    """Numbers of a query, or of a key."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def head_buffers(config: PretrainedConfig, tokens: int) -> int:
    """Bytes that the head's loss takes: gradients of its input and of its weight in float32, and one tile of logits.

    TRL's `ChunkedLogProbFunction` projects so many tokens on so many words at a time, and keeps none of it.
    """
    tile = min(tokens, TOKEN_CHUNK_SIZE) * min(config.vocab_size, _CHUNKED_LOGPROB_CHUNK_SIZE)
    return 4 * config.hidden_size * (tokens + config.vocab_size) + 2 * tile


def gathered(model: Any) -> tuple[int, int]:
    """Elements of the largest decoder layer, and of the head with the last norm, which FSDP2 gathers to compute with them."""
    layers = model.base_model.layers
    head = [*model.base_model.norm.parameters(), *model.get_output_embeddings().parameters()]
    return max(count(layer.parameters()) for layer in layers), count(head)


def parameters(model: torch.nn.Module, lora: int) -> list[torch.Tensor]:
    """A model's, with adapters of a rank on it as the trainers put them there, or without at 0."""
    if lora:
        kind = lora_config(lora)
        kind.task_type = None  # a trunk is adapted like a whole model
        model = get_peft_model(model, kind, low_cpu_mem_usage=True)
    return list(model.parameters())


def plan(config: PretrainedConfig, setup: Setup) -> dict[str, float]:
    """Bytes on each GPU, by what they are for, in the order to be read.

    What is there for a moment is the larger of two: at the head, and in a layer's backward pass. Beside what those compute,
    FSDP2 has in bfloat16 a layer at work, the next one, and the buffer that is filled with it, and the head throughout; a
    layer's gradients in bfloat16, and in float32 where they are summed over GPUs (arXiv 2304.11277, section 3.3).
    """
    model = build(config)
    layer, head = gathered(model)
    parts = {"actor": parameters(model, setup.lora)}
    if setup.algorithm == "ppo":
        head_of_critic = torch.nn.Linear(config.hidden_size, 1, device="meta")
        parts["critic"] = parameters(build(config).base_model, setup.lora)
        parts["critic"] += head_of_critic.parameters()
    rows: dict[str, float] = {}
    for name, part in parts.items():
        trained = shard((p for p in part if p.requires_grad), setup.gpus)
        sizes = kept(shard(part, setup.gpus), trained, 2 if setup.lora else 4)
        rows |= {f"{name}: {what}": size for what, size in sizes.items()}
    if setup.kl and not setup.lora:
        rows["reference: weights"] = 4 * shard(build(config).parameters(), setup.gpus)
    if setup.offload:
        rows = dict.fromkeys(rows, 0)
    tokens = setup.tokens * setup.micro_batch
    rows["activations: layers' inputs"] = checkpoints(config, tokens)
    rows["gathered: layers and head"] = 2 * (3 * layer + head)
    summed = 0 if setup.lora else 1
    in_layer = layer_activations(config, tokens) + layer_gradients(config, tokens)
    in_layer += summed * (2 + 2 + 4) * layer
    at_head = head_buffers(config, tokens) + summed * (2 + 4) * head
    rows["for a moment: a layer's backward pass, or the head"] = max(in_layer, at_head)
    return rows


def table(rows: dict[str, float]) -> str:
    """The rows and their sum, in GiB."""
    rows = {**rows, "together": sum(rows.values())}
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {size / GIB:>7.2f}" for name, size in rows.items()]
    return "\n".join([f"{'GiB on each GPU':<{width}}", *lines])


def main(arguments: list[str] | None = None) -> int:
    """Prints the plan; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="qwen2.5-32b", help=f"{', '.join(MODELS)}, a folder or a Hub id"
    )
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="ppo")
    parser.add_argument("--gpus", type=int, default=16, help="that train (16)")
    parser.add_argument("--memory", type=float, default=80, help="GiB of each (80)")
    parser.add_argument("--tokens", type=int, default=18_432, help="of an episode (18432)")
    parser.add_argument("--micro-batch", type=int, default=1, help="episodes of a pass (1)")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: none (0)")
    parser.add_argument("--kl", action="store_true", help="with a reference model")
    parser.add_argument("--offload", action="store_true", help="fsdp_offload_params: true")
    options = vars(parser.parse_args(arguments))
    name, memory = options.pop("model"), options.pop("memory")
    if min(options[key] for key in ("gpus", "tokens", "micro_batch")) < 1 or options["lora"] < 0:
        parser.error("gpus, tokens and micro-batch must be at least 1, lora not negative")
    try:
        config = read_config(name)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    setup = Setup(**options)
    rows = plan(config, setup)
    size = count(build(config).parameters())
    tokens = setup.tokens * setup.micro_batch
    print(f"{name}: {size:,} parameters, {config.num_hidden_layers} layers; {setup}\n")
    print(table(rows))
    verdict = "fits" if sum(rows.values()) < 0.93 * memory * GIB else "does NOT fit"
    print(
        f"\nThat {verdict} into {memory:g} GiB, of which a fourteenth is left to the allocator and NCCL."
        f"\nLogits held whole would take {4 * tokens * config.vocab_size / GIB:.1f} GiB in float32, each copy of them."
        f"\nWhile it loads, each process has the weights in its host's memory: {(2 if setup.lora else 4) * size / GIB:.0f} GiB."
        f"\nServed in bfloat16 it takes {2 * size / GIB:.1f} GiB, and an episode of that length "
        f"{cached(config, setup.tokens) / GIB:.2f} GiB of keys and values."
    )
    return 0


def cached(config: PretrainedConfig, tokens: int) -> int:
    """Bytes of keys and values, in bfloat16, of so many tokens."""
    return 4 * config.num_hidden_layers * config.num_key_value_heads * head_size(config) * tokens


if __name__ == "__main__":
    sys.exit(main())
