"""A key on the command line ends the command, and is not shown."""

import argparse

import pytest

from retool_env.cli import main
from retool_env.commands.keys import refuse_key


@pytest.mark.parametrize("given", [("--key", "hunter2"), ("--key=hunter2",), ("--key",)])
def test_a_key_is_refused_with_the_safe_way_and_not_shown(given, capsys):
    parser = argparse.ArgumentParser()
    refuse_key(parser, "--key", "--key-file FILE")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(given)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and "hunter2" not in err
    assert "--key would show the key" in err and err.endswith("give --key-file FILE\n")


def test_the_option_is_not_in_the_help():
    parser = argparse.ArgumentParser()
    refuse_key(parser, "--key", "--key-file FILE")
    assert "--key" not in parser.format_help() and parser.parse_args([]).key is None


@pytest.mark.parametrize(
    "given",
    [("--token", "hunter2"), ("--token=hunter2",), ("--toke", "hunter2"), ("--tok=hunter2",)],
)
def test_a_token_on_the_command_line_is_refused_and_not_shown(given: tuple, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "0", *given])
    err = capsys.readouterr().err
    assert ended.value.code == 2 and "hunter2" not in err
    if given[0].startswith("--token"):
        assert "--token-file FILE, or RETOOL_SANDBOX_TOKEN" in err
