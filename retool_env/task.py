"""The settings and the problems that an id stands for."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import gymnasium as gym

from retool_env.errors import SettingsError, UnknownSetting
from retool_env.problem import ProblemSource
from retool_env.problems import load_problems
from retool_env.rules import Rules

_RULES = tuple(field.name for field in dataclasses.fields(Rules))


def make_task(id: str, **settings: Any) -> tuple[Rules, ProblemSource]:
    """The rules and the problems of a registered environment, for those who drive episodes themselves.

    Args:
        id: The environment's id.
        **settings: As for `gymnasium.make`; `max_tokens` too.

    Raises:
        ValueError: If there is no such environment.
        TypeError: If a setting is unknown.
    """
    settings = {**registered_settings(id), **settings}
    return split_settings(settings.pop("problems"), settings)


def registered_settings(id: str) -> dict[str, Any]:
    """The settings that a registered id stands for.

    Raises:
        ValueError: If there is no such environment of ours.
    """
    if id not in gym.registry or gym.registry[id].entry_point != "retool_env.env:ReToolEnv":
        known = sorted(name for name in gym.registry if name.startswith("ReTool-"))
        raise SettingsError(f"no environment {id!r}; there are {', '.join(known)}")
    return dict(gym.registry[id].kwargs)


def split_settings(
    problems: str | ProblemSource, settings: dict[str, Any]
) -> tuple[Rules, ProblemSource]:
    """Settings of the episode make the rules; the others go to the source of that name.

    Raises:
        TypeError: If there are settings that neither knows.
        ValueError: If the source holds no problem.
    """
    rules = Rules(**{name: settings[name] for name in _RULES if name in settings})
    options = {name: value for name, value in settings.items() if name not in _RULES}
    if isinstance(problems, str):
        try:
            source = load_problems(problems, **options)
        except TypeError as error:
            near = [m for name in options for m in difflib.get_close_matches(name, _RULES, n=1)]
            hint = f"; did you mean {near[0]!r}?" if near else ""
            names = ", ".join(_RULES)
            raise UnknownSetting(
                f"{error}; the settings of the episode are {names}{hint}"
            ) from error
    elif options:
        raise UnknownSetting(
            f"unknown setting {sorted(options)}; the settings are {', '.join(_RULES)}"
        )
    else:
        source = problems
    if not len(source):
        raise SettingsError("the source holds no problem")
    return rules, source
