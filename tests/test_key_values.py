from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.key_values import dump_yaml, load_yaml, merge, parse_settings, parse_value

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


@given(VALUES)
def test_json_is_read_as_json(value):
    assert parse_value(json.dumps(value)) == value


PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=126))
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(PLAIN, NUMBERS | PLAIN | st.lists(st.none() | PLAIN)))
def test_a_file_in_json_is_a_file_in_yaml(value):
    assert load_yaml(json.dumps(value, indent=1)) == value


@given(st.text())
def test_any_text_is_a_value_or_refused_with_a_reason(text):
    try:
        value = parse_value(text)
    except ValueError as error:
        assert "YAML" in str(error) and text.lstrip()[0] in "[{\"'"
    else:
        assert value == text or isinstance(value, str | int | float | list | dict | None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("+3", 3),
        ("010", 10),
        (".5", 0.5),
        ("True", True),
        ("~", None),
        ("", ""),
        ("yes", "yes"),
        ("off", "off"),
        ("2026-01-01", "2026-01-01"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("a #b", "a #b"),
        ("Solve: {query}", "Solve: {query}"),
        ("{query}", "{query}"),
        ("*x", "*x"),
        ("<<", "<<"),
        ("=", "="),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("[a, 1, 1e-6]", ["a", 1, 1e-6]),
        ("{id: x, list: [1]}", {"id": "x", "list": [1]}),
        ("'{query}: 1'", "{query}: 1"),
        ("{}", {}),
    ],
)
def test_a_value_is_what_it_seems(text, value):
    found = parse_value(text)
    assert found == value and type(found) is type(value)


def test_infinity_is_a_number():
    assert parse_value("-.inf") == -math.inf and parse_value("Infinity") == math.inf


def test_dots_reach_into_mappings_and_the_last_one_counts():
    pairs = ["a.b=1", "a.c.d=x=y", "a.b=2", "e={f: 1}", "e.g=[h]"]
    assert parse_settings(pairs) == {"a": {"b": 2, "c": {"d": "x=y"}}, "e": {"f": 1, "g": ["h"]}}
    assert merge({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("steps", "'steps' is not a setting: write it as key=value"),
        ("=3", "'=3' is not a setting: write it as key=value"),
        ("a..b=3", "is not a setting"),
        ("key={", "key: the value is not YAML"),
        ("key=[1", "key: the value is not YAML"),
        ("key={a: 1, a: 2}", "the key 'a' occurs twice"),
        ('key={"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ("key={query}\\n", "put text into quotes"),
    ],
)
def test_what_is_no_setting_is_refused(pair, message):
    with pytest.raises(ValueError, match=message):
        parse_settings([pair])


def test_a_refusal_shows_no_value():
    with pytest.raises(ValueError) as caught:
        parse_settings(["sandbox={token: hush"])
    assert "hush" not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize(
    "value",
    ["1e-6", 1e-6, "no", "007", "~", "true", "<<", "", "12", 1e22, "{query}\n", None, [1, "x: y"]],
)
def test_what_is_dumped_is_read_again(value):
    found = load_yaml(dump_yaml({"key": value}))["key"]
    assert found == value and type(found) is type(value)
