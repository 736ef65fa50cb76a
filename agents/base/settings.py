"""Settings: the types and checks of a run's settings, and the objects that they name.

An unknown key or value is an error that names the nearest known one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from retool_env.checkpoint_task import CheckpointTask
from retool_env.errors import SettingsError as SettingsError
from retool_env.execution import Sandbox
from retool_env.interpreter import open_sandbox
from retool_env.problem import ProblemSource
from retool_env.rules import Rules
from retool_env.servers.address import check_no_secrets, variable_name
from retool_env.task import make_task

_MAX_NAME_BYTES = 200


@contextlib.contextmanager
def prefixed(setting: str) -> Iterator[None]:
    """Turn a wrong value's error into a `SettingsError` that begins with the setting's name.

    Raises:
        SettingsError: If the block raises a `TypeError` or a `ValueError`.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{setting}: {error}") from error


def describe(cls: type) -> str:
    """Describe a class's settings, each with its name, types, default and help.

    The text is as wide as the terminal.
    """
    lines = []
    hints, defaults = get_type_hints(cls), default_values(cls)
    width = min(shutil.get_terminal_size().columns, 110)
    for name in field_names(cls):
        default = json.dumps(defaults[name]) if name in defaults else "required"
        kind = _named(_kinds(hints[name]))
        text = f"{name} ({kind}, {default}): {help_of(cls, name)}"
        lines.append(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="      "))
    return "\n".join(lines)


def default_values(cls: type) -> dict[str, Any]:
    """The defaults of a class's settings, without the required settings."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {name: field.default for name, field in fields.items()}
    values |= {n: f.default_factory() for n, f in fields.items() if callable(f.default_factory)}
    return {name: value for name, value in values.items() if value is not dataclasses.MISSING}


def field_names(cls: type) -> list[str]:
    """The names of a class's settings, in the order of their definition."""
    return [field.name for field in dataclasses.fields(cls)]


def help_of(cls: type, name: str) -> str:
    """The help of a setting, from the class or the nearest base class that gives one."""
    fields = (vars(base).get("__dataclass_fields__", {}).get(name) for base in cls.__mro__)
    return next((f.metadata["help"] for f in fields if f and "help" in f.metadata), "")


def setting(default: Any, help: str) -> Any:
    """A dataclass field with a default and a help text.

    Args:
        default: The default. A dictionary or a list is copied for each instance.
        help: The help text, in one line.
    """
    metadata = {"help": help}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def stages(cls: type) -> dict[str, tuple[str, ...]]:
    """The settings that hold settings of a stage, with the stage's settings that the job sets.

    See `stage`.
    """
    return {
        field.name: field.metadata["sets"]
        for field in dataclasses.fields(cls)
        if "sets" in field.metadata
    }


def stage(help: str, sets: Sequence[str]) -> Any:
    """A dataclass field with the settings of a stage: another algorithm that the job runs.

    The field has the algorithm's name.

    Args:
        help: The help text, in one line.
        sets: The stage's settings that the job sets. They are refused on the command line. In a
            preset's section they are allowed, for separate runs of the algorithm, and ignored here.
    """
    return dataclasses.field(default_factory=dict, metadata={"help": help, "sets": ("name", *sets)})


def build_settings[S](cls: type[S], values: Mapping[str, Any]) -> S:
    """Make settings of checked values.

    Args:
        cls: The dataclass of the settings.
        values: The values by name. Settings without a value have their default.

    Raises:
        SettingsError: If a key is unknown, a value has the wrong type, `name` can't be a folder, or
            a value holds a key or password, which the run's `config.json` would reveal.
    """
    hints = get_type_hints(cls)
    fields = sorted(field_names(cls))
    for key in values:
        if key not in fields:
            raise SettingsError(
                f"unknown setting {key!r}{nearest(key, fields)}; choose from {', '.join(fields)}"
            )
    check_no_secrets(values)
    made = cls(**{key: _check(key, value, hints[key]) for key, value in values.items()})
    for stage_name, keys in stages(cls).items():
        for key in getattr(made, stage_name):
            if key in keys:
                raise SettingsError(
                    f"{stage_name}.{key} follows from the job's own settings: leave it out"
                )
    if not 0 <= getattr(made, "seed", 0) < 2**32:  # numpy's generators take no other
        raise SettingsError(f"seed must be from 0 to 2**32 - 1, not {values['seed']}")
    if isinstance(name := getattr(made, "name", None), str):
        check_name(name)
    return made


def check_name(name: str) -> None:
    """Check the name of a run, which is the path of its folder below the folder of all runs.

    Args:
        name: The name; it may have several parts (`study/seed-1`).

    Raises:
        SettingsError: If the path would leave the folder of all runs, or is not valid.
    """
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or not name.isprintable():
        why = "use printable characters, without '.' and '..' as parts, and without '/' at an end"
    elif any(len(part.encode("utf-8", "replace")) > _MAX_NAME_BYTES for part in parts):
        why = f"each part must have at most {_MAX_NAME_BYTES} bytes"
    else:
        return
    raise SettingsError(f"name={name!r:.100} can't be the name of a run: {why}")


