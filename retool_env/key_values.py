"""Settings as text: `key=value` on a command line, and YAML files. Both use the same value syntax.

A value is JSON if it parses as JSON. A list or a mapping may also be YAML. Any other value is a
number, `true`, `false` or `null` in the syntax of YAML 1.2, or text. A dot in a key enters a
mapping: `limits.wall_seconds=5` means `limits={"wall_seconds": 5}`.
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
    """The mapping of `key=value` pairs; the last pair of a repeated key counts.

    Raises:
        ValueError: If a pair has no key or no `=`, or its value begins like a list, a mapping or a
            quotation but can't be parsed.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise SettingsError(f"{redact(pair)!r} is not a setting: write it as key=value")
        try:
            value = parse_value(text)
        except ValueError as error:
            raise SettingsError(f"{key}: {error}") from None
        for part in reversed(parts[1:]):
            value = {part: value}
        settings = merge(settings, {parts[0]: value})
    return settings


def parse_value(text: str) -> Any:
    """The value of a text, in the syntax of the module's docstring.

    Raises:
        ValueError: If the text begins like a list, a mapping or a quotation but can't be parsed.
            The message does not show the value, which may be a secret.
    """
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        pass
    if not text.lstrip().startswith(("[", "{", '"', "'")):
        return _scalar(text)
    try:
        value = load_yaml(text)
    except ValueError as error:
        raise SettingsError(f"the value is not YAML: {error}; put text into quotes") from None
    # A text such as "{query}" is a template, not a mapping.
    return text if isinstance(value, dict) and value and ":" not in text else value


def load_yaml(text: str) -> Any:
    """The value of a YAML document, with the scalars of YAML 1.2.

    Raises:
        ValueError: If the document is not YAML, or a mapping has a key twice.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" (line {mark.line + 1})" if mark is not None and "\n" in text else ""
        raise SettingsError(f"{error.problem}{line}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise SettingsError(getattr(error, "reason", None) or type(error).__name__) from None


def dump_yaml(value: Any) -> str:
    """The YAML document of a value; `load_yaml` is the inverse."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a mapping with new values; nested mappings are merged key by key.

    Args:
        base: The mapping.
        over: The new values, which replace the values of `base`.
    """
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = merge(merged[key], value)
        merged[key] = value
    return merged


class _Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2: 1e-6 is a number, 010 is ten, `no` and 2026-01-01 are texts."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # not the base's, of YAML 1.1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping, and refuse a repeated key."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} occurs twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_map(self, node: yaml.MappingNode) -> Any:
        """Construct a mapping; its keys are checked before `<<` is resolved."""
        value = self.construct_mapping(node, deep=True)
        yield value


class _Dumper(yaml.SafeDumper):
    """Quotes each text that `_Loader` would read as a number, a boolean or null."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_MERGE = "tag:yaml.org,2002:merge"
_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
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


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON text, for `object_pairs_hook`.

    Raises:
        ValueError: If a key occurs twice.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        raise SettingsError("a key occurs twice: write it once")
    return value
