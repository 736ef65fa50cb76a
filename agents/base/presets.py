"""A run's settings: a preset (YAML), the algorithm's own section of it, then `key=value` from the command line.

A preset's top level holds what all algorithms share; a section named after an algorithm adds to it or overrides it, for that
algorithm and for those whose settings are made from its own, as far as they don't define a setting anew. Where an algorithm
runs others as its stages, the sections of these are theirs.
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

PRESETS = Path(__file__).parents[1] / "presets"


def load_settings[S](cls: type[S], section: str, preset: str, overrides: Sequence[str]) -> S:
    """Settings of one algorithm.

    Args:
        cls: Its settings' dataclass.
        section: Its name, which is its section's in the preset; sections named after its and its base classes' modules come
            before.
        preset: A preset's name, or the path of a YAML file.
        overrides: `key=value` each; see `retool_env.key_values`.

    Raises:
        SettingsError: For an unknown preset or key, or a value of the wrong kind.
    """
    return build_settings(cls, merge_settings(cls, section, preset, overrides))


def merge_settings(
    cls: type, section: str, preset: str, overrides: Sequence[str]
) -> dict[str, Any]:
    """The values that a preset and the command line set; see `load_settings`."""
    values = read_preset(preset)
    fields = field_names(cls)
    # A section that is also a setting (the main job's, which runs other algorithms) stays one.
    names = ({*algorithms(), section} | {_section(base) for base in cls.__mro__}) - fields - {""}
    sections = {name: values.pop(name) or {} for name in list(values) if name in names}
    for name, keys in sections.items():
        if not isinstance(keys, dict):
            raise SettingsError(
                f"preset {preset}: the section {name} must be a mapping of settings"
            )
    for name, keys in stages(cls).items():
        if isinstance(values.get(name), dict):
            # What the job sets itself is there for the stage's own runs.
            values[name] = {key: values[name][key] for key in values[name] if key not in keys}
    own: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        anew = inspect.get_annotations(base)
        own = {key: value for key, value in own.items() if key not in anew}
        own = merge(own, sections.get(_section(base), {}))
        if base is cls:
            own = merge(own, sections.get(section, {}))
    for over in (own, read_overrides(overrides)):
        for name in stages(cls):
            if isinstance(values.get(name), dict):
                # A stage's section does not override what is set for the job that it is part of.
                values[name] = _without(values[name], over)
        values = merge(values, over)
    return values


def _section(base: type) -> str:
    """The section of a class that settings are made from: its module's name.

    Classes of `agents/base/` have none, nor has `object`.
    """
    package, _, name = base.__module__.rpartition(".")
    return "" if package == "agents.base" or base is object else name


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The values that `key=value` pairs set; see `retool_env.key_values`.

    Raises:
        SettingsError: If one is no such pair.
    """
    try:
        return parse_settings(overrides)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def read_preset(preset: str) -> dict[str, Any]:
    """The mapping in a preset's file.

    Raises:
        SettingsError: If there is no such preset, or it is not a regular file, not YAML, or holds no mapping.
    """
    path = Path(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
    if path.exists() and (fault := file_fault(path)):
        raise SettingsError(f"preset: {fault}")
    if not path.is_file():
        names = sorted(p.stem for p in PRESETS.glob("*.yaml"))
        raise SettingsError(
            f"no preset {preset!r}{nearest(preset, names)}; there are {', '.join(names)}"
        )
    try:
        values = load_yaml(read_text(path))
    except ValueError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must hold a mapping of settings")
    return values


def _without(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """What of a mapping another one does not set."""
    kept = {}
    for key, value in base.items():
        if key not in over:
            kept[key] = value
        elif isinstance(value, dict) and isinstance(over[key], dict):
            kept[key] = _without(value, over[key])
    return kept
