"""A run is resumed at its last complete checkpoint, with its records up to there."""

from __future__ import annotations

import gzip
import json

import pytest
from helpers.kills import killed_before

from agents.base import resuming
from agents.base.records import seal
from agents.base.resuming import (
    check_form,
    close_large,
    cut_metrics,
    cut_transcripts,
    last_point,
    last_version,
    loading,
    needed_step,
)
from agents.base.settings import SettingsError
from retool_env.files import read_lines
from retool_env.rotation import close_part, closed_parts, complete, parts


def checkpoint(trainer, step, text=None, sealed=False):
    folder = trainer / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"123")
    (folder / "trainer_state.json").write_text(text or json.dumps({"global_step": step}))
    if sealed:
        seal(folder)
    return folder


def test_an_incomplete_checkpoint_is_passed_over(tmp_path):
    assert last_point(tmp_path) is None
    folder = checkpoint(tmp_path, 2, sealed=True)
    checkpoint(tmp_path, 4, text='{"global_st')
    (tmp_path / "checkpoint-10").mkdir()
    point = last_point(tmp_path)
    assert (point.step, point.folder, point.state) == (2, folder, {"global_step": 2})


def test_a_checkpoint_that_was_complete_is_not_passed_over(tmp_path):
    checkpoint(tmp_path, 2, sealed=True)
    folder = checkpoint(tmp_path, 10, sealed=True)
    (folder / "weights").write_bytes(b"12")
    with pytest.raises(
        SettingsError, match=r"delete .*checkpoint-10: the run then goes on from step 2"
    ):
        last_point(tmp_path)
    checkpoint(tmp_path, 11, text=json.dumps({"global_step": 12}))
    with pytest.raises(SettingsError, match='"global_step" is 12, not 11'):
        last_point(tmp_path)


