"""The model that a run trains, and what it becomes."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from agents.base.fields import TuningSettings
from agents.base.settings import SettingsError
from retool_env.checkpoint_task import CheckpointTask
from retool_env.files import folder_fault
from retool_env.training.trained_weights import trained_weights, whole


def load_model(name: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from a folder or the Hub.

    Args:
        name: The folder's path or the Hub id.
        dtype: Of the weights: `"float32"`, `"bfloat16"`, ...

    Raises:
        SettingsError: If there is no such dtype, the model can't be found, or its tokenizer has no end-of-sequence token.
    """
    if name.startswith((".", "/", "runs/")) and not (Path(name) / "config.json").is_file():
        hint = ""
        if "smollm2" in name.lower():
            hint = f"; `python -m agents smollm2 {name}` makes one"
        elif Path(name).name == "checkpoint":
            hint = "; a finished run of that name leaves one (`python -m agents sft`, for a cold start)"
        raise SettingsError(f"{name} holds no model{hint}")
    if fault := folder_fault(name):
        raise SettingsError(f"model: {fault}")
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise SettingsError(f"dtype: {dtype!r} is none; float32 and bfloat16 are")
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=kind)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, SafetensorError) as error:
        raise SettingsError(f"model {name!r} can't be loaded: {error}") from error
    check_tokens(name, model, tokenizer)
    return model, tokenizer


