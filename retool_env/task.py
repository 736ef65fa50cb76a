"""The settings and the problems of a registered id."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import gymnasium as gym

from retool_env.errors import SettingsError, UnknownSetting
from retool_env.problem import ProblemSource
from retool_env.problems import load_problems
from retool_env.rules import Rules

RULES = tuple(field.name for field in dataclasses.fields(Rules))
"""The names of the settings of an episode."""


def make_task(id: str, **settings: Any) -> tuple[Rules, ProblemSource]:
    """The rules and the problems of a registered environment, for callers of `Episode`.

    Args:
        id: The environment's id.
        **settings: The settings of `gymnasium.make`, and `max_tokens`.

    Raises:
        ValueError: If the id is not registered.
        TypeError: If a setting is unknown.
    """
    settings = {**registered_settings(id), **settings}
    return split_settings(settings.pop("problems"), settings)


def make_rules(id: str, **settings: Any) -> Rules:
    """The rules of a registered environment. Its problems are not loaded.

    Args:
        id: The environment's id.
        **settings: The settings of `make_task`. Settings of the problems have no effect.

    Raises:
        ValueError: If the id is not registered, or the value of a setting is wrong.
    """
    settings = {**registered_settings(id), **settings}
    return Rules(**{name: settings[name] for name in RULES if name in settings})


def registered_settings(id: str) -> dict[str, Any]:
    """The settings of a registered id.

    Raises:
        ValueError: If the id is not registered as a `ReToolEnv`.
    """
    if id not in gym.registry or gym.registry[id].entry_point != "retool_env.env:ReToolEnv":
        known = sorted(name for name in gym.registry if name.startswith("ReTool-"))
        raise SettingsError(f"no environment {id!r}; the environments are {', '.join(known)}")
    return dict(gym.registry[id].kwargs)


def split_settings(
    problems: str | ProblemSource, settings: dict[str, Any]
) -> tuple[Rules, ProblemSource]:
    """Split settings into the rules of the episode and the arguments of the problem source.

    Args:
        problems: A problem source, or a source's name.
        settings: The settings of `Rules` and of the named source.

    Returns:
        The rules and the problem source.

    Raises:
        TypeError: If a setting is unknown to both.
        ValueError: If the source holds no problem, or the value of a setting is wrong.
    """
    rules = Rules(**{name: settings[name] for name in RULES if name in settings})
    options = {name: value for name, value in settings.items() if name not in RULES}
    if isinstance(problems, str):
        try:
            source = load_problems(problems, **options)
        except TypeError as error:
            near = [m for name in options for m in difflib.get_close_matches(name, RULES, n=1)]
            hint = f"; did you mean {near[0]!r}?" if near else ""
            names = ", ".join(RULES)
            raise UnknownSetting(
                f"{error}; the settings of the episode are {names}{hint}"
            ) from error
    elif options:
        raise UnknownSetting(
            f"unknown setting {sorted(options)}; the settings are {', '.join(RULES)}"
        )
    else:
        source = problems
    if not len(source):
        raise SettingsError("the problem source is empty: it must hold at least one problem")
    return rules, source
