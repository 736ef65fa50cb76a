"""Differing settings are listed, or a reason for a refusal."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.compared_runs import a_record, ended, problem_of, write_verdicts

from retool_env.errors import SettingsError
from retool_env.evaluation.compare.outcomes import read_outcomes
from retool_env.evaluation.compare.settings import (
    check_settings,
    setting_differences,
    unknown_settings,
)
from retool_env.transcript import write_transcripts


def an_eval(folder, **changes):
    record = a_record(changes.pop("model", "m"), **changes)
    return read_outcomes(write_verdicts(folder, {"p": [True]}, record), folder.name.upper())


def found(first, second, *allowed):
    """The names of the listed differences, and of the refused differences."""
    some = setting_differences(first, second, allowed)
    return [one.name for one in some if not one.refused], [one.name for one in some if one.refused]


def test_the_model_the_seed_and_the_samples_are_listed_only(tmp_path):
    first = an_eval(tmp_path / "a")
    more = {"env": "ReTool-AIME24-v0", "fingerprint": "123456789"}
    second = an_eval(tmp_path / "b", model="other", seed=1, k=4, **more)
    assert found(first, second) == (["model", "env", "seed", "k", "problems"], [])
    assert found(first, first) == ([], [])


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"rules": {"max_calls": 3}}, "rules.max_calls"),
        ({"rules": {"limits": {"wall_seconds": 1}}}, "rules.limits"),
        ({"prompt": "{query}!"}, "prompt"),
        ({"sampling": {"temperature": 0.0}}, "sampling.temperature"),
    ],
)
def test_a_change_of_the_task_is_refused_unless_it_is_allowed(tmp_path, changes, name):
    first, second = an_eval(tmp_path / "a"), an_eval(tmp_path / "b", **changes)
    assert found(first, second) == ([], [name])
    assert found(first, second, name) == found(first, second, name.split(".")[-1]) == ([name], [])


def test_the_revision_is_read_from_the_episodes(tmp_path):
    first = an_eval(tmp_path / "a")
    made = dataclasses.replace(ended(problem_of("p"), True), revision=1)
    write_transcripts(tmp_path / "b.jsonl", [made])
    assert found(first, read_outcomes(tmp_path / "b.jsonl", "B")) == ([], ["revision"])


def test_text_only_needs_one_word_for_interpreter_and_prompt(tmp_path):
    first = an_eval(tmp_path / "a", rules={"interpreter": True})
    made = dataclasses.replace(ended(problem_of("p"), True), interpreter=False)
    path = write_verdicts(
        tmp_path / "b", {}, a_record("m", rules={"interpreter": False}, prompt="text: {query}")
    )
    write_transcripts(path / "episodes.jsonl", [made])
    second = read_outcomes(path, "B")
    some = setting_differences(first, second)
    with pytest.raises(SettingsError, match=r"interpreter \(True in A, False in B\)") as error:
        check_settings([(first, second, some)])
    assert str(error.value).endswith("if this is intended, add --allow interpreter, or --force")
    assert found(first, second, "interpreter") == (["prompt", "rules.interpreter"], [])
    check_settings([(first, second, setting_differences(first, second, ["interpreter"]))])


def a_training(folder, **settings):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"settings": settings}))
    write_transcripts(folder / "eval-1.jsonl", [ended(problem_of("p"), True)])
    return read_outcomes(f"{folder}@1", folder.name.upper())


def test_training_runs_are_compared_by_the_rules_of_their_evaluations(tmp_path):
    env = {"id": "ReTool-Arithmetic-v0", "max_calls": 3}
    first = a_training(tmp_path / "a", env=env, learning_rate=1, eval_env=None)
    faulty = {**env, "faults": {"rate": 0.5}}  # which the evaluation leaves out
    assert found(first, a_training(tmp_path / "b", env=faulty, learning_rate=2)) == ([], [])
    held_out = a_training(tmp_path / "c", env=env, eval_env={"max_calls": 2})
    assert found(first, held_out) == ([], ["rules.max_calls"])
    default = a_training(tmp_path / "d", env={**env, "limits": {"wall_seconds": 5.0}})
    assert found(first, default) == ([], [])
    mixed = a_training(
        tmp_path / "e",
        env={**env, "limits": {"wall_seconds": 9}},
        eval_env={"limits": {"memory_mb": 512}},
    )
    less = a_training(tmp_path / "f", env=env, eval_env={"limits": {"memory_mb": 512}})
    assert found(mixed, less) == ([], ["rules.limits"])
    assert unknown_settings(first, held_out) == ""


def test_runs_of_different_kinds_say_that_not_all_settings_were_compared(tmp_path):
    first, second = an_eval(tmp_path / "a"), a_training(tmp_path / "b", env={"max_calls": 3})
    assert found(first, second) == ([], [])
    assert "only interpreter, protocol and revision were compared" in unknown_settings(
        first, second
    )
    assert unknown_settings(first, first) == ""


def test_a_folder_of_an_earlier_version_has_no_rules_to_compare(tmp_path):
    first = an_eval(tmp_path / "a")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text(json.dumps({"command": {"model": "m"}}))
    write_transcripts(tmp_path / "old" / "transcripts.jsonl", [ended(problem_of("p"), True)])
    old = read_outcomes(tmp_path / "old", "B")
    assert found(first, old) == ([], []) and unknown_settings(first, old)