@pytest.mark.parametrize("name", ["checkpoint-old", "checkpoint-", "checkpoint-²"])
def test_a_folder_with_a_name_like_a_checkpoints_is_an_error(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(SettingsError, match=r"it is not a checkpoint of the run.*Move it out"):
        last_point(tmp_path)


def test_records_after_the_step_are_left_out_and_kept_lines_stay_as_they_are(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert cut_metrics(path, 1).part is None
    path.write_bytes(b'{"step":1,   "new": "x"}\n{"step": 2}\n{"step": 3')
    cut = cut_metrics(path, 1)
    assert cut.path == path and cut.part.read_bytes() == b'{"step":1,   "new": "x"}\n'
    cut.part.unlink()
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n')
    assert cut_metrics(path, 2).part is None and list(tmp_path.iterdir()) == [path]
    path.write_bytes(b"")
    with pytest.raises(SettingsError, match="it is empty, but the run has reached step 2"):
        cut_metrics(path, 2)


def test_episodes_are_kept_by_the_step_that_trained_on_them(tmp_path):
    path = tmp_path / "transcripts-1.jsonl"
    lines = [
        b'{"trained_version": 0}\n',
        b'{"trained_version": null}\n',
        b'{"trained_version": 1}\n',
    ]
    path.write_bytes(b"".join(lines))
    part = cut_transcripts(path, 1).part  # the step of version 0 is the first one
    assert part.read_bytes() == b"".join(lines[:2])
    path.write_bytes(b'{"trained_version": "x"}\n')
    with pytest.raises(SettingsError, match="line 1: not a transcript of a training run"):
        cut_transcripts(path, 1)
    assert not part.exists()


def episodes(*versions):
    return b"".join(b'{"trained_version": %d}\n' % version for version in versions)


def versions(path):
    lines = read_lines(path) if parts(path) else []
    return [json.loads(line)["trained_version"] for line in lines]


@pytest.fixture
def rotated(tmp_path):
    """Transcripts of the steps 0 to 7: two closed parts and an open file."""
    path = tmp_path / "transcripts.jsonl"
    for first, last in ((0, 2), (3, 5)):
        path.write_bytes(episodes(*range(first, last + 1), last))
        close_part(path, first, last)
    path.write_bytes(episodes(6, 7))
    return path


@pytest.mark.parametrize(
    ("step", "begun", "kept", "closed"),
    [
        (8, [], [0, 1, 2, 2, 3, 4, 5, 5, 6, 7], ["0-2", "3-5"]),
        (7, [], [0, 1, 2, 2, 3, 4, 5, 5, 6], ["0-2", "3-5"]),
        (7, [6], [0, 1, 2, 2, 3, 4, 5, 5], ["0-2", "3-5"]),
        (6, [], [0, 1, 2, 2, 3, 4, 5, 5], ["0-2", "3-5"]),
        (5, [], [0, 1, 2, 2, 3, 4], ["0-2"]),
        (6, [4], [0, 1, 2, 2, 3], ["0-2"]),
        (3, [], [0, 1, 2, 2], ["0-2"]),
        (1, [], [0], []),
        (2, [0], [], []),
        (0, [], [], []),
    ],
)
def test_closed_parts_before_the_step_are_not_touched(rotated, step, begun, kept, closed):
    before = {path.name: path.stat().st_ino for path in rotated.parent.glob("*.gz")}
    for _ in range(2):  # a stop in the middle lets it be done again
        cut_transcripts(rotated, step, begun).apply()
        assert versions(rotated) == kept
    names = {path.name: path.stat().st_ino for path in rotated.parent.glob("*.gz")}
    assert names == {
        f"transcripts.{name}.jsonl.gz": before[f"transcripts.{name}.jsonl.gz"] for name in closed
    }
    assert last_version(rotated) == (kept[-1] if kept else None)


@pytest.mark.parametrize("step", [7, 5, 3, 1, 0])
def test_a_kill_at_any_moment_of_a_cut_keeps_each_kept_line_once(rotated, step):
    whole = versions(rotated)
    kept = [version for version in whole if version < step]
    files = {path.name: path.read_bytes() for path in rotated.parent.iterdir()}
    for number in range(12):
        for path in rotated.parent.iterdir():
            path.unlink()
        for name, content in files.items():
            (rotated.parent / name).write_bytes(content)
        cut = cut_transcripts(rotated, step)
        with killed_before(number):
            cut.apply()
        found = versions(rotated)
        assert [version for version in found if version < step] == kept
        assert found == [version for version in whole if version in found]
        complete(rotated)
        cut_transcripts(rotated, step).apply()
        assert versions(rotated) == kept


def test_a_damaged_line_of_a_part_that_is_cut_is_named(rotated):
    [*_, part] = closed_parts(rotated)
    part.path.write_bytes(gzip.compress(episodes(3) + b"{}\n" + episodes(5)))
    with pytest.raises(
        SettingsError, match=r"transcripts\.3-5\.jsonl\.gz, line 2: not a transcript"
    ):
        cut_transcripts(rotated, 5)
    part.path.write_bytes(gzip.compress(episodes(3, 4, 5))[:-9])
    with pytest.raises(SettingsError, match=r"transcripts\.3-5\.jsonl\.gz: it can't be read"):
        cut_transcripts(rotated, 5)


def test_batches_after_the_last_two_complete_checkpoints_are_needed(tmp_path):
    assert needed_step(tmp_path) == 0
    for step, sealed, needed in ((2, True, 2), (4, True, 2), (10, True, 4), (12, False, 4)):
        checkpoint(tmp_path, step, sealed=sealed)
        assert needed_step(tmp_path) == needed


def test_an_error_of_a_library_names_the_checkpoint(tmp_path):
    message = r"checkpoint-2: it can't be loaded \(KeyError: 'x'\)"
    with pytest.raises(SettingsError, match=message), loading(tmp_path / "checkpoint-2"):
        raise KeyError("x")
    with pytest.raises(MemoryError), loading(tmp_path):
        raise MemoryError


def test_a_file_without_steps_is_never_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "PART_BYTES", 1)
    path = tmp_path / "transcripts.jsonl"
    close_large(path)
    path.write_bytes(b'{"trained_version": null}\n' * 2)
    close_large(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_part_is_never_replaced_by_another_of_the_same_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "PART_BYTES", 1)
    path = tmp_path / "transcripts.jsonl"
    for _ in range(3):
        close_large(path)
        with open(path, "ab") as file:
            file.write(episodes(3, 4))
    assert versions(path) == [3, 4] * 3
    assert [(part.first, part.last) for part in closed_parts(path)] == [(3, 4)]


def test_a_checkpoint_of_the_other_form_names_the_start_and_no_deletion(tmp_path):
    check_form(tmp_path, sharded=True)  # no checkpoint
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    checkpoint(whole, 2, sealed=True)
    inner = checkpoint(shards, 2) / "pytorch_model_fsdp_0"
    inner.mkdir()
    (inner / ".metadata").touch()
    seal(inner.parent)
    check_form(whole, sharded=False)
    check_form(shards, sharded=True)
    with pytest.raises(SettingsError, match=r"checkpoint-2 .*without FSDP, .*torchrun") as refused:
        check_form(whole, sharded=True)
    with pytest.raises(SettingsError, match=r"checkpoint-2 .*`accelerate launch`") as too:
        check_form(shards, sharded=False)
    assert "delete" not in f"{refused.value} {too.value}"
