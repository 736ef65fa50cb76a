"""The settings and problems of a registered id."""

import gymnasium as gym
import pytest

import retool_env
from retool_env import Problem, Rules
from retool_env.problems import ProblemList
from retool_env.task import make_rules, make_task, registered_settings, split_settings

ARITHMETIC = "ReTool-Arithmetic-v0"
PROBLEMS = ProblemList([Problem(id="p", question="1 + 1?", answer="2")])


def test_make_task_gives_what_the_environment_has():
    rules, source = make_task(ARITHMETIC, max_tokens=64, difficulty=3, max_calls=2)
    assert rules == Rules(max_tokens=64, max_calls=2) and source[0].metadata["difficulty"] == 3
    assert source[0] == gym.make(ARITHMETIC, difficulty=3, interpreter=False).unwrapped.problems[0]
    with pytest.raises(ValueError, match=ARITHMETIC):
        make_task("ReTool-Arithmetic-v9")
    with pytest.raises(ValueError, match="no environment 'CartPole-v1'"):
        make_task("CartPole-v1")


def test_the_rules_alone_load_no_problems(monkeypatch):
    def load(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr("retool_env.task.load_problems", load)
    assert make_rules("ReTool-AIME24-v0", split="test", max_calls=2) == Rules(max_calls=2)
    with pytest.raises(ValueError, match="max_calls"):
        make_rules(ARITHMETIC, max_calls=-1)


def test_registered_settings_are_a_copy():
    registered_settings(ARITHMETIC)["problems"] = "none"
    assert registered_settings(ARITHMETIC) == retool_env.ENVIRONMENTS[ARITHMETIC]


def test_settings_go_to_the_rules_or_to_the_named_source():
    rules, source = split_settings("arithmetic", {"max_calls": 2, "size": 3, "seed": 5})
    assert rules == Rules(max_calls=2) and len(source) == 3
    assert split_settings(PROBLEMS, {"max_calls": 2}) == (Rules(max_calls=2), PROBLEMS)
    with pytest.raises(TypeError, match=r"'max_call'.*did you mean 'max_calls'"):
        split_settings("arithmetic", {"max_call": 2})
    with pytest.raises(TypeError, match=r"unknown setting \['size'\]; the settings are "):
        split_settings(PROBLEMS, {"size": 3})


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="source is empty"):
        split_settings([], {})
