"""Commands that run in a clone."""

import os

from retool_env.commands.clone import forward


def test_outside_a_clone_the_command_says_how_to_get_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert forward("retool train", ["grpo"]) == 1
    assert "`retool train` runs from a clone of the repository" in capsys.readouterr().err


def test_in_a_clone_the_arguments_go_to_the_trainers(tmp_path, monkeypatch):
    (tmp_path / "agents" / "presets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    ran = []
    monkeypatch.setattr(os, "execv", lambda program, words: ran.append(words[1:]))
    forward("retool train", ["grpo", "steps=2"])
    assert ran == [["-m", "agents", "grpo", "steps=2"]]
