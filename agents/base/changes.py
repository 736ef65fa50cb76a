"""Changes: the settings that a resumed run may change, and their record in `config.json`.

Only settings that change the mathematics of a run are frozen: the model, the environment, the
batch, the loss, the seed and the algorithm's own settings. Places, sizes of passes and the habits
of saving and reporting may change at each `--resume`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from agents.base.settings import SettingsError, default_values
from retool_env.provenance import versions

Rule = Literal["frozen", "free", "length", "fields", "stage"]
"""The values of a setting that `--resume` accepts.

`frozen`: only the value of the start. `free`: any value. `length`: any length that the run has not
passed, if the setting is the run's length; otherwise the setting is frozen.
`fields`: each field of `trl` by `FREE_FIELDS`. `stage`: each setting of the stage by this table."""

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("steps", "epochs", "rounds"), "length"),
    **dict.fromkeys(("sft", "grpo"), "stage"),
    "trl": "fields",
    **dict.fromkeys(
        (
            # The places of a run, and the kernels that compute the same numbers.
            *("name", "engine", "rewriter", "sandbox", "attention"),
            # The sizes of passes and of what is in flight.
            *("micro_batch", "tokens", "gradient_checkpointing", "sample_batch", "in_flight"),
            "tokens_in_flight",
            # Saving, reporting and evaluating.
            *("save_steps", "export_steps", "export_dtype", "transcripts_every", "report_to"),
            *("eval_every", "eval_problems", "eval_k", "eval_env"),
            "allow_high_learning_rate",
        ),
        "free",
    ),
    **dict.fromkeys(
        (
            *("model", "dtype", "lora_rank", "env", "seed", "temperature", "data", "mix", "traces"),
            *("prompts", "rollouts", "curriculum", "problems", "k", "keep", "restart", "packing"),
            *("batch_size", "mini_batch", "deadline", "mask_void", "mask_overlong", "staleness"),
            *("oversample", "resample", "resample_by", "spare", "overlong", "learning_rate"),
            *("loss", "kl", "clip_low", "clip_high", "ratio_cap", "entropy", "correction"),
            *("correction_cap", "correction_low", "correction_high", "group_baseline"),
            "critic_learning_rate",
            *("weight_decay", "critic_warmup", "max_grad_norm", "gamma", "lam", "whiten"),
            *("dual_clip", "value_clip", "value_coefficient", "require_answer"),
            "keep_contradictions",
        ),
        "frozen",
    ),
}
"""The rule of each setting of the project's algorithms. Settings of other algorithms are frozen."""

FREE_FIELDS = frozenset(
    (
        # The batch that they make is frozen; see `RunSettings.frozen_figures`.
        *("steps_per_generation", "generation_batch_size"),
        *("logging_steps", "logging_first_step", "logging_strategy", "log_completions"),
        *("num_completions_to_print", "log_unique_prompts", "log_level", "run_name", "project"),
        *("save_strategy", "save_total_limit", "gradient_checkpointing_kwargs"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
        *("dataloader_persistent_workers", "torch_empty_cache_steps", "use_cpu"),
        # They are refused, so that a run which was started with them can go on without them.
        *("ddp_timeout", "ddp_backend"),
    )
)
"""The free fields of `trl`. All other fields are frozen."""


def rule_of(name: str, length: str | None = None) -> Rule:
    """The rule of a setting: `frozen`, `free` or `length`.

    Args:
        name: The setting's name, with dots inside a mapping (`trl.logging_steps`).
        length: The setting that is the length of the run.
    """
    top, *rest = name.split(".")
    rule = RULES.get(top, "frozen")
    if rule == "stage" and rest:
        return rule_of(".".join(rest))
    if rule == "fields" and rest:
        return "free" if rest[0] in FREE_FIELDS else "frozen"
    if rule == "free" or (rule == "length" and top == length and not rest):
        return rule
    return "frozen"


def find_changes(
    settings: Any,
    record: Mapping[str, Any],
    processes: int,
    length: str | None,
    folder: Path | None = None,
) -> list[dict[str, Any]]:
    """The settings that differ from a run's start, and its number of processes.

    Args:
        settings: The settings of now, a dataclass whose values fit into JSON.
        record: The object in the run's `config.json`.
        processes: The number of processes of now.
        length: The setting that is the length of the run.
        folder: The run's folder, which tells the files of a stage's job; `None`: no stage.

    Returns:
        For each change `setting`, `from` and `to`.

    Raises:
        SettingsError: If a frozen setting differs.
    """
    cls = type(settings)
    # A setting may be newer than the run.
    before = {**default_values(cls), **record["settings"]}
    found = list(_differences(before, _plain(dataclasses.asdict(settings))))
    frozen = [
        (name, old, new)
        for name, old, new in found
        if rule_of(name, length) == "frozen" and not _moved(old, new, folder)
    ]
    number = record.get("processes", processes)
    frozen = frozen or list(_frozen_figures(settings, before, number, processes))
    if frozen:
        said = "; ".join(
            f"{name} was {_shown(old)}, now {_shown(new)}" for name, old, new in frozen
        )
        raise SettingsError(
            f"it can't be resumed with other settings ({', '.join(name for name, *_ in frozen)}), "
            f"which would change the training: {said}. Set the earlier values, or choose another "
            "name=..."
        )
    if number != processes:
        found.append(("processes", number, processes))
    return [{"setting": name, "from": old, "to": new} for name, old, new in found]


def noted(change: Mapping[str, Any], at: float | None) -> dict[str, Any]:
    """The record of a change.

    Args:
        change: A change of `find_changes`.
        at: The length that the run has reached, by its steps, epochs or rounds; `None`: a run
            without these.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return {**change, "at": at, "time": now, "versions": versions()}


def _moved(old: Any, new: Any, folder: Path | None) -> bool:
    """Whether two values name the same file of a job, whose folder has another name now.

    Args:
        old: The earlier value.
        new: The value of now.
        folder: The folder of the run, a stage `stages/<name>` of its job.
    """
    if folder is None or folder.parent.name != "stages":
        return False
    job = folder.parent.parent
    if not (isinstance(old, str) and isinstance(new, str) and Path(new).is_relative_to(job)):
        return False
    inside = Path(new).relative_to(job).parts
    return inside[:1] == ("stages",) and Path(old).parts[-len(inside) :] == inside


def _frozen_figures(
    settings: Any, before: Mapping[str, Any], number: int, processes: int
) -> Iterator[tuple[str, Any, Any]]:
    """Frozen figures that follow from several settings and the number of processes."""
    cls = type(settings)
    if not hasattr(cls, "frozen_figures"):  # an algorithm of another repository
        return
    known = {field.name for field in dataclasses.fields(cls)}
    earlier = cls(**{name: value for name, value in before.items() if name in known})
    olds, news = earlier.frozen_figures(number), settings.frozen_figures(processes)
    for name, new in news.items():
        if olds[name] != new:
            yield name, olds[name], new


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The values that differ: their names, and both values; `None` stands for a missing value."""
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{above}{name}.")
        elif old != new:
            yield f"{above}{name}", old, new


def _plain(value: Any) -> Any:
    """A value as `json` would read it again."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    return "not set" if value is None else f"{value!r:.60}"
