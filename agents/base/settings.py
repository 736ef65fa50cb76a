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
from typing import Any, Literal, get_args, get_origin, get_type_hints

from retool_env.checkpoint_task import CheckpointTask
from retool_env.errors import SettingsError as SettingsError
from retool_env.execution import Sandbox
from retool_env.interpreter import open_sandbox
from retool_env.problem import ProblemSource
from retool_env.rules import Rules
from retool_env.servers.address import check_no_secrets
from retool_env.task import make_task

_MOST_NAME = 200


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
        text = f"{field.name} ({kind}, {default}): {help_of(cls, field.name)}"
        said.append(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="      "))
    return "\n".join(said)


def field_names(cls: type) -> set[str]:
    """The names of the settings of a class."""
    return {field.name for field in dataclasses.fields(cls)}


def help_of(cls: type, name: str) -> str:
    """What a setting is, as its class or the nearest of those it is made from says."""
    fields = (vars(base).get("__dataclass_fields__", {}).get(name) for base in cls.__mro__)
    return next((f.metadata["help"] for f in fields if f and "help" in f.metadata), "")


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
    fields = field_names(cls)
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
    for stage_name, keys in stages(cls).items():
        for key in getattr(made, stage_name):
            if key in keys:
                raise SettingsError(f"{stage_name}.{key} follows from the job and its own settings")
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


def _kinds(hint: Any) -> tuple[type, ...]:
    """The types that a value may have."""
    if get_origin(hint) is Literal:
        return (str,)
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
    if get_origin(hint) is Literal and value not in (known := get_args(hint)):
        raise SettingsError(f"{key}={value}: there are {', '.join(known)}{nearest(value, known)}")
    return value


def nearest(name: Any, names: Iterable[str]) -> str:
    """A question after the nearest of some names, or nothing where none is near."""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
