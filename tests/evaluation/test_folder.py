"""The folder of an evaluation: one process at a time, resumed only by the same evaluation."""

import dataclasses
import errno
import io
import json
import os

import pytest
from evaluation.test_records import episode, record, transcript

from retool_env.errors import DataError, SettingsError
from retool_env.evaluation import folder as folder_module
from retool_env.evaluation import read_episodes, read_record
from retool_env.evaluation.folder import Records
from retool_env.evaluation.identity import fingerprint
from retool_env.problem import Problem
from retool_env.rollout.policy import Usage

PROBLEMS = [Problem(f"own/{i}", f"{i} + {i}?", str(2 * i)) for i in range(1, 5)]


def of(count, **more):
    return record(problems=count, fingerprint=fingerprint(PROBLEMS[:count]), **more)


def begun(folder, count=2, **more):
    return Records(folder, of(count), PROBLEMS[:count], **more)


def test_a_folder_goes_on_where_it_was_stopped(tmp_path):
    first = begun(tmp_path)
    first.append(episode())
    first.charge(Usage(1, 10, 5))
    first.close("stopped", seconds=2.0, cost=0.5)
    stopped = read_record(tmp_path)
    assert (stopped.status, stopped.seconds, stopped.cost) == ("stopped", 2.0, 0.5)
    second = begun(tmp_path, resume=True)
    assert second.ended == {("own/1", 0): False} and second.usage == Usage(1, 10, 5)
    assert read_record(tmp_path).status == "running"
    second.charge(Usage(1, 1, 1))
    second.close("finished", seconds=1.5)
    ended = read_record(tmp_path)
    assert (ended.status, ended.seconds) == ("finished", 3.5)
    assert ended.started == stopped.started and ended.usage["prompt_tokens"] == 11


def test_a_folder_is_not_begun_twice(tmp_path):
    begun(tmp_path).close("finished", 1.0)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SettingsError, match="continue it with --resume"):
        begun(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_processes_do_not_share_a_folder(tmp_path):
    first = begun(tmp_path)
    with pytest.raises(SettingsError, match="another process works in"):
        begun(tmp_path, resume=True)
    first.close("stopped", 1.0)
    begun(tmp_path, resume=True).close("finished", 1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed: 1, not 0"),
        ({"prompt": "Q {query}"}, "prompt: 'Q {query}', not '{query}'"),
        ({"sampling": {"temperature": 0.5}}, "sampling.temperature: 0.5, not 1.0"),
        ({"revision": 1}, "revision: 1, not"),
    ],
)
def test_another_evaluation_is_not_resumed(change, words, tmp_path):
    begun(tmp_path).close("stopped", 1.0)
    with pytest.raises(SettingsError, match=words):
        Records(tmp_path, of(2, **change), PROBLEMS[:2], resume=True)
    begun(tmp_path, resume=True).close("stopped", 1.0)  # the lock was freed


def test_another_revision_is_resumed_by_force_and_nothing_else_is(tmp_path):
    begun(tmp_path).close("stopped", 1.0)
    Records(tmp_path, of(2, revision=1), PROBLEMS[:2], resume=True, force=True).close("stopped", 1)
    with pytest.raises(SettingsError, match="seed"):
        Records(tmp_path, of(2, seed=1), PROBLEMS[:2], resume=True, force=True)


def test_problems_may_be_added_and_not_exchanged(tmp_path):
    begun(tmp_path).close("stopped", 1.0)
    begun(tmp_path, count=4, resume=True).close("stopped", 1.0)
    others = [PROBLEMS[1], PROBLEMS[0], *PROBLEMS[2:]]
    changed = dataclasses.replace(of(4), fingerprint=fingerprint(others))
    with pytest.raises(SettingsError, match="the first 4 are other problems"):
        Records(tmp_path, changed, others, resume=True)


@pytest.mark.parametrize("name", ["episodes.jsonl", "usage.jsonl"])
@pytest.mark.parametrize("size", [1, 70_000])
def test_half_a_line_of_a_killed_process_is_removed(name, size, tmp_path):
    first = begun(tmp_path)
    first.append(episode())
    first.charge(Usage(1, 10, 5))
    first.close("stopped", 1.0)
    with open(tmp_path / name, "ab") as file:
        file.write(b"{" * size)
    second = begun(tmp_path, resume=True)
    assert second.ended == {("own/1", 0): False} and second.usage.requests == 1
    second.append(episode(sample=1))
    second.close("finished", 1.0)
    assert [each.sample for each in read_episodes(tmp_path)] == [0, 1]


