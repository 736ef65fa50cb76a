"""The keys and values that a checkpoint's `retool.json` may hold."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import string
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from retool_env.errors import SettingsError
from retool_env.execution import Limits
from retool_env.problems import SOURCES
from retool_env.protocol import PROTOCOLS
from retool_env.rules import Rules
from retool_env.task import registered_settings

MOST_TEMPLATE = 20_000
"""The largest number of characters of a prompt template."""

RULES = (
    *("interpreter", "session", "display"),
    *("max_calls", "max_tokens", "max_characters", "max_seconds"),
    *("output_characters", "output_cut", "errors", "void_turn", "reward", "limits"),
    *("announce_calls", "max_void"),
)
"""The fields of `Rules` that the file holds under `rules`. Add a new field here to write it."""

_MOST = {
    "max_calls": 1_000,
    "max_void": 1_000,
    "max_tokens": 1 << 20,
    "max_characters": 10_000_000,
    "max_seconds": 86_400,
    "output_characters": 100_000,
}
"""The highest budgets of an episode that a file may set."""

LIMITS = dataclasses.asdict(Limits())
"""The highest limits of a program that a file may set: the defaults."""
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]"
)
"""Control characters, lone surrogates and marks of the text direction: no prompt needs these."""


def rules_of(protocol: str, template: str | None, rules: Mapping[str, Any]) -> Rules:
    """The `Rules` of a task's values.

    Args:
        protocol: The name of the protocol.
        template: The prompt template; `None`: the default prompt.
        rules: The other fields of `Rules`, by name.
    """
    return Rules(**{"protocol": protocol, "prompt_template": template, **rules})


def checked_rules(protocol: str, template: str | None, rules: Mapping[str, Any]) -> dict[str, Any]:
    """All rules of a task by name, including the defaults.

    Args:
        protocol: The name of the protocol.
        template: The prompt template; `None`: the default prompt.
        rules: The other fields of `Rules`, by name.

    Raises:
        ValueError: If a value is wrong, or higher than a file may set it.
    """
    if protocol not in tuple(PROTOCOLS):
        raise SettingsError(
            f"protocol: it must be one of {', '.join(PROTOCOLS)}, not {shortened(protocol)}"
        )
    for name, kind, what in (("reward", str, "a preset's name"), ("limits", dict, "an object")):
        if name in rules and not isinstance(rules[name], kind):
            raise SettingsError(f"rules.{name}: it must be {what}, not {shortened(rules[name])}")
    try:
        checked = dataclasses.asdict(rules_of(protocol, template, rules))
    except ValueError as error:
        raise SettingsError(f"rules: {error!s:.400}") from None
    checked = {name: checked[name] for name in RULES}
    flat = flattened(checked)
    for name, most in ({f"limits.{k}": v for k, v in LIMITS.items()} | _MOST).items():
        if flat[name] is not None and flat[name] > most:
            raise SettingsError(
                f"rules.{name}: {shortened(flat[name])} is above {most}, the highest value that a "
                "checkpoint may set"
            )
    return checked


def options_of(id: str | None) -> dict[str, Any]:
    """The settings of an id's problems that the file may hold, with their defaults.

    Args:
        id: The environment's id; `None` for problems of a script, which have no such settings.

    Raises:
        ValueError: If the id is not registered.
    """
    if id is None:
        return {}
    if not isinstance(id, str) or len(id) > 100:
        raise SettingsError(f"id: it must be the id of an environment, not {shortened(id)}")
    try:
        registered = registered_settings(id)
    except ValueError as error:
        raise SettingsError(f"id: {error}") from None
    if not isinstance(registered["problems"], str):
        return {}
    parameters = inspect.signature(SOURCES[registered["problems"]]).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if name in OPTIONS and name not in registered
    }


def setting_names() -> set[str]:
    """The names that `left_out` may hold."""
    options = {name for source in SOURCES.values() for name in inspect.signature(source).parameters}
    rules = {field.name for field in dataclasses.fields(Rules)}
    return rules | options | {f"limits.{name}" for name in LIMITS}


def flattened(rules: Mapping[str, Any]) -> dict[str, Any]:
    """The rules, with a key `limits.<name>` for each limit instead of the mapping `limits`."""
    limits = {f"limits.{name}": value for name, value in rules["limits"].items()}
    return {name: value for name, value in rules.items() if name != "limits"} | limits


def check_names(part: str, values: Mapping[str, Any], known: Iterable[str]) -> None:
    """Check that a part of the file has no unknown keys.

    Args:
        part: The name of the part, for the error.
        values: The object in the file.
        known: The known keys.

    Raises:
        ValueError: If a key is unknown.
    """
    for name in values:
        if name not in known:
            names = ", ".join(known) or "none"
            raise SettingsError(f"{part}: unknown key {shortened(name)}; known keys: {names}")


def check_template(template: object) -> None:
    """Check a prompt template that a stranger may have written.

    Raises:
        ValueError: If it is not a text, is too long, holds unprintable characters, or has a field
            other than `{query}`.
    """
    if template is None:
        return
    if not isinstance(template, str):
        raise SettingsError(
            f"prompt_template: it must be a text or null, not {shortened(template)}"
        )
    if len(template) > MOST_TEMPLATE:
        raise SettingsError(f"prompt_template: it is longer than {MOST_TEMPLATE:,} characters")
    if character := _UNPRINTABLE.search(template):
        raise SettingsError(f"prompt_template: it holds the character {character[0]!r}")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        parts = []
    if {part[1:] for part in parts if part[1] is not None} != {("query", "", None)}:
        raise SettingsError(
            "prompt_template: it must be a text whose only field is {query} and whose literal "
            f"braces are written twice, not {shortened(template)}"
        )


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Check a whole number.

    Args:
        name: The name of the value, for the error.
        value: The value.
        least: The smallest allowed value.
        most: The largest allowed value.

    Raises:
        ValueError: If the value is not an `int`, or is out of bounds.
    """
    if type(value) is not int or not least <= value <= most:
        raise SettingsError(
            f"{name}: it must be a whole number from {least} to {most}, not {shortened(value)}"
        )


