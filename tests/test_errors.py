"""The tree of errors, and the output of commands for errors inside and outside of it."""

import importlib
import inspect
import pkgutil

import pytest

import agents
import retool_env
from retool_env import cli, errors
from retool_env.errors import RetoolError, SettingsError

OLD_BASES = {
    "agents.base.settings:SettingsError": ValueError,
    "agents.models.smollm2:CheckpointError": RuntimeError,
    "retool_env.execution:SandboxUnavailable": RuntimeError,
    "retool_env.grading.grader:GraderUnavailable": RuntimeError,
    "retool_env.problem:ProblemsUnavailable": FileNotFoundError,
    "retool_env.problems.columns:MissingColumn": ValueError,
    "retool_env.problems.columns:UnusableRow": ValueError,
    "retool_env.rollout.openai.errors:RequestRefused": ValueError,
    "retool_env.rollout.policy:PolicyUnavailable": RuntimeError,
    "retool_env.training.rollouts:RolloutsAbandoned": Exception,
}
"""The former module and base class of each error."""

APART = {"retool_env.sandbox.survey"}
"""Modules that run in other interpreters, without retool_env."""


@pytest.mark.parametrize("name", OLD_BASES)
def test_an_error_is_where_it_was_and_still_what_it_was(name):
    module, _, attribute = name.partition(":")
    error = getattr(importlib.import_module(module), attribute)
    assert issubclass(error, RetoolError) and issubclass(error, OLD_BASES[name])


def test_every_public_error_of_ours_is_in_the_tree():
    outside = []
    for package in (retool_env, agents):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name in APART or found.name.endswith("__main__"):
                continue
            try:
                module = importlib.import_module(found.name)
            except ImportError:  # an optional package, or a module of another interpreter
                continue
            for name, each in inspect.getmembers(module, inspect.isclass):
                own = each.__module__ == found.name and not name.startswith("_")
                if own and issubclass(each, Exception) and not issubclass(each, RetoolError):
                    outside.append(f"{found.name}:{name}")
    assert outside == []


def test_the_docstring_shows_the_whole_tree():
    for name, each in inspect.getmembers(errors, inspect.isclass):
        assert issubclass(each, RetoolError) and each.__doc__
        assert name in RetoolError.__doc__ or each is RetoolError


@pytest.mark.parametrize("error", [SettingsError("seen"), OSError("seen")])
def test_a_command_says_an_error_of_ours_or_the_systems_in_one_line(error, monkeypatch, capsys):
    monkeypatch.setattr(cli, "run_doctor", lambda *_: raised(error))
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "retool doctor: seen\n"


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, RuntimeError, ImportError])
def test_a_mistake_in_the_program_is_not_dressed_as_the_users(error, monkeypatch):
    monkeypatch.setattr(cli, "run_doctor", lambda *_: raised(error("a bug")))
    with pytest.raises(error, match="a bug"):
        cli.main(["doctor"])


def raised(error):
    raise error
