"""The user's view: refusals that say what to change, and the help."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.small_runs import given, make_small, settings

from agents import __main__ as cli
from agents import grpo, ppo
from agents.base.registry import algorithms, load_algorithm
from agents.base.settings import SettingsError, help_of
from retool_env.problems import jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("name", "module"), [("grpo", grpo), ("ppo", ppo)])
def test_a_protocol_of_chats_needs_a_chat_template(name, module, model, tmp_path):
    hermes = settings(name, model=model, **{"env.protocol": "hermes", "env.interpreter": True})
    with pytest.raises(SettingsError, match=r"protocol=hermes: .*chat template"):
        module.train(hermes, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("sft", {"learning_rate": 0.5}, "learning_rate=0.5"),
        ("grpo", {"learning_rate": 0.5}, "learning_rate=0.5"),
        ("grpo", {"learning_rate": -1.0}, "learning_rate must be above 0"),
        ("ppo", {"learning_rate": 0.5}, "learning_rate=0.5"),
        ("ppo", {"critic_learning_rate": 0.5}, "critic_learning_rate=0.5"),
        ("rft", {"sft": {"learning_rate": 0.5}}, "sft.learning_rate=0.5"),
        ("grpo", {"micro_batch": 6}, "take micro_batch=4"),
        ("ppo", {"micro_batch": 6}, "take micro_batch=4"),
        ("ppo", {"mini_batch": 5}, "take mini_batch=4"),
        ("grpo", {"trl": {"generation_batch_size": 6}}, "trl: .*6"),
        ("grpo", {"trl": {"report_to": "wandb"}}, "another setting"),
        ("sft", {"traces": 0}, "traces must be at least 1"),
        ("sft", {"epochs": -1.0}, "epochs must be above 0"),
        ("sft", {"batch_size": 0}, "batch_size must be at least 1"),
        ("sft", {"save_steps": 0}, "save_steps must be at least 1"),
    ],
)
def test_numbers_that_will_not_do_are_refused(name, overrides, said, model, tmp_path):
    module = load_algorithm(name)
    with pytest.raises(SettingsError, match=said):
        module.train(settings(name, model=model, **overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_several_processes_can_not_share_says_what_they_could(model):
    with pytest.raises(SettingsError, match="take a multiple of 2"):
        grpo.check_batch(settings("grpo", prompts=3), 2)
    with pytest.raises(SettingsError, match=r"4 episodes for each process.*take micro_batch=2"):
        grpo.check_batch(settings("grpo", micro_batch=3), 2)
    with pytest.raises(SettingsError, match="take mini_batch=4"):
        ppo.check(settings("ppo", mini_batch=7), 2)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "1 + 1?"}, "line 2: no column for the answer: .*answer_key="),
        ({"question": "1 + 1?", "answer": " "}, "line 2: the answer .* is empty"),
        ({"question": "1 + 1?", "answer": None}, "line 2: the answer .* neither text nor a number"),
        ({"question": "1 + 1?", "answer": "\\frac{1}{"}, "line 2: .*close all braces"),
        ({"question": "1 + 1?", "answer": "$$"}, "line 2: .*can't be graded"),
        ({"question": "1 + 1?", "answer": ["1", "2"]}, "line 2: .*one value"),
    ],
)
def test_a_data_set_without_answers_is_refused_by_line(row, said, model, tmp_path, capsys):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question": "2 + 2?", "answer": "4"}) + "\n" + json.dumps(row))
    own = {"env.id": "ReTool-JSONL-v0", "env.path": str(path)}
    preset = tmp_path / "preset.yaml"
    preset.write_text("env: {id: ReTool-JSONL-v0}\n")
    for name in ("grpo", "ppo", "rft"):
        values = given(name, model=model, **own)
        command = [name, "--preset", str(preset), "--runs", str(tmp_path / "runs"), *values]
        assert cli.main(command) == 2
        message = capsys.readouterr().err
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(message)
    assert not (tmp_path / "runs").exists()


def test_answers_in_words_and_formulas_are_taken(tmp_path):
    answers = [
        "Paris",
        "\\frac{1}{2}",
        3,
        0.5,
        "x^2 + 1",
        "\\boxed{7}",
        "$12$",
        "1,000",
        "\\{1, 2\\}",
    ]
    rows = [{"question": f"{i}?", "answer": answer} for i, answer in enumerate(answers)]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(jsonl(path)) == len(answers)


# The help


@pytest.mark.parametrize("name", algorithms())
def test_the_help_documents_every_setting(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    assert cli.main([name, "--help"]) == 0
    listed = capsys.readouterr().out.partition(f"settings of {name}:\n")[2]
    assert max(map(len, listed.splitlines())) <= 90
    unwrapped = " ".join(listed.split())
    cls = load_algorithm(name).Settings
    for field in dataclasses.fields(cls):
        help = help_of(cls, field.name)
        assert len(help) > 2, field.name
        assert f"{field.name} (" in unwrapped and " ".join(help.split()) in unwrapped
