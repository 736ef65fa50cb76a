"""Presets: a run's settings, merged from a preset (YAML) and the command line's `key=value`.

The top level of a preset holds the settings that all algorithms share. A section named after an
algorithm overrides them for this algorithm, and for the algorithms whose `Settings` inherit from
its `Settings`, except for the settings that these define again. An algorithm that runs others as
stages passes each stage the section of its algorithm.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.base.registry import algorithms
from agents.base.settings import SettingsError, build_settings, field_names, nearest, stages
from retool_env.files import file_fault, read_text
from retool_env.key_values import load_yaml, merge, parse_settings
from retool_env.task import RULES

PRESETS = Path(__file__).parents[1] / "presets"


def load_settings[S](cls: type[S], section: str, preset: str, overrides: Sequence[str]) -> S:
    """Load the settings of an algorithm.

    Args:
        cls: The dataclass of the settings.
        section: The name of the algorithm's section in the preset. It overrides the sections named
            after the modules of `cls` and its base classes.
        preset: The name of a preset, or the path of a YAML file.
        overrides: The `key=value` pairs of the command line; see `retool_env.key_values`.

    Raises:
        SettingsError: For an unknown preset or key, or a value of the wrong kind.
    """
    return build_settings(cls, merge_settings(cls, section, preset, overrides))


def merge_settings(
    cls: type, section: str, preset: str, overrides: Sequence[str]
) -> dict[str, Any]:
    """Merge the values of a preset and the command line.

    Args:
        cls: The dataclass of the settings.
        section: See `load_settings`.
        preset: See `load_settings`.
        overrides: See `load_settings`.

    Raises:
        SettingsError: If the preset is unknown or wrong, or a pair can't be read.
    """
    values = read_preset(preset)
    fields = set(field_names(cls))
    # A name that is also a setting (a stage of this algorithm) stays a setting.
    names = ({*algorithms(), section} | {_section(base) for base in cls.__mro__}) - fields - {""}
    sections = {name: values.pop(name) or {} for name in list(values) if name in names}
    for name, keys in sections.items():
        if not isinstance(keys, dict):
            raise SettingsError(f"preset {preset}: the section {name} must be a mapping")
    for name, keys in stages(cls).items():
        if isinstance(values.get(name), dict):
            # In a preset these keys are meant for separate runs of the stage's algorithm.
            values[name] = {key: values[name][key] for key in values[name] if key not in keys}
    from_sections: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        defined = inspect.get_annotations(base)
        from_sections = {k: value for k, value in from_sections.items() if k not in defined}
        from_sections = merge(from_sections, sections.get(_section(base), {}))
    from_sections = merge(from_sections, sections.get(section, {}))
    for over in (from_sections, parse_settings(overrides)):
        for name in stages(cls):
            if isinstance(values.get(name), dict):
                # The settings of the whole job override the stage's section.
                values[name] = _without(values[name], over)
        if isinstance(values.get("env"), dict) and isinstance(over.get("env"), dict):
            values["env"] = override_env(values["env"], over["env"])
        values = merge(values, over)
    return values


def override_env(env: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The setting `env` with other values.

    Another `id` keeps the rules of `env`, such as `max_tokens`, and drops its settings of problems,
    which belong to the earlier environment.

    Args:
        env: The setting `env`.
        over: The values that override it.
    """
    if over.get("id", env.get("id")) != env.get("id"):
        env = {key: value for key, value in env.items() if key in RULES}
    return merge(env, over)


def _section(base: type) -> str:
    """The name of a settings class's section, which is the name of its module.

    It is empty for `object` and the classes of `agents/base/`.
    """
    package, _, name = base.__module__.rpartition(".")
    return "" if package == "agents.base" or base is object else name


def read_preset(preset: str) -> dict[str, Any]:
    """The mapping in a preset's file.

    Args:
        preset: The name of a preset, or the path of a YAML file.

    Raises:
        SettingsError: If the preset is unknown, not a regular file, not YAML, or not a mapping.
    """
    path = Path(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
    if path.exists() and (fault := file_fault(path)):
        raise SettingsError(f"preset: {fault}")
    if not path.is_file():
        names = sorted(p.stem for p in PRESETS.glob("*.yaml"))
        raise SettingsError(
            f"no preset {preset!r}{nearest(preset, names)}; choose from {', '.join(names)}"
        )
    try:
        values = load_yaml(read_text(path))
    except ValueError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must hold a mapping of settings")
    return values


def _without(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a mapping whose keys, at every depth, are not in another mapping."""
    kept = {}
    for key, value in base.items():
        if key not in over:
            kept[key] = value
        elif isinstance(value, dict) and isinstance(over[key], dict):
            kept[key] = _without(value, over[key])
    return kept