def find_task(env: Mapping[str, Any]) -> tuple[Rules, ProblemSource]:
    """The rules and the problems of the setting `env`.

    Args:
        env: The setting `env`: the environment's `id` and settings.

    Raises:
        SettingsError: If the environment or one of its settings is unknown or wrong, or
            `max_tokens` is missing.
    """
    with prefixed("env"):
        rules, problems = make_task(**env)
    if rules.max_tokens is None:
        raise SettingsError("env: set max_tokens, the token budget of a response")
    return rules, problems


def task_of(env: Mapping[str, Any]) -> CheckpointTask:
    """The task of the setting `env`, which is saved with a trained model as `retool.json`.

    Args:
        env: The setting `env`: the environment's `id` and settings.

    Raises:
        SettingsError: If the environment or one of its settings is unknown or wrong.
    """
    with prefixed("env"):
        return CheckpointTask.of(env)


def find_sandbox(setting: str | Mapping[str, Any], rules: Rules) -> Sandbox | None:
    """Open the sandbox of the setting `sandbox`.

    Args:
        setting: The setting `sandbox`: a name, a server's URL, or arguments of `make_sandbox`.
        rules: The environment's rules.

    Returns:
        The sandbox; `None` if the rules turn the interpreter off.

    Raises:
        SettingsError: If the sandbox or one of its arguments is unknown or wrong.
        SandboxUnavailable: If the sandbox does not work on this machine, or lacks sessions that the
            rules need.
    """
    with prefixed("sandbox"):
        return open_sandbox(setting, rules)


def check_least(settings: Any, least: Mapping[str, float]) -> None:
    """Check that numeric settings are not below their smallest allowed values.

    Args:
        settings: The settings.
        least: The smallest allowed value of each setting, by name.

    Raises:
        SettingsError: If a setting is too small. The message names the first one.
    """
    for name, number in least.items():
        if getattr(settings, name) < number:
            raise SettingsError(f"{name} must be at least {number}, not {getattr(settings, name)}")


def read_variable(setting: str, variable: str) -> str:
    """The value of the environment variable that a setting names, which holds a key.

    Args:
        setting: The name of the setting, for the error text.
        variable: The value of the setting.

    Raises:
        SettingsError: If the variable is not set. The message does not show a key.
    """
    if variable not in os.environ:
        raise SettingsError(f"{setting}: the variable {variable_name(variable)!r} is not set")
    return os.environ[variable]


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` up to `most`, which error texts propose as a batch size."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


def _kinds(hint: Any) -> tuple[type, ...]:
    """The types that a type hint allows."""
    if get_origin(hint) is Literal:
        return tuple(dict.fromkeys(type(value) for value in get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return tuple(dict.fromkeys(kind for option in get_args(hint) for kind in _kinds(option)))
    return (get_origin(hint) or hint,)


def _named(kinds: Iterable[type]) -> str:
    """The names of types, for a reader."""
    return " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)


def _check(key: str, value: Any, hint: Any) -> Any:
    kinds = _kinds(hint)
    if isinstance(value, str) and float in kinds and str not in kinds:
        with contextlib.suppress(ValueError):
            value = float(value)  # a number in quotes
    if type(value) is int and float in kinds and int not in kinds:
        value = float(value)
    check_kind(key, value, hint)
    if get_origin(hint) is Literal and value not in (known := get_args(hint)):
        raise SettingsError(f"{key}={value}: choose from {', '.join(known)}{nearest(value, known)}")
    return value


def check_kind(key: str, value: Any, hint: Any) -> None:
    """Check that a value has a type of its type hint, and holds no NaN.

    Args:
        key: The name of the setting, for the error text.
        value: The value. An `int` is also a `float`.
        hint: The type hint. The types of elements and keys are not checked.

    Raises:
        SettingsError: If the value has another type or holds a NaN.
    """
    kinds = _kinds(hint)
    allowed = (*kinds, int) if float in kinds else kinds
    # A bool is an int, but is not meant as a number.
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
        wanted = "true or false" if kinds == (bool,) else _named(kinds)
        raise SettingsError(f"{key} must be {wanted}, not {value!r:.60}")
    if _holds_nan(value):  # it is neither above nor below any bound
        raise SettingsError(f"{key} must hold numbers, not {value!r}")


def _holds_nan(value: Any) -> bool:
    """Whether a value is not a number (NaN), or holds such a value in its lists and mappings."""
    if isinstance(value, Mapping):
        return any(map(_holds_nan, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_nan, value))
    return isinstance(value, float) and math.isnan(value)


def nearest(name: Any, names: Iterable[str]) -> str:
    """A question that proposes the most similar name, for an error text; empty if none is similar.

    Args:
        name: The unknown name.
        names: The known names.
    """
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
