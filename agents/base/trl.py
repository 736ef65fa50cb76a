"""TRL's configurations: the setting `trl`, and what both of TRL's trainers here are given alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from agents.base.reporting import PROJECT, check_report_to
from agents.base.session import Session
from agents.base.settings import SettingsError, nearest
from agents.base.sharding import accelerator_config

_EVALUATION = "nothing is evaluated while a run trains: set export_steps, and run `retool eval`"
_WITHOUT_EFFECT = {
    "resume_from_checkpoint": "--resume goes on",
    "disable_tqdm": "the progress bar is our own",
    **dict.fromkeys(("model_init_kwargs", "trust_remote_code"), "set model and dtype"),
    **dict.fromkeys(
        (
            "batch_eval_metrics",
            "bf16_full_eval",
            "do_eval",
            "do_predict",
            "do_train",
            "eval_accumulation_steps",
            "eval_delay",
            "eval_do_concat_batches",
            "eval_on_start",
            "eval_packing",
            "eval_steps",
            "eval_strategy",
            "eval_use_gather_object",
            "fp16_full_eval",
            "greater_is_better",
            "include_for_metrics",
            "load_best_model_at_end",
            "metric_for_best_model",
            "num_generations_eval",
            "per_device_eval_batch_size",
            "prediction_loss_only",
        ),
        _EVALUATION,
    ),
}
"""Fields of any configuration of TRL's that have no effect here, and what has."""
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
"""Fields that have an effect only beside another one."""


def check_trl(
    config: type,
    ours: Iterable[str],
    extra: Mapping[str, Any],
    without_effect: Mapping[str, str] | None = None,
) -> None:
    """Check the setting `trl`: further fields of TRL's configuration.

    Args:
        config: TRL's class.
        ours: Fields that settings of our own fill.
        extra: The setting.
        without_effect: Fields that have none with this trainer, and of each what has.

    Raises:
        SettingsError: For a field that TRL does not have, that follows from the algorithm or a setting
            of our own, or that has no effect.
    """
    known = {field.name for field in dataclasses.fields(config)}
    idle = {**_WITHOUT_EFFECT, **(without_effect or {})}
    for key in extra:
        if key in ours:
            raise SettingsError(f"trl.{key} follows from the algorithm or a setting of our own")
        if key not in known:
            raise SettingsError(f"unknown setting trl.{key}{nearest(key, known)}")
        if key in idle:
            raise SettingsError(f"trl.{key} has no effect here: {idle[key]}")
        if key in _NEEDED and not extra.get(_NEEDED[key]):
            raise SettingsError(f"trl.{key} has no effect without trl.{_NEEDED[key]}=true")


def trl_config(
    config: type,
    run: Session[Any],
    ours: Mapping[str, Any],
    defaults: Mapping[str, Any],
    without_effect: Mapping[str, str],
    unused: Iterable[str] = (),
) -> Any:
    """A configuration of TRL's for a run.

    Args:
        config: TRL's class.
        run: The run. Its settings fill the fields that all trainers have.
        ours: Further fields that the algorithm and its settings fill; the setting `trl` can't change
            them.
        defaults: Fields that have another default here than TRL's; the setting `trl` may change
            them.
        without_effect: See `check_trl`.
        unused: Fields that are the algorithm's too, though TRL's trainer does not see them.

    Raises:
        SettingsError: If the setting `trl` has a field that it can't have, or TRL refuses a value.
    """
    settings = run.settings
    fixed = {
        "output_dir": str(run.trainer),
        "learning_rate": settings.learning_rate,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "save_steps": settings.save_steps,
        "seed": settings.seed,
        "report_to": check_report_to(settings.report_to),
        **ours,
    }
    check_trl(config, {*fixed, *unused}, settings.trl, without_effect)
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
    try:
        return config(**fixed, **{**free, **settings.trl})
    except ValueError as error:
        raise SettingsError(f"trl: {error}") from error
