"""Options of two commands: shares are read, and wrong combinations are refused."""

import argparse

import pytest

from retool_env.commands.model_options import (
    add_api_options,
    add_record_options,
    add_sampling_options,
    check_options,
    share,
)
from retool_env.errors import SettingsError
from retool_env.evaluation.cost import Price


def parsed(*given):
    parser = argparse.ArgumentParser()
    add_api_options(parser)
    add_sampling_options(parser)
    add_record_options(parser, "record", "recover")
    arguments = parser.parse_args(given)
    arguments.settings, arguments.k, arguments.problems = [], 1, None
    return arguments


def test_a_share_is_a_number_or_a_percentage():
    assert share("5%") == share("0.05") == 0.05
    with pytest.raises(argparse.ArgumentTypeError, match="is not a share"):
        share("101%")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--resume",), "--resume needs the --name of its record, or its folder as --out"),
        (("--name", "../x"), "--name must be a name below runs/recover"),
        (("--limit-cost", "1"), "--limit-cost must be above 0, and needs --price"),
        (("--force",), "--force goes with --resume"),
    ],
)
def test_options_that_lack_others_are_refused(given, words):
    with pytest.raises(SettingsError, match=words):
        check_options(parsed(*given), None, "recover")


def test_right_options_pass():
    check_options(parsed("--limit-cost", "1", "--name", "a/b"), Price(1, 1), "recover")


@pytest.mark.parametrize("name", ["k", "problems", "m"])
def test_numbers_of_episodes_are_at_least_1(name):
    arguments = parsed()
    setattr(arguments, name, 0)
    with pytest.raises(SettingsError, match=f"--{name} must be at least 1, not 0"):
        check_options(arguments, None, "recover")
