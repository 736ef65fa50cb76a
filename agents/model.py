"""The model that a run trains, and what it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from agents.settings import SettingsError
from retool_env.integrations.weights import trained_weights, whole


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
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise SettingsError(f"dtype: {dtype!r} is none; float32 and bfloat16 are")
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=kind)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise SettingsError(f"model {name!r} can't be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise SettingsError(f"the tokenizer of {name!r} has no eos_token: set one and save it")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by position, never by id
    return model, tokenizer


def lora_config(rank: int) -> Any:
    """LoRA on every linear layer, or `None` for full fine-tuning at rank 0."""
    if not rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def save_checkpoint(trainer: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save what evaluation loads: the model, LoRA merged into it, with its tokenizer.

    The adapter alone goes to `adapter/` beside it.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    main = trainer.accelerator.is_main_process
    weights = {}
    for name, tensor in trained_weights(
        model
    ):  # gathers the shards, so that all processes go through them
        if main:
            weights[name] = tensor.cpu()
    adapter = {}
    if isinstance(model, PeftModel):
        for name, tensor in model.state_dict().items():
            if "lora_" in name or "modules_to_save" in name:
                adapter[name] = whole(tensor).cpu()
    if main:
        if adapter:
            model.save_pretrained(folder.parent / "adapter", state_dict=adapter)
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        base.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()
