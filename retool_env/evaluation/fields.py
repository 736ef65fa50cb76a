"""The fields of a stored file: which a reader needs, and which version of the format they have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any


def without_default(kind: type[Any]) -> list[str]:
    """The names of the fields of a dataclass that have no default."""
    fields, nothing = dataclasses.fields(kind), dataclasses.MISSING
    return [one.name for one in fields if one.default is one.default_factory is nothing]


def checked(values: Any, newest: int, required: Iterable[str] = ()) -> dict[str, Any]:
    """The values of a file, if a reader of this version can read them.

    Args:
        values: The decoded JSON.
        newest: The newest version of the format, `schema`, that is known.
        required: The names of the other fields that must be there.

    Raises:
        ValueError: The values are not an object, a field is missing, or `schema` is not a whole
            number from 1 to `newest`. The message has no name of a file.

    Example:
        >>> checked({"schema": 1, "name": "m"}, 1, ["name"])["name"]
        'm'
        >>> checked({"schema": 1}, 1, ["name"])
        Traceback (most recent call last):
        ValueError: the field name is missing
    """
    if not isinstance(values, dict):
        raise ValueError(f"it holds {values!r:.40}, and not an object with fields")
    if "schema" not in values:
        raise ValueError("the field schema is missing")
    schema = values["schema"]
    if type(schema) is not int or schema < 1:  # True and 1.0 equal 1
        raise ValueError(f"schema must be a whole number from 1 to {newest}, not {schema!r:.20}")
    if schema > newest:
        raise ValueError(f"schema {schema} is unknown: a newer retool-env wrote it")
    if missing := [name for name in required if name not in values]:
        fields = "fields" if len(missing) > 1 else "field"
        verb = "are" if len(missing) > 1 else "is"
        raise ValueError(f"the {fields} {', '.join(missing)} {verb} missing")
    return values
