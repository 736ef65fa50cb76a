"""Model: loading and checking the model of a run, and saving the trained model."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from agents.base.disk import naming
from agents.base.fields import Attention, ExportType, TuningSettings
from agents.base.settings import SettingsError
from agents.base.sharding import first_reads
from agents.base.shards import read_by_first
from retool_env.checkpoint_task import CheckpointTask
from retool_env.durable import sync, sync_tree
from retool_env.files import folder_fault
from retool_env.rollout.checkpoint_files import DTYPES, reading
from retool_env.rollout.weights import check_finite
from retool_env.training.processes import everywhere
from retool_env.training.trained_weights import trained_weights, whole


def load_model(
    name: str, dtype: str, attention: Attention = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from a folder or the Hub.

    In a sharded run, all processes call this function together, and only the first process reads
    the weights: the parameters of the others are on the meta device (see `agents.base.shards`).

    Args:
        name: The folder's path or the Hub id.
        dtype: The data type of the weights: `"float32"`, `"bfloat16"`, ...
        attention: The kernels of attention; `"auto"`: transformers chooses.

    Raises:
        NotFinite: If a weight is NaN or infinite.
        SettingsError: If the data type is unknown, the model can't be loaded, or its tokenizer does
            not suit (see `check_tokens`).
    """
    if name.startswith((".", "/", "runs/")) and not (Path(name) / "config.json").is_file():
        hint = ""
        if "smollm2" in name.lower():
            hint = f"; `python -m agents smollm2 {name}` makes the model"
        elif Path(name).name == "checkpoint":
            hint = "; a finished run saves its model there (cold start: `python -m agents sft`)"
        raise SettingsError(f"{name} holds no model{hint}")
    if fault := folder_fault(name):
        raise SettingsError(f"model: {fault}")
    if dtype not in DTYPES:
        raise SettingsError(f"dtype: {dtype!r:.60} is unknown; use float32 or bfloat16")
    chosen = None if attention == "auto" else attention
    try:
        read = read_by_first if first_reads() else AutoModelForCausalLM.from_pretrained
        with reading(name):
            model = read(name, dtype=getattr(torch, dtype), attn_implementation=chosen)
            tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise SettingsError(f"model {name!r} can't be loaded: {error}") from error
    except ImportError as error:
        raise SettingsError(
            f"attention={attention} does not work on this machine: {error}"
        ) from error
    check_finite(model.named_parameters(), f"the model {name}")
    check_tokens(name, model, tokenizer)
    return model, tokenizer


def check_tokens(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check the end-of-sequence token and the padding token of a tokenizer.

    Without a padding token the end-of-sequence token also pads, with a warning. That is harmless,
    because padding is masked by position and never by its id.

    Args:
        name: The model's name, for the error texts.
        model: The model.
        tokenizer: The tokenizer. Its missing padding token is set.

    Raises:
        SettingsError: If the end-of-sequence token is missing, or the model has no embedding for
            one of the two tokens.
    """
    if tokenizer.eos_token_id is None:
        raise SettingsError(
            f"the tokenizer of {name!r} has no eos_token, so a response could not end: set "
            "tokenizer.eos_token to one of its tokens, and save it with tokenizer.save_pretrained"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        warnings.warn(
            f"the tokenizer of {name!r} has no pad_token, so its eos_token {tokenizer.eos_token!r} "
            "pads; padding is masked by position",
            stacklevel=3,
        )
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    for kind in ("eos_token", "pad_token"):
        number = getattr(tokenizer, f"{kind}_id")
        if number >= rows:
            raise SettingsError(
                f"the tokenizer of {name!r} has the {kind} {getattr(tokenizer, kind)!r} with id "
                f"{number}, but the model embeds {rows} tokens: set another token, or enlarge the "
                "model with model.resize_token_embeddings, and save both"
            )


HIGHEST_RATE = 10.0
"""The largest learning rate, times the square root of the number of parameters.

It bounds full fine-tuning with AdamW: 9e-4 for 125 million parameters, 1.2e-4 for 7 billion. These
are the peak rates of pretraining, which fall about like this (arXiv 2005.14165, table 2.1: 6e-4 and
1.2e-4). Supervised fine-tuning uses a tenth of them, reinforcement learning a hundredth."""

LORA_FACTOR = 10.0
"""The factor between the largest learning rates of adapters and of full weights."""


def check_learning_rate(
    settings: TuningSettings, parameters: int, name: str = "learning_rate", section: str = ""
) -> None:
    """Check that a learning rate is above 0, and not far too high for the size of the model.

    `HIGHEST_RATE` is the bound. It only applies to AdamW, not to other optimizers (`trl.optim`).

    Args:
        settings: The settings of the training.
        parameters: The number of the model's parameters.
        name: The name of the learning rate's setting.
        section: A prefix of the name in the error text, such as `"sft."`.

    Raises:
        SettingsError: If the rate is 0, negative or far too high. The message proposes a rate.
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
            f"{name}={rate:g} is far too high to train {how} {parameters / 1e6:,.0f} million "
            f"parameters with AdamW: take {bound / 10:.0e} or less for supervised fine-tuning, "
            f"{bound / 100:.0e} or less for reinforcement learning (rates above {bound:.1e} are "
            "refused), or set allow_high_learning_rate=true"
        )


