"""TRL: the setting `trl`, and the fields that all configurations of TRL's trainers share here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch
from transformers import get_scheduler

from agents.base.reporting import PROJECT, check_report_to
from agents.base.settings import SettingsError, check_kind, nearest, prefixed
from agents.base.sharding import accelerator_config

_EVALUATION = "set eval_every, or set export_steps and run `retool eval`"
_WITHOUT_EFFECT = {
    "resume_from_checkpoint": "use --resume",
    "disable_tqdm": "the run shows a board instead of TRL's progress bar",
    **dict.fromkeys(
        ("ddp_timeout", "ddp_backend"),
        "the run makes its process groups, gloo on the CPU and nccl on GPUs, and waits up to 10 "
        "minutes in a step and 12 hours for rollouts and files",
    ),
    **dict.fromkeys(("model_init_kwargs", "trust_remote_code"), "set model and dtype"),
    **dict.fromkeys(
        (
            *("do_predict", "do_train", "greater_is_better", "include_for_metrics"),
            *("load_best_model_at_end", "metric_for_best_model", "prediction_loss_only"),
        ),
        _EVALUATION,
    ),
}
"""The fields of all TRL configurations without an effect here, with the setting to use instead.

All fields with `eval` in their names are also without an effect."""
_NEEDED = {
    "ref_model_mixup_alpha": "sync_ref_model",
    "ref_model_sync_steps": "sync_ref_model",
    "entropy_coef_min": "use_adaptive_entropy",
    "entropy_coef_max": "use_adaptive_entropy",
    "entropy_coef_delta": "use_adaptive_entropy",
    "entropy_target": "use_adaptive_entropy",
    "num_completions_to_print": "log_completions",
    "log_unique_prompts": "log_completions",
    "log_completions_hub_repo": "log_completions",
}
"""The fields that only have an effect if another field is set, with that field."""
_RANGES: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(
        ("adam_beta1", "adam_beta2"), ("at least 0 and below 1", lambda number: 0 <= number < 1)
    ),
    **dict.fromkeys(
        ("label_smoothing_factor", "top_entropy_quantile", "ref_model_mixup_alpha"),
        ("from 0 to 1", lambda number: 0 <= number <= 1),
    ),
    **dict.fromkeys(
        ("weight_decay", "max_grad_norm", "warmup_steps", "dataloader_num_workers"),
        ("at least 0", lambda number: number >= 0),
    ),
    **dict.fromkeys(
        (
            *("adam_epsilon", "logging_steps", "num_iterations", "generation_batch_size"),
            *("steps_per_generation", "ref_model_sync_steps", "sapo_temperature_neg"),
            *("sapo_temperature_pos", "dataloader_prefetch_factor", "num_completions_to_print"),
        ),
        ("above 0", lambda number: number > 0),
    ),
}
"""The ranges of fields that TRL and transformers do not check before they train: the words for the
error, and the test of a number."""
_CHOICES = {"importance_sampling_level": ("token", "sequence")}
"""The values of fields that TRL does not check before it computes a loss."""


def check_trl(
    config: type,
    fixed: Iterable[str],
    extra: Mapping[str, Any],
    without_effect: Mapping[str, str] | None = None,
) -> None:
    """Check the setting `trl`: further fields of TRL's configuration.

    Args:
        config: TRL's class of the configuration.
        fixed: The names of the fields that follow from the algorithm or from another setting.
        extra: The setting `trl`.
        without_effect: The names of the fields without an effect on this trainer, with the advice
            for the error; `None`: no fields besides the common ones.

    Raises:
        SettingsError: If a field is unknown to TRL, fixed, or without an effect, or its value has
            the wrong type or is out of range.
    """
    known = {field.name for field in dataclasses.fields(config)}
    hints = get_type_hints(config)
    of_evaluation = {key: _EVALUATION for key in known if "eval" in key}
    idle = {**of_evaluation, **_WITHOUT_EFFECT, **(without_effect or {})}
    for key in extra:
        if key in fixed:
            raise SettingsError(
                f"trl.{key} follows from the algorithm or another setting: leave it out"
            )
        if key not in known:
            raise SettingsError(f"unknown setting trl.{key}{nearest(key, known)}")
        if key in idle:
            raise SettingsError(f"trl.{key} has no effect here: {idle[key]}")
        if key in _NEEDED and not extra.get(_NEEDED[key]):
            raise SettingsError(f"trl.{key} has no effect without trl.{_NEEDED[key]}=true")
        check_kind(f"trl.{key}", extra[key], hints[key])
        _check_range(key, extra[key])


def _check_range(key: str, value: Any) -> None:
    if isinstance(value, float) and math.isinf(value):
        raise SettingsError(f"trl.{key} must be a finite number, not {value}")
    if key in _RANGES and value is not None:
        words, holds = _RANGES[key]
        if not holds(value):
            raise SettingsError(f"trl.{key} must be {words}, not {value}")
    if key in _CHOICES and value not in (known := _CHOICES[key]):
        raise SettingsError(
            f"trl.{key}={value}: choose from {', '.join(known)}{nearest(value, known)}"
        )


def trl_config(
    config: type,
    settings: Any,
    output: Path,
    own_values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    without_effect: Mapping[str, str],
    unused: Iterable[str] = (),
) -> Any:
    """Make TRL's configuration for a run.

    Args:
        config: TRL's class of the configuration.
        settings: The run's settings. They fill the fields that all trainers share.
        output: The folder of the checkpoints for resuming.
        own_values: The fields that the algorithm and its settings fill. The setting `trl` can't
            change them.
        defaults: The fields whose default differs from TRL's. The setting `trl` can change them.
        without_effect: See `check_trl`.
        unused: Further names that the setting `trl` can't use, because the algorithm fills them
            without TRL's trainer.

    Raises:
        SettingsError: If the setting `trl` has a refused field, or TRL refuses a value.
    """
    # Newer releases of transformers have another name for this field, and warn of the older one.
    old_name, new_name = "gradient_checkpointing", "activation_checkpointing"
    known = {field.name for field in dataclasses.fields(config)}
    fixed = {
        "output_dir": str(output),
        "learning_rate": settings.learning_rate,
        new_name if new_name in known else old_name: settings.gradient_checkpointing,
        "save_steps": settings.save_steps,
        "seed": settings.seed,
        "report_to": check_report_to(settings.report_to),
        **own_values,
    }
    check_trl(config, {*fixed, *unused, old_name}, settings.trl, without_effect)
    free = {
        "save_total_limit": 1,
        "bf16": False,
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "run_name": settings.name,
        "project": PROJECT,
        "disable_tqdm": True,
        "accelerator_config": accelerator_config(),
        **defaults,
    }
    with prefixed("trl"):
        made = config(**fixed, **{**free, **settings.trl})
    with prefixed("trl.lr_scheduler_kwargs"):  # transformers reads them after the first rollouts
        optimizer = torch.optim.SGD([torch.zeros(1)])
        get_scheduler(made.lr_scheduler_type, optimizer, 1, 2, made.lr_scheduler_kwargs)
    return made
