"""A run is resumed at its last complete checkpoint, with its records up to there."""

from __future__ import annotations

import json

import pytest

from agents.base.records import seal
from agents.base.resuming import kept_records, last_point, loading
from agents.base.settings import SettingsError


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
    assert kept_records(path, 1) is None
    path.write_bytes(b'{"step":1,   "new": "x"}\n{"step": 2}\n{"step": 3')
    part, file = kept_records(path, 1)
    assert file == path and part.read_bytes() == b'{"step":1,   "new": "x"}\n'
    part.unlink()
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n')
    assert kept_records(path, 2) is None and list(tmp_path.iterdir()) == [path]
    path.write_bytes(b"")
    with pytest.raises(SettingsError, match="it is empty, but the run has reached step 2"):
        kept_records(path, 2)


def test_episodes_are_kept_by_the_step_that_trained_on_them(tmp_path):
    path = tmp_path / "transcripts-1.jsonl"
    lines = [
        b'{"trained_version": 0}\n',
        b'{"trained_version": null}\n',
        b'{"trained_version": 1}\n',
    ]
    path.write_bytes(b"".join(lines))
    part, _ = kept_records(path, 1)  # the step of version 0 is the first one
    assert part.read_bytes() == b"".join(lines[:2])
    path.write_bytes(b'{"trained_version": "x"}\n')
    with pytest.raises(SettingsError, match="line 1: not a transcript of a training run"):
        kept_records(path, 1)
    assert not part.exists()


def test_an_error_of_a_library_names_the_checkpoint(tmp_path):
    message = r"checkpoint-2: it can't be loaded \(KeyError: 'x'\)"
    with pytest.raises(SettingsError, match=message), loading(tmp_path / "checkpoint-2"):
        raise KeyError("x")
    with pytest.raises(MemoryError), loading(tmp_path):
        raise MemoryError
