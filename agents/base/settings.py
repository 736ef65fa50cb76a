"""Settings of a run: their kinds and checks, and what several algorithms' settings ask for.

Whatever is not known is an error that names the nearest key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from retool_env.checkpoint_task import CheckpointTask
from retool_env.errors import SettingsError as SettingsError
from retool_env.execution import Sandbox
from retool_env.interpreter import open_sandbox
from retool_env.problem import ProblemSource
from retool_env.rules import Rules
from retool_env.servers.address import check_no_secrets
from retool_env.task import make_task

_MOST_NAME = 200

SANDBOX = "where programs run: nsjail, unsafe, a server's http://..., or a mapping of make_sandbox's arguments"
"""What the setting `sandbox` is, which several algorithms have."""


def describe(cls: type) -> str:
    """The settings, as wide as the terminal: of each its name, kind, default and what it is."""
    said = []
    hints = get_type_hints(cls)
    width = min(shutil.get_terminal_size().columns, 110)
    for field in dataclasses.fields(cls):
        default = "required"
        if field.default is not dataclasses.MISSING:
            default = json.dumps(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            default = json.dumps(field.default_factory())
        kind = " or ".join(kind.__name__ for kind in _kinds(hints[field.name]))
        text = f"{field.name} ({kind}, {default}): {field.metadata.get('help', '')}"
        said.append(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="      "))
    return "\n".join(said)


def setting(default: Any, help: str) -> Any:
    """A dataclass field with a default and one line of help."""
    if isinstance(default, (dict, list)):
        return dataclasses.field(
            default_factory=lambda: type(default)(default), metadata={"help": help}
        )
    return dataclasses.field(default=default, metadata={"help": help})


def stages(cls: type) -> dict[str, tuple[str, ...]]:
    """The settings that are settings of other algorithms, and which of theirs the job sets itself; see `stage`."""
    return {
        field.name: field.metadata["sets"]
        for field in dataclasses.fields(cls)
        if "sets" in field.metadata
    }


def stage(help: str, sets: Sequence[str]) -> Any:
    """A field of settings of another algorithm, named as it is, which the job runs.

    Args:
        help: One line of help.
        sets: Those of its settings that follow from the job. In a preset's section of that algorithm they are for its own runs;
            anywhere else they are refused.
    """
    return dataclasses.field(default_factory=dict, metadata={"help": help, "sets": ("name", *sets)})


def build_settings[S](cls: type[S], values: Mapping[str, Any]) -> S:
    """Settings of given values.

    Raises:
        SettingsError: For an unknown key, a value of the wrong kind, a `name` that is no folder's, or a key or password,
            which the run's `config.json` would hold.
    """
    hints = get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise SettingsError(
                f"unknown setting {key!r}{nearest(key, fields)}; there are {', '.join(sorted(fields))}"
            )
    try:
        check_no_secrets(values)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    made = cls(**{key: _check(key, value, hints[key]) for key, value in values.items()})
    for name, keys in stages(cls).items():
        for key in getattr(made, name):
            if key in keys:
                raise SettingsError(f"{name}.{key} follows from the job and its own settings")
    if getattr(made, "seed", 0) < 0:
        raise SettingsError(f"seed must not be negative, not {values['seed']}")
    if isinstance(name := getattr(made, "name", None), str):
        check_name(name)
    return made


def check_name(name: str) -> None:
    """Check the name of a run, whose folder is called so; it may lie in a folder of several (`study/seed-1`).

    Raises:
        SettingsError: If the folder would not lie in that of all runs, or could not be made.
    """
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or not name.isprintable():
        why = (
            "the run's folder lies in that of all runs (--runs): no '.', no '..', no '/' at an end"
        )
    elif any(len(part.encode("utf-8", "replace")) > _MOST_NAME for part in parts):
        why = f"a folder's name has at most {_MOST_NAME} bytes"
    else:
        return
    raise SettingsError(f"name={name!r:.100} is no name of a run: {why}")


def find_task(env: Mapping[str, Any]) -> tuple[Rules, ProblemSource]:
    """The rules and the problems that the setting `env` names.

    Raises:
        SettingsError: If it names no environment, or a setting is unknown or wrong.
    """
    try:
        rules, problems = make_task(**env)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"env: {error}") from error
    if rules.max_tokens is None:
        raise SettingsError("env: set max_tokens, the token budget of a response")
    return rules, problems


def task_of(env: Mapping[str, Any]) -> CheckpointTask:
    """What a model that is trained with the setting `env` says of its task (`retool.json`).

    Raises:
        SettingsError: If it names no environment, or a setting is wrong.
    """
    try:
        return CheckpointTask.of(env)
    except ValueError as error:
        raise SettingsError(f"env: {error}") from error


def find_sandbox(setting: str | Mapping[str, Any], rules: Rules) -> Sandbox | None:
    """The sandbox that the setting `sandbox` names; `None` where the interpreter is off.

    Raises:
        SettingsError: If it names none, or a setting of it is unknown or wrong.
        SandboxUnavailable: If it can't work here, or has no sessions where the rules ask for them.
    """
    try:
        return open_sandbox(setting, rules)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"sandbox: {error}") from error


def check_least(settings: Any, least: Mapping[str, float]) -> None:
    """Check that numbers are not below the least that makes sense.

    Raises:
        SettingsError: Naming the first that is.
    """
    for name, number in least.items():
        if getattr(settings, name) < number:
            raise SettingsError(f"{name} must be at least {number}, not {getattr(settings, name)}")


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is no larger than `most`: what a batch could be instead."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


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
        SettingsError: For a field that TRL does not have, that follows from the algorithm or a setting of our own, or that has no
            effect.
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


def trl_config(config: type, **values: Any) -> Any:
    """A configuration of TRL's.

    Raises:
        SettingsError: If TRL refuses it.
    """
    try:
        return config(**values)
    except ValueError as error:
        raise SettingsError(f"trl: {error}") from error


def _kinds(hint: Any) -> tuple[type, ...]:
    """The types that a value may have."""
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(get_origin(option) or option for option in options)


def _check(key: str, value: Any, hint: Any) -> Any:
    kinds = _kinds(hint)
    if isinstance(value, str) and float in kinds and str not in kinds:
        with contextlib.suppress(ValueError):
            value = float(value)  # in quotes
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and float in kinds
        and int not in kinds
    ):
        value = float(value)
    exact = isinstance(value, bool) and bool not in kinds
    if exact or not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise SettingsError(f"{key} must be {wanted}, not {value!r}")
    return value


def nearest(name: str, names: Iterable[str]) -> str:
    """A question after the nearest of some names, or nothing where none is near."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