def test_a_damaged_folder_is_refused_and_named(tmp_path):
    begun(tmp_path).close("stopped", 1.0)
    (tmp_path / "eval.json").write_text("{")
    with pytest.raises(DataError, match=r"eval.json is damaged"):
        begun(tmp_path, resume=True)
    (tmp_path / "eval.json").unlink()
    (tmp_path / "episodes.jsonl").write_text("")
    with pytest.raises(SettingsError, match=r"has episodes but no eval.json"):
        begun(tmp_path)


@pytest.mark.parametrize("name", ["results.json", "transcripts.jsonl"])
def test_a_folder_of_an_earlier_version_is_not_overwritten(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(SettingsError, match="an evaluation of an earlier version"):
        begun(tmp_path, resume=True)


def test_a_folder_of_another_record_or_with_a_users_file_is_left_alone(tmp_path):
    others = {"recover.json": "a record of `retool recover`", "figures.json": "would be overwrit"}
    for name, words in others.items():
        (tmp_path / name).write_text("mine")
        for resume in (False, True):
            with pytest.raises(SettingsError, match=words):
                begun(tmp_path, resume=resume)
            with pytest.raises(SettingsError, match=words):
                Records.check(tmp_path, resume)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "notes.txt").write_text("mine")
    assert not Records.check(tmp_path, True)
    begun(tmp_path).close("stopped", 1.0)
    assert Records.check(tmp_path, True)


def test_what_is_no_folder_and_what_is_no_lock_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="must be a folder"):
        begun(tmp_path / "file")
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(SettingsError, match="lock is not a file"):
        begun(tmp_path)


def test_the_folder_of_no_episode_is_removed_and_others_files_stay(tmp_path):
    begun(tmp_path / "a" / "b").remove()
    assert not (tmp_path / "a").exists()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("x")
    begun(tmp_path / "c").remove()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["mine.txt"]


def test_an_episode_is_on_disk_as_soon_as_it_is_appended(tmp_path):
    records = begun(tmp_path)
    records.append(episode())
    [line] = (tmp_path / "episodes.jsonl").read_text().splitlines()
    assert json.loads(line)["transcript"] == json.loads(json.dumps(transcript().to_json()))
    records.close("finished", 1.0)


def test_problems_with_another_text_are_not_resumed_even_if_they_are_fewer(tmp_path):
    records = begun(tmp_path, count=3)
    records.append(episode())
    records.close("stopped", 1.0)
    other = [Problem("own/1", "2 + 2?", "4")]
    new = record(problems=1, fingerprint=fingerprint(other))
    with pytest.raises(SettingsError, match="1 problems on record have another"):
        Records(tmp_path, new, other, resume=True)


def test_a_line_that_does_not_fit_is_removed_whole(tmp_path, monkeypatch):
    path = tmp_path / "episodes.jsonl"
    folder_module.append_line(path, {"a": 1})

    class Full(io.FileIO):
        def write(self, data):
            if len(data) < 30:
                raise OSError(errno.ENOSPC, "full")
            return super().write(data[:-20])

    monkeypatch.setattr(
        folder_module, "open", lambda path, *_, **__: Full(path, "a"), raising=False
    )
    with pytest.raises(OSError, match="full"):
        folder_module.append_line(path, {"b": "x" * 99})
    monkeypatch.undo()
    folder_module.append_line(path, {"c": 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"c": 3}]


def test_a_file_that_cannot_be_replaced_stays_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    records = begun(tmp_path)
    before = (tmp_path / "eval.json").read_bytes()

    def full(number):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        records.close("finished", 1.0)
    assert (tmp_path / "eval.json").read_bytes() == before
    assert not list(tmp_path.glob("*.new"))


def test_a_file_of_the_user_named_like_the_lock_is_not_removed(tmp_path):
    (tmp_path / "lock").write_text("mine")
    begun(tmp_path).remove()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_episodes_on_record_are_counted_without_touching_the_folder(tmp_path):
    assert Records.ended_before(tmp_path / "new", of(2), PROBLEMS[:2]) == {}
    records = begun(tmp_path)
    records.append(episode())
    records.close("stopped", 1.0)
    with open(tmp_path / "episodes.jsonl", "a") as file:
        file.write('{"half')
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert Records.ended_before(tmp_path, of(2), PROBLEMS[:2]) == {("own/1", 0): False}
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(SettingsError, match="seed"):
        Records.ended_before(tmp_path, of(2, seed=3), PROBLEMS[:2])
