"""Runs of every kind are reduced to the facts that a comparison needs."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.compared_runs import a_record, ended, problem_of, write_run, write_verdicts

from retool_env.errors import DataError, MissingFile, SettingsError
from retool_env.evaluation.compare.outcomes import read_outcomes
from retool_env.evaluation.recover.records import ArmRecord, RecoverRecord
from retool_env.transcript import write_transcripts


def test_an_episode_has_its_verdict_and_its_calls(tmp_path):
    problem = problem_of("p")
    calls = ["", "oo", "xo", "ox"]
    write_run(tmp_path / "a", [(n, ended(problem, n == 1, c)) for n, c in enumerate(calls)])
    [some] = read_outcomes(tmp_path / "a", "A").episodes.values()
    assert [(one.address, one.sample, one.right) for one in some] == [
        *(("p/0", 0, False), ("p/1", 1, True), ("p/2", 2, False), ("p/3", 3, False)),
    ]
    assert [(one.group, one.calls, one.failed) for one in some] == [
        *(("none", 0, 0), ("without_error", 2, 0), ("error_mended", 2, 1)),
        ("error_not_mended", 2, 1),
    ]


def test_an_episode_that_failed_or_goes_on_does_not_count(tmp_path):
    running = dataclasses.replace(ended(problem_of("p"), False), stop_reason=None, correct=None)
    failed = ended(problem_of("p"), None)
    write_transcripts(tmp_path / "t.jsonl", [failed, running])
    assert [one.right for one in read_outcomes(tmp_path / "t.jsonl", "A").all] == [None, None]


def test_the_order_of_the_lines_does_not_matter(tmp_path):
    path = write_verdicts(tmp_path / "a", {"p": [True, False], "q": [False, None]})
    before = read_outcomes(path, "A")
    lines = (path / "episodes.jsonl").read_text().splitlines(keepends=True)
    (path / "episodes.jsonl").write_text("".join(reversed(lines)))
    after = read_outcomes(path, "A")
    assert (after.episodes, list(after.problems)) == (before.episodes, list(before.problems))


def test_a_training_run_needs_a_step(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"settings": {}}))
    write_transcripts(tmp_path / "transcripts.jsonl", [ended(problem_of("p"), True)])
    with pytest.raises(SettingsError, match="has no evaluation on held-out problems"):
        read_outcomes(tmp_path, "A")
    for step in (5, 10):
        write_transcripts(tmp_path / f"eval-{step}.jsonl", [ended(problem_of("p"), step == 10)])
    with pytest.raises(SettingsError, match=f"as {tmp_path}@10; its steps: 5, 10"):
        read_outcomes(tmp_path, "A")
    assert [one.right for one in read_outcomes(f"{tmp_path}@10", "A").all] == [True]


def test_of_a_benchmark_of_recovery_only_episodes_without_faults_count(tmp_path):
    base = a_record()
    values = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    record = RecoverRecord(**values, suite="v0")
    (tmp_path / "recover.json").write_text(json.dumps(record.to_json()))
    made = ended(problem_of("p"), True)
    parent = ArmRecord("m", "p", 0, 0, made, protocol="dose", arm="0")
    dosed = dataclasses.replace(parent, arm="0.5")
    fork = dataclasses.replace(parent, protocol="fork", arm="control", parent=0, call=1)
    lines = [json.dumps(one.to_json()) + "\n" for one in (dosed, fork, parent)]
    (tmp_path / "episodes.jsonl").write_text("".join(lines))
    assert [one.address for one in read_outcomes(tmp_path, "A").all] == ["dose/0/p/0"]
    (tmp_path / "episodes.jsonl").write_text("".join(lines[:2]))
    with pytest.raises(DataError, match="has no episode without faults"):
        read_outcomes(tmp_path, "A")


def test_an_empty_or_missing_run_is_named(tmp_path):
    with pytest.raises(MissingFile, match="was not found"):
        read_outcomes(tmp_path / "nowhere", "A")
    with pytest.raises(DataError, match="has no episode: nothing can be compared"):
        read_outcomes(write_verdicts(tmp_path / "a", {}), "A")
