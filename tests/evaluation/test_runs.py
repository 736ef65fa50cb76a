"""Runs of every kind are opened and read in one way."""

import json
import re

import pytest
from helpers.episodes import episode, with_ids
from helpers.recorded_runs import write_eval
from helpers.viewed_runs import a_recover, a_training, an_eval

from retool_env.errors import DataError, MissingFile, SettingsError
from retool_env.evaluation.records import EpisodeRecord
from retool_env.evaluation.runs import open_run
from retool_env.transcript import StopReason, write_transcripts


def ended(problem, correct=True):
    return episode(problem, StopReason.ANSWERED, "<answer>2</answer>", correct=correct)


def addresses(path):
    return [place.address for place, _ in open_run(path).episodes()]


def test_an_evaluation_has_addresses_of_problem_and_sample(tmp_path):
    run = open_run(an_eval(tmp_path / "run"))
    assert (run.kind, run.title) == ("eval", "a/checkpoint")
    assert [(p.address, t.correct) for p, t in run.episodes()] == [
        *(("p/1/0", False), ("p/1/1", True)),
    ]


def test_a_recovery_benchmark_has_addresses_of_its_arms(tmp_path):
    path = a_recover(tmp_path / "run")
    assert addresses(path)[:3] == ["dose/0/p/0", "fork/timeout/p/0.1/0", "fork/timeout/p/0.1/1"]
    place = list(open_run(path).episodes())[2][0]
    assert (place.protocol, place.arm, place.parent, place.call) == ("fork", "timeout", 0, 1)


def test_a_training_run_has_the_rollouts_of_all_processes_and_its_evaluations(tmp_path):
    path = a_training(tmp_path / "run")
    assert addresses(path) == [
        *("transcripts-1/1", "transcripts/1", "transcripts/2"),
        *("step-2/p/0", "step-10/p/0", "step-10/p/1", "step-10/q/0"),
    ]
    assert open_run(path).config["settings"] == {"lr": 1}


def test_the_evaluation_after_a_step_is_a_run_of_its_own(tmp_path):
    path = a_training(tmp_path / "run")
    assert addresses(f"{path}@10") == ["step-10/p/0", "step-10/p/1", "step-10/q/0"]
    assert open_run(f"{path}@10").title == "run@10"
    with pytest.raises(MissingFile, match="its steps: 2, 10"):
        open_run(f"{path}@7")


def test_a_file_has_the_addresses_of_its_lines(tmp_path):
    a_training(tmp_path / "run")
    an_eval(tmp_path / "eval")
    assert addresses(tmp_path / "run/eval-2.jsonl") == ["line/1"]
    assert addresses(tmp_path / "eval/episodes.jsonl") == ["line/1", "line/2"]


def test_the_last_line_of_an_episode_counts_and_half_a_line_does_not(tmp_path):
    path = an_eval(tmp_path / "run")
    again = EpisodeRecord("m", "p/1", 0, 0, ended("p/1"), error="too long")
    text = json.dumps(again.to_json())
    with open(path / "episodes.jsonl", "a") as file:
        file.write(f"{text}\n{text[:50]}")
    found = list(open_run(path).episodes())
    assert [(p.address, p.error, t.correct) for p, t in found] == [
        *(("p/1/1", None, True), ("p/1/0", "too long", True)),
    ]


def test_tokens_are_left_out_on_demand(tmp_path):
    write_transcripts(tmp_path / "t.jsonl", [with_ids(ended("p"))])
    [(_, whole)] = open_run(tmp_path / "t.jsonl").episodes()
    [(_, light)] = open_run(tmp_path / "t.jsonl").episodes(tokens=False)
    assert len(light.completion_ids) == len(whole.completion_ids) > 0
    assert light.spans[1].logprobs is None


@pytest.mark.parametrize("line", ["[]", "{", '{"a": 1}', '{"problem": 3}', '{"problem": {}}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "t.jsonl"
    write_transcripts(path, [ended("p")])
    with open(path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=re.escape(f"{path}, line 2 is not an episode")):
        list(open_run(path).episodes())


@pytest.mark.parametrize("number", ["Infinity", "NaN", "null", '"x"'])
def test_a_number_of_an_episode_that_is_none_is_named(tmp_path, number):
    path = write_eval(tmp_path / "run", [ended("p")]) / "episodes.jsonl"
    path.write_text(path.read_text().replace('"sample": 0', f'"sample": {number}'))
    with pytest.raises(DataError, match=re.escape(f"{path}, line 1 is not an episode")):
        list(open_run(path.parent).episodes())


def test_an_episode_is_found_by_its_address(tmp_path):
    run = open_run(a_training(tmp_path / "run"))
    place, transcript = run.episode("step-10/p/1")
    assert (place.sample, transcript.problem.id) == (1, "p")
    with pytest.raises(SettingsError, match=r"no episode 'x': its addresses are such as transcr"):
        run.episode("x")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(SettingsError, match="it has none at all"):
        open_run(tmp_path / "empty.jsonl").episode("line/1")


def test_a_folder_without_a_run_is_refused_with_the_runs_below_it(tmp_path):
    with pytest.raises(MissingFile, match="was not found"):
        open_run(tmp_path / "nothing")
    with pytest.raises(DataError, match="not the folder of a run"):
        open_run(tmp_path)
    an_eval(tmp_path / "one")
    a_recover(tmp_path / "two")
    with pytest.raises(DataError, match=r"holds 2 runs: name one of them, .*one, .*two"):
        open_run(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", '{"settings": 3}'])
def test_a_damaged_record_of_a_training_run_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=r"config\.json is damaged"):
        open_run(tmp_path)


def test_a_checkpoint_is_not_a_run_and_the_error_says_what_to_do_with_it(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(DataError, match=r"is a model's checkpoint, .* `retool eval --model"):
        open_run(tmp_path)


def test_a_run_that_has_just_begun_has_no_episodes(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"settings": {}}))
    assert list(open_run(tmp_path).episodes()) == []