def check_number(name: str, value: Any, least: float, most: float) -> None:
    """Check a number.

    Args:
        name: The name of the value, for the error.
        value: The value.
        least: The smallest allowed value.
        most: The largest allowed value.

    Raises:
        ValueError: If the value is neither `int` nor `float`, or is out of bounds.
    """
    if type(value) not in (int, float) or not least <= value <= most:
        raise SettingsError(
            f"{name}: it must be a number from {least} to {most}, not {shortened(value)}"
        )


def _check_levels(name: str, value: object) -> None:
    levels = value if isinstance(value, list) and 0 < len(value) <= 100 else [value]
    for level in levels:
        check_whole(name, level, 1, 5)


def _check_year(name: str, value: object) -> None:
    if value is not None:
        check_whole(name, value, 2024, 2025)


def _check_column(name: str, value: object) -> None:
    short = isinstance(value, str) and len(value) <= 100 and value.isprintable()
    if value is not None and not short:
        raise SettingsError(f"{name}: it must be the name of a column, not {shortened(value)}")


OPTIONS: Mapping[str, Callable[[str, object], None]] = {
    "difficulty": _check_levels,
    "seed": functools.partial(check_whole, least=-(2**63), most=2**63),
    "size": functools.partial(check_whole, least=1, most=1_000_000),
    "year": _check_year,
    "question_key": _check_column,
    "answer_key": _check_column,
}
"""The settings of problems that the file may hold, each with its check. Paths are excluded."""


def shortened(value: object) -> str:
    """The first 60 characters of a wrong value's `repr`, for an error."""
    try:
        return f"{value!r:.60}"
    except (RecursionError, ValueError):  # an integer of thousands of digits
        return f"a value of type {type(value).__name__}"