def check_dtype(dtype: str, lora_rank: int, trl: Mapping[str, Any] | None = None) -> None:
    """Check that weights of a data type can be trained.

    Args:
        dtype: The data type of the weights.
        lora_rank: The rank of the adapters; 0 trains all weights.
        trl: The setting `trl`; `None` for an algorithm without TRL.

    Raises:
        SettingsError: If the data type is unknown, or rounding would discard the optimizer's steps.
    """
    if dtype not in DTYPES:
        raise SettingsError(f"dtype: {dtype!r:.60} is unknown; use float32 or bfloat16")
    if dtype != "float32" and not lora_rank:
        way = "trl.bf16=true" if trl is not None else "accelerate launch --mixed_precision bf16"
        raise SettingsError(
            f"dtype={dtype} without LoRA: rounding would discard the optimizer's steps, which are "
            f"about as large as the learning rate; keep dtype=float32, which computes in bfloat16 "
            f"with {way}, or set lora_rank"
        )


def disable_dropout(model: torch.nn.Module) -> None:
    """Turn off a model's dropout, because the engine samples without dropout.

    TRL's function of this name only changes modules, but most attention layers hold their dropout
    as a number. A rate that a model reads from its configuration in each pass stays: the attention
    of Falcon and GPT-Neo, whose checkpoints set it to 0.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def lora_config(rank: int) -> Any:
    """The LoRA configuration for every linear layer; `None` at rank 0, which trains all weights."""
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
    dtype: ExportType = "auto",
) -> None:
    """Save the trained model and its tokenizer in a folder that evaluation loads.

    LoRA is merged into the model. With `dtype="auto"` it is then saved in float32, because bfloat16
    would round away most of a small update. The adapter is also saved by itself, in `adapter/`
    beside the folder.

    All processes call this function together. The first process's memory must hold the whole model.

    Args:
        trainer: An object with the trained `model` and its `accelerator`.
        tokenizer: The model's tokenizer, which is saved with its chat template.
        folder: The folder of the model.
        stop: The strings that end a turn. They are saved in `generation_config.json`, so that
            transformers' `generate` stops there if it is given the tokenizer. The sampling settings
            of the initial model (a repetition penalty, top-k) are not saved, because the model was
            trained without them.
        task: The model's task, which is saved as `retool.json` beside the model and the adapter;
            `None` saves no task.
        dtype: The data type of the saved weights; `"auto"`: of the trained weights.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    main = trainer.accelerator.is_main_process
    adapted = isinstance(model, PeftModel)
    weights = {}
    # All processes iterate, because the shards of each tensor are gathered.
    for name, tensor in trained_weights(model):
        if main:
            kind = tensor.dtype
            if tensor.is_floating_point():
                kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32 if adapted else kind
            weights[name] = tensor.to(kind).cpu()
    adapter = {}
    if adapted:
        for name, tensor in model.state_dict().items():
            if "lora_" in name or "modules_to_save" in name:
                adapter[name] = whole(tensor).cpu()
    if main:
        if adapter:
            with naming(folder.parent / "adapter"):
                model.save_pretrained(folder.parent / "adapter", state_dict=adapter)
            if task is not None:
                task.save(folder.parent / "adapter")
        base = model.get_base_model() if adapted else model
        with naming(folder):
            base.save_pretrained(folder, state_dict=weights)
        if adapted or dtype == "bfloat16":
            config = copy.deepcopy(base.config)  # its dtype is that of the weights in memory
            config.dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
            config.save_pretrained(folder)
        generation_config(base, tokenizer, stop).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if task is not None:
            task.save(folder)
        for saved in (folder, *([folder.parent / "adapter"] if adapter else [])):
            sync_tree(saved)  # the run is marked as finished afterwards
    everywhere(None)  # for as long as the first process writes


def generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]
) -> GenerationConfig:
    """The generation configuration of a trained model, which only says how a response ends.

    A response ends with an end-of-sequence token of the tokenizer or the initial model, or with one
    of the strings that end a turn.

    Args:
        model: The model, with its initial generation configuration.
        tokenizer: The model's tokenizer.
        stop: The strings that end a turn.
    """
    before = model.generation_config
    eos = before.eos_token_id
    ids = [tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])]
    ends = list(dict.fromkeys(i for i in ids if i is not None))
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
    dtype: ExportType = "auto",
) -> None:
    """Save a model like `save_checkpoint`, but atomically: the folder appears when it is complete.

    Args:
        trainer: See `save_checkpoint`.
        tokenizer: See `save_checkpoint`.
        folder: The folder of the model. An existing folder is replaced.
        stop: See `save_checkpoint`.
        task: See `save_checkpoint`.
        dtype: See `save_checkpoint`.
    """
    part = folder.with_name(f"{folder.name}.part")
    save_checkpoint(trainer, tokenizer, part, stop, task, dtype)
    if trainer.accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
        sync(folder.parent)
    everywhere(None)  # for as long as the first process writes
