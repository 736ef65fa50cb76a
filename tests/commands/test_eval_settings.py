"""The settings of an evaluation: those of the command, the checkpoint, and the defaults."""

import pytest
from helpers.eval_commands import ARITHMETIC, eval_arguments

from retool_env.checkpoint_task import CheckpointTask
from retool_env.commands.eval_settings import MAX_TOKENS, eval_settings, policy_maker
from retool_env.errors import SettingsError
from retool_env.protocol.prompt import default_prompt
from retool_env.rules import Rules

OWN = {"id": ARITHMETIC, "prompt_template": "Q {query}\n", "max_calls": 3, "max_tokens": 16}


@pytest.fixture
def trained(tmp_path) -> str:
    """The folder of a checkpoint, with a `retool.json` alone."""
    CheckpointTask.of(OWN).save(tmp_path)
    return str(tmp_path)


def test_the_command_wins_over_the_checkpoint_and_the_checkpoint_over_the_defaults(trained):
    arguments = eval_arguments("max_calls=1", "--top-p", "0.5", model=trained, env=None)
    task, settings, lines = eval_settings(arguments)
    assert task is not None and arguments.env == ARITHMETIC
    assert (settings["max_calls"], settings["max_tokens"]) == (1, 16)
    assert settings["prompt_template"] == "Q {query}\n" and settings["split"] == "test"
    assert (arguments.temperature, arguments.top_p) == (1.0, 0.5)
    assert lines[1].endswith("differs from it: max_calls=1 (there: 3), top_p=0.5 (there: 0.7)")


def test_max_tokens_is_the_budget_of_a_local_model_and_a_turn_behind_an_api(tmp_path):
    local = eval_arguments("--max-tokens", "9", model=str(tmp_path))
    assert eval_settings(local)[1]["max_tokens"] == 9
    usual = eval_arguments(model=str(tmp_path))
    assert eval_settings(usual)[1]["max_tokens"] == MAX_TOKENS
    behind = eval_arguments("--api", "http://h/v1", "--max-tokens", "9")
    assert "max_tokens" not in eval_settings(behind)[1] and behind.max_tokens == 9


def test_text_only_turns_the_interpreter_off():
    arguments = eval_arguments("--api", "http://h/v1", "--text-only")
    assert eval_settings(arguments)[1]["interpreter"] is False


def test_with_native_tools_the_prompt_does_not_describe_the_interpreter():
    _, settings, _ = eval_settings(eval_arguments("--api", "http://h/v1", "--native-tools"))
    assert settings["prompt_template"] == default_prompt(interpreter=False)


def test_an_environment_must_be_named(tmp_path):
    with pytest.raises(SettingsError, match="name an environment with --env"):
        eval_settings(eval_arguments(model=str(tmp_path), env=None))


@pytest.mark.parametrize("option", [("--native-tools",), ("--api-key-env", "HOME")])
def test_an_option_for_an_api_needs_one(option):
    with pytest.raises(SettingsError, match=f"{option[0]} is for models behind an API"):
        eval_settings(eval_arguments(*option))


def test_the_policy_of_an_api_is_checked_before_it_is_made(monkeypatch):
    pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")
    monkeypatch.delenv("NO_KEY", raising=False)
    arguments = eval_arguments("--api", "http://h/v1", "--api-key-env", "NO_KEY")
    eval_settings(arguments)
    with pytest.raises(SettingsError, match="an API gives no tokens to count"):
        policy_maker(arguments, Rules(max_tokens=9))
    rules = Rules(max_tokens=None, max_characters=99)
    with pytest.raises(SettingsError, match="NO_KEY: this environment variable is not set"):
        policy_maker(arguments, rules)
    monkeypatch.setenv("NO_KEY", "secret")
    assert callable(policy_maker(arguments, rules))
