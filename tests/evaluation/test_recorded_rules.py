"""The rules of a recorded episode come from the record of its run."""

import dataclasses
import json

import pytest
from helpers.episodes import episode
from helpers.recorded_runs import write_eval, write_training

from retool_env.errors import DataError, SettingsError
from retool_env.evaluation.recorded_rules import rules_of, rules_of_episode
from retool_env.evaluation.records import read_record
from retool_env.evaluation.runs import open_run
from retool_env.rules import Rules
from retool_env.transcript import StopReason, write_transcripts

RULES = Rules(max_calls=3, session=True, limits={"wall_seconds": 2}, output_characters=50)
ENDED = episode("p", StopReason.ANSWERED, "<answer>42</answer>", correct=True)


def first(path, **settings):
    run = open_run(path)
    place, transcript = next(iter(run.episodes()))
    return rules_of_episode(run, transcript, place.step, settings)


def test_rules_are_those_of_the_record_without_faults(tmp_path):
    faulty = dataclasses.replace(RULES, faults={"rate": 0.5})
    again = rules_of(read_record(write_eval(tmp_path / "run", [ENDED], faulty)))
    for name in ("max_calls", "session", "limits", "output_characters", "template"):
        assert getattr(again, name) == getattr(RULES, name)
    assert again.faults is None


def test_an_evaluation_holds_all_rules_and_its_reward(tmp_path):
    found = first(write_eval(tmp_path / "run", [ENDED], RULES))
    expected = dataclasses.replace(RULES, prompt_template=RULES.template)
    assert (found.rules, found.known, found.reward) == (expected, True, "paper")


def test_a_training_run_has_the_rules_of_its_environment(tmp_path):
    env = {"session": True, "limits": {"wall_seconds": 3}, "reward": "verl", "faults": {"rate": 1}}
    found = first(write_training(tmp_path / "run", [ENDED], prompt_template="gone.json", **env))
    assert (found.rules.session, found.rules.limits.wall_seconds) == (True, 3)
    assert (found.known, found.reward, found.rules.faults) == (True, "verl", None)


def test_held_out_episodes_of_a_training_run_have_the_rules_of_eval_env(tmp_path):
    folder = write_training(tmp_path / "run", [], session=True, max_calls=2)
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["eval_env"] = {"max_calls": 5}
    (folder / "config.json").write_text(json.dumps(config))
    write_transcripts(folder / "eval-2.jsonl", [ENDED])
    found = first(f"{folder}@2").rules
    assert (found.session, found.max_calls) == (True, 5)


def test_a_file_has_the_default_rules_and_the_settings_of_the_caller(tmp_path):
    text_only = episode("p", StopReason.ANSWERED, "<answer>42</answer>", interpreter=False)
    write_transcripts(tmp_path / "t.jsonl", [text_only])
    found = first(tmp_path / "t.jsonl", session=True, limits={"memory_mb": 64})
    assert (found.known, found.reward, found.rules.interpreter) == (False, None, False)
    assert (found.rules.session, found.rules.limits.wall_seconds) == (True, 5)
    assert found.rules.limits.memory_mb == 64
    with pytest.raises(SettingsError, match=r"unknown settings \['sesion'\]"):
        first(tmp_path / "t.jsonl", sesion=True)


@pytest.mark.parametrize("env", [{"id": "Nothing-v0"}, {"max_calls": "x"}, {"limits": 3}])
def test_rules_that_can_not_be_used_are_refused_with_the_run(tmp_path, env):
    with pytest.raises(DataError, match="run: the recorded rules can't be used"):
        first(write_training(tmp_path / "run", [ENDED], **env))
