"""The settings of an episode: defaults, checks, prompts and protocols."""

import dataclasses

import numpy as np
import pytest

from retool_env import Limits, Problem, Rules
from retool_env.protocol import Hermes, Tags

PROBLEM = Problem(id="p", question="6 * {7}?", answer="42")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interpreter": 1}, "interpreter must be true or false, not 1"),
        ({"session": "yes"}, "session must be true or false, not 'yes'"),
        ({"max_calls": -1}, "max_calls must be a whole number of at least 0, not -1"),
        ({"announce_calls": 1}, "announce_calls must be true or false, not 1"),
        ({"max_void": 0}, "max_void must be a whole number of at least 1, not 0"),
        ({"max_tokens": 0}, "max_tokens must be a whole number of at least 1"),
        ({"max_seconds": 0}, "max_seconds must be a number of seconds, above 0"),
        ({"output_characters": None}, "output_characters must be a whole number"),
        ({"output_cut": "left"}, "output_cut must be one of head, tail, middle, not 'left'"),
        ({"errors": "none"}, "errors must be one of traceback, last_line"),
        ({"void_turn": "stop"}, "void_turn must be one of end, continue"),
        ({"protocol": "json"}, "protocol must be one of tags, hermes"),
        ({"limits": 3}, "limits must be a Limits, or a mapping of its fields"),
        ({"limits": {"gpus": 1}}, r"unknown limit \['gpus'\]; the limits are wall_seconds, "),
        ({"reward": "none"}, "no reward preset 'none'"),
        ({"prompt_template": "{query} {x}"}, "must have the one field {query}"),
    ],
)
def test_a_wrong_value_is_refused_by_the_settings_name(settings, message):
    with pytest.raises(ValueError, match=message):
        Rules(**settings)


def test_values_are_normalised_so_that_equal_rules_compare_equal():
    rules = Rules(max_calls=np.int64(3), max_seconds=2, limits={"tmp_mb": 4})
    assert rules == Rules(max_calls=3, max_seconds=2.0, limits=Limits(tmp_mb=4))
    assert type(rules.max_calls) is int and type(rules.max_seconds) is float
    unlimited = Rules(max_calls=None, max_tokens=None, max_characters=None, max_seconds=None)
    assert unlimited.max_calls is None and unlimited.max_characters is None


def test_the_protocol_gets_the_settings_of_the_interpreter():
    assert Rules().turn_protocol() == Tags(True, False, False)
    rules = Rules(protocol="hermes", interpreter=False, session=True)
    assert rules.turn_protocol() == Hermes(False, True, False)


def test_the_prompt_is_the_protocols_or_the_users():
    for protocol in ("tags", "hermes"):
        rules = Rules(protocol=protocol)
        assert rules.template == rules.turn_protocol().default_prompt()
        assert "6 * {7}?" in rules.prompt(PROBLEM) and "{query}" not in rules.prompt(PROBLEM)
    assert Rules(prompt_template="{{Q}} {query}").prompt(PROBLEM) == "{Q} 6 * {7}?"
    assert dataclasses.replace(rules, prompt_template="{query}").prompt(PROBLEM) == "6 * {7}?"
