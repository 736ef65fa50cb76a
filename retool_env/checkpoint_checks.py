"""What may stand in a checkpoint's `retool.json`: names, and the values of each."""

from __future__ import annotations

import dataclasses
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
"""Characters that a prompt template may have."""

RULES = (
    "interpreter",
    "session",
    "display",
    "max_calls",
    "max_tokens",
    "max_characters",
    "max_seconds",
    "output_characters",
    "output_cut",
    "errors",
    "void_turn",
    "reward",
    "limits",
)
"""The fields of `Rules` that the file holds under `rules`. A new field is not written before it stands here."""

_MOST = {
    "max_calls": 1_000,
    "max_tokens": 1 << 20,
    "max_characters": 10_000_000,
    "max_seconds": 86_400,
    "output_characters": 100_000,
}
"""The highest budgets of an episode that are taken from a file."""

LIMITS = dataclasses.asdict(Limits())
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]"
)
"""What no prompt needs: control characters, halves of surrogate pairs, and what turns the direction of text."""


def rules_of(protocol: str, template: str | None, rules: Mapping[str, Any]) -> Rules:
    """The `Rules` of a task's values."""
    return Rules(**{"protocol": protocol, "prompt_template": template, **rules})


def checked_rules(protocol: str, template: str | None, rules: Mapping[str, Any]) -> dict[str, Any]:
    """All of a task's rules, defaults included.

    Raises:
        ValueError: If one is wrong, or higher than a file may set it.
    """
    protocols = tuple(PROTOCOLS)
    if protocol not in protocols:
        raise SettingsError(
            f"protocol: it must be one of {', '.join(protocols)}, not {shortened(protocol)}"
        )
    for name, kind, what in (("reward", str, "the name of one"), ("limits", dict, "an object")):
        if name in rules and not isinstance(rules[name], kind):
            raise SettingsError(f"rules.{name}: it must be {what}, not {shortened(rules[name])}")
    try:
        made = rules_of(protocol, template, rules)
    except ValueError as error:
        raise SettingsError(f"rules: {error!s:.400}") from None
    found = {name: getattr(made, name) for name in RULES}
    found["limits"] = dataclasses.asdict(made.limits)
    flat = flattened(found)
    for name, most in ({f"limits.{k}": v for k, v in LIMITS.items()} | _MOST).items():
        if flat[name] is not None and flat[name] > most:
            raise SettingsError(
                f"rules.{name}: {shortened(flat[name])} is above {most}, the most that a checkpoint may ask for"
            )
    return found


def options_of(id: str | None) -> dict[str, Any]:
    """The settings of an id's problems that the file may hold, with their defaults."""
    if id is None:
        return {}
    if not isinstance(id, str) or len(id) > 100:
        raise SettingsError(f"id: it must be a registered environment's, not {shortened(id)}")
    try:
        registered = registered_settings(id)
    except ValueError as error:
        raise SettingsError(f"id: {error}") from None
    if not isinstance(registered["problems"], str):
        return {}
    parameters = inspect.signature(SOURCES[registered["problems"]]).parameters
    return {
        name: each.default
        for name, each in parameters.items()
        if name in OPTIONS and name not in registered
    }


def setting_names() -> set[str]:
    """All settings that the file may say were left out."""
    options = {name for source in SOURCES.values() for name in inspect.signature(source).parameters}
    rules = {each.name for each in dataclasses.fields(Rules)}
    return rules | options | {f"limits.{name}" for name in LIMITS}


def flattened(rules: Mapping[str, Any]) -> dict[str, Any]:
    """The rules, with each limit of a program by itself."""
    limits = {f"limits.{name}": value for name, value in rules["limits"].items()}
    return {name: value for name, value in rules.items() if name != "limits"} | limits


def check_names(part: str, values: Mapping[str, Any], known: Iterable[str]) -> None:
    """Check that a part of the file has no other keys."""
    for name in values:
        if name not in known:
            names = ", ".join(known) or "none here"
            raise SettingsError(f"{part}: unknown key {shortened(name)}; there are {names}")


def check_template(template: object) -> None:
    """Check a prompt template: a text of a stranger, in which nothing but `{query}` is filled in."""
    if template is None:
        return
    if not isinstance(template, str):
        raise SettingsError(
            f"prompt_template: it must be a text or null, not {shortened(template)}"
        )
    if len(template) > MOST_TEMPLATE:
        raise SettingsError(f"prompt_template: it is longer than {MOST_TEMPLATE:,} characters")
    if found := _UNPRINTABLE.search(template):
        raise SettingsError(f"prompt_template: it holds the character {found[0]!r}")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        parts = []
    fields = {part[1:] for part in parts if part[1] is not None}
    if fields != {("query", "", None)}:
        raise SettingsError(
            "prompt_template: it must be a text with {query} and no other field, its literal braces written twice, not "
            f"{shortened(template)}"
        )


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Check a whole number."""
    if type(value) is not int or not least <= value <= most:
        raise SettingsError(
            f"{name}: it must be a whole number from {least} to {most}, not {shortened(value)}"
        )


def check_number(name: str, value: Any, least: float, most: float) -> None:
    """Check a number."""
    if type(value) not in (int, float) or not least <= value <= most:
        raise SettingsError(
            f"{name}: it must be a number from {least} to {most}, not {shortened(value)}"
        )


def _check_levels(name: str, value: object) -> None:
    levels = value if isinstance(value, list) and 0 < len(value) <= 100 else [value]
    for level in levels:
        check_whole(name, level, 1, 5)


def _check_seed(name: str, value: object) -> None:
    check_whole(name, value, -(2**63), 2**63)


def _check_size(name: str, value: object) -> None:
    check_whole(name, value, 1, 1_000_000)


def _check_year(name: str, value: object) -> None:
    if value is not None:
        check_whole(name, value, 2024, 2025)


def _check_column(name: str, value: object) -> None:
    short = isinstance(value, str) and len(value) <= 100 and value.isprintable()
    if value is not None and not short:
        raise SettingsError(f"{name}: it must be the name of a column, not {shortened(value)}")


OPTIONS: Mapping[str, Callable[[str, object], None]] = {
    "difficulty": _check_levels,
    "seed": _check_seed,
    "size": _check_size,
    "year": _check_year,
    "question_key": _check_column,
    "answer_key": _check_column,
}
"""The settings of problems that the file may hold, each with its check. Paths are not among them."""


def shortened(value: object) -> str:
    """A wrong value, as errors show it."""
    try:
        return f"{value!r:.60}"
    except (RecursionError, ValueError):  # an integer of thousands of digits
        return f"a {type(value).__name__}"
