"""The checks of single values in `retool.json`."""

import dataclasses

import pytest

from retool_env import Limits, Rules
from retool_env import checkpoint_checks as checks


def test_the_default_rules_are_accepted_in_full():
    values = checks.checked_rules("tags", None, {})
    assert tuple(values) == checks.RULES
    assert checks.rules_of("tags", None, values) == Rules()
    assert checks.flattened(values)["limits.tmp_mb"] == Limits().tmp_mb
    assert "limits" not in checks.flattened(values)


def test_every_rule_may_stand_in_the_file():
    fields = {field.name for field in dataclasses.fields(Rules)}
    assert set(checks.RULES) == fields - {"protocol", "prompt_template", "faults"}
    values = checks.checked_rules("tags", None, {"announce_calls": True, "max_void": 3})
    assert values["announce_calls"] is True and values["max_void"] == 3
    with pytest.raises(ValueError, match=r"^rules\.max_void: 1001 is above 1000, "):
        checks.checked_rules("tags", None, {"max_void": 1001})


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
def test_a_limit_may_be_lowered_but_not_raised(name):
    default = getattr(Limits(), name)
    lower = checks.checked_rules("tags", None, {"limits": {name: 1}})
    assert lower["limits"][name] == 1
    with pytest.raises(ValueError, match=rf"^rules.limits.{name}: .* is above {default}, "):
        checks.checked_rules("tags", None, {"limits": {name: default + 1}})


def test_the_options_of_an_id_are_those_that_it_leaves_open():
    assert set(checks.options_of("ReTool-Arithmetic-v0")) == {"difficulty", "seed", "size"}
    assert checks.options_of("ReTool-AIME-v0") == {"year": None}
    assert checks.options_of("ReTool-AIME24-v0") == checks.options_of(None) == {}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("difficulty", [1, [1, 5]], [0, 6, [], [1, 6], "1", True]),
        ("seed", [0, -5, 2**63], [2**63 + 1, 1.0, None]),
        ("size", [1, 1_000_000], [0, 1_000_001]),
        ("year", [None, 2024, 2025], [2023, "2024"]),
        ("answer_key", [None, "answer"], [3, "a\nb", "x" * 101]),
    ],
)
def test_the_settings_of_problems_have_bounds(name, good, bad):
    for value in good:
        checks.OPTIONS[name](name, value)
    for value in bad:
        with pytest.raises(ValueError, match=f"^{name}: it must be "):
            checks.OPTIONS[name](name, value)


def test_a_wrong_value_is_shown_in_part():
    assert checks.shortened("x" * 99) == repr("x" * 99)[:60]
    assert checks.shortened(10**9999) == "a value of type int"
    assert checks.setting_names() >= {"max_calls", "path", "limits.tmp_mb"}
