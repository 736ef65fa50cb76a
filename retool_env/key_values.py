"""Settings as text: `key=value` on a command line, and YAML files of settings. Both read values alike.

A value is JSON where it can be; a list or a mapping may be YAML; anything else is a number, `true`, `false` or `null` as YAML 1.2
writes them, or text. A dot in a key reaches into a mapping: `limits.wall_seconds=5` is `limits={"wall_seconds": 5}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from retool_env.errors import SettingsError
from retool_env.servers.address import redact


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """The mapping that `key=value` pairs say; of the same key the last one counts.

    Raises:
        ValueError: If a pair has no key or no `=`, or its value begins like a list, a mapping or a quotation and is none.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise SettingsError(f"{redact(pair)!r} is no key=value")
        try:
            value = parse_value(text)
        except ValueError as error:
            raise SettingsError(f"{key}: {error}") from None
        for part in reversed(parts[1:]):
            value = {part: value}
        settings = merge(settings, {parts[0]: value})
    return settings


def parse_value(text: str) -> Any:
    """The value that a text says; see the module's text.

    Raises:
        ValueError: If it begins like a list, a mapping or a quotation and is none. The message does not show the value, which
            may be a secret.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError):
        pass
    if not text.lstrip().startswith(("[", "{", '"', "'")):
        return _scalar(text)
    try:
        value = load_yaml(text)
    except ValueError as error:
        raise SettingsError(f"the value is not YAML: {error}; put text into quotes") from None
    # A template, {query} say, and no mapping.
    return text if isinstance(value, dict) and value and ":" not in text else value


def load_yaml(text: str) -> Any:
    """What a YAML document holds, its scalars read as in YAML 1.2.

    Raises:
        ValueError: If it is not YAML, or a mapping has a key twice, of which one would be lost.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1})" if mark is not None and "\n" in text else ""
        raise SettingsError(f"{error.problem}{place}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise SettingsError(getattr(error, "reason", None) or type(error).__name__) from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with another one's values put over its own, inside mappings too."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = merge(merged[key], value)
        merged[key] = value
    return merged


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: 1e-6 is a number, and `no`, `010` and 2026-01-01 are not something else than they seem."""

    # A copy: those of the base class are of YAML 1.1.
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses a key that a mapping has twice."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_map(self, node: yaml.MappingNode) -> Any:
        """Checks the keys before `<<` is replaced by what it refers to."""
        value = self.construct_mapping(node, deep=True)
        yield value


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_MERGE = "tag:yaml.org,2002:merge"
_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": "<<",
}
for _kind, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), None
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_yaml_map)


def _scalar(text: str) -> Any:
    if not text:
        return text
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    if tag == _MERGE:
        return text
    return loader.construct_object(yaml.ScalarNode(tag, text))


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise SettingsError("a key stands there twice")
    return found