def check_tokens(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check the tokens that end a sequence and pad it; where none pads, the one that ends it does from now on.

    That is harmless, since padding is masked by position and never by its id, and said.

    Raises:
        SettingsError: If none ends a sequence, or the model has no embedding of one of them.
    """
    if tokenizer.eos_token_id is None:
        raise SettingsError(
            f"the tokenizer of {name!r} has no eos_token, so that no response could end: set one of its tokens as "
            "tokenizer.eos_token, and save it with tokenizer.save_pretrained"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        warnings.warn(
            f"the tokenizer of {name!r} has no pad_token, so its eos_token {tokenizer.eos_token!r} pads, masked by position",
            stacklevel=3,
        )
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    for kind in ("eos_token", "pad_token"):
        number = getattr(tokenizer, f"{kind}_id")
        if number >= rows:
            raise SettingsError(
                f"the tokenizer of {name!r} has the {kind} {getattr(tokenizer, kind)!r} with id {number}, but the model "
                f"embeds {rows} tokens: take another of its tokens, or model.resize_token_embeddings, and save both"
            )


HIGHEST_RATE = 10.0
"""The learning rate times the square root of the number of parameters, at most, of full fine-tuning with AdamW: 9e-4 for 125
million, 1.2e-4 for 7 billion. That is where pretraining peaks, whose rates fall about so (arXiv 2005.14165, table 2.1: 6e-4
and 1.2e-4); supervised fine-tuning takes a tenth of it, reinforcement learning a hundredth."""

LORA_FACTOR = 10.0
"""How much higher a rate adapters bear than full weights."""


def check_learning_rate(
    settings: TuningSettings, parameters: int, name: str = "learning_rate", section: str = ""
) -> None:
    """Check that a learning rate is above 0, and not far too high for a model's size.

    `HIGHEST_RATE` says what is. Another optimizer than AdamW (`trl.optim`) has other rates.

    Args:
        settings: The settings of the training.
        parameters: The number of the model's parameters.
        name: The setting that is the learning rate.
        section: What stands before its name in the error.

    Raises:
        SettingsError: Saying what would do.
    """
    rate, name = getattr(settings, name), section + name
    if not rate > 0:
        raise SettingsError(f"{name} must be above 0, not {rate}")
    optimizer = getattr(settings, "trl", {}).get("optim", "adamw")
    if settings.allow_high_learning_rate or not str(optimizer).startswith("adamw"):
        return
    bound = HIGHEST_RATE / parameters**0.5 * (LORA_FACTOR if settings.lora_rank else 1)
    if rate > bound:
        how = "adapters of" if settings.lora_rank else "all"
        raise SettingsError(
            f"{name}={rate:g} is far too high to train {how} {parameters / 1e6:,.0f} million parameters with AdamW: take "
            f"{bound / 10:.0e} or less for supervised fine-tuning, {bound / 100:.0e} or less for reinforcement learning "
            f"(above {bound:.1e} it is refused), or set allow_high_learning_rate=true"
        )


def check_dtype(dtype: str, lora_rank: int, trl: Mapping[str, Any] | None = None) -> None:
    """Check that weights of such a type can be trained.

    Raises:
        SettingsError: If an optimizer's steps would be lost in rounding.
    """
    if dtype != "float32" and not lora_rank:
        way = "trl.bf16=true" if trl is not None else "accelerate launch --mixed_precision bf16"
        raise SettingsError(
            f"dtype={dtype} without LoRA: its steps, about as large as the learning rate, would be rounded away; keep "
            f"dtype=float32, which computes in bfloat16 with {way}, or set lora_rank"
        )


def disable_dropout(model: torch.nn.Module) -> None:
    """Train without dropout, as the engine samples without.

    TRL's function of this name passes by what is no module: attention mostly has its dropout as a number. (What a model reads
    from its configuration in each pass stays: Falcon's and GPT-Neo's attention, which is 0 in their checkpoints.)
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def lora_config(rank: int) -> Any:
    """LoRA on every linear layer, or `None` for full fine-tuning at rank 0."""
    if not rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def save_checkpoint(
    trainer: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    stop: Sequence[str] = (),
    task: CheckpointTask | None = None,
) -> None:
    """Save what evaluation loads: the model, LoRA merged into it, with its tokenizer, chat template and all.

    A merged model is saved in float32: bfloat16 would round most of a small update away.
    The adapter alone goes to `adapter/` beside it. On several processes, all call it; the first one's memory must hold the
    whole model.

    Args:
        trainer: Has the model, and the accelerator that it is trained with.
        tokenizer: The model's.
        folder: Where to.
        stop: The strings that end a turn. They go to `generation_config.json`, so that transformers' `generate` stops there, if
            it is given the tokenizer. What the initial model's has of sampling (a repetition penalty, top-k) is left out, as
            the model was trained without.
        task: What the model was trained on. It goes to `retool.json`, beside the model and the adapter.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    main = trainer.accelerator.is_main_process
    adapted = isinstance(model, PeftModel)
    weights = {}
    # Shards are gathered, so that all processes go through them.
    for name, tensor in trained_weights(model):
        if main:
            merged = adapted and tensor.is_floating_point()
            weights[name] = tensor.float().cpu() if merged else tensor.cpu()
    adapter = {}
    if adapted:
        for name, tensor in model.state_dict().items():
            if "lora_" in name or "modules_to_save" in name:
                adapter[name] = whole(tensor).cpu()
    if main:
        if adapter:
            model.save_pretrained(folder.parent / "adapter", state_dict=adapter)
            if task is not None:
                task.save(folder.parent / "adapter")
        base = model.get_base_model() if adapted else model
        base.save_pretrained(folder, state_dict=weights)
        if adapted:
            config = copy.deepcopy(base.config)  # it has the type of the weights in memory
            config.dtype = torch.float32
            config.save_pretrained(folder)
        generation_config(base, tokenizer, stop).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if task is not None:
            task.save(folder)
    trainer.accelerator.wait_for_everyone()


def generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]
) -> GenerationConfig:
    """How a model ends what it writes: by its own ends of sequence, the tokenizer's, or a string."""
    before = model.generation_config
    declared = (
        before.eos_token_id if isinstance(before.eos_token_id, list) else [before.eos_token_id]
    )
    ends = list(dict.fromkeys(i for i in (tokenizer.eos_token_id, *declared) if i is not None))
    return GenerationConfig(
        bos_token_id=before.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends,
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=list(stop) or None,
    )


def export(
    trainer: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    stop: Sequence[str],
    task: CheckpointTask | None = None,
) -> None:
    """Like `save_checkpoint`, but a stop in the middle leaves no folder of that name."""
    part = folder.with_name(f"{folder.name}.part")
    save_checkpoint(trainer, tokenizer, part, stop, task)
    if trainer.accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    trainer.accelerator.wait_for_everyone()
