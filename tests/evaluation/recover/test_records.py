"""Lines of arms are read as they were written; the last line of a key counts."""

import dataclasses
import json

import pytest
from helpers.episodes import RAN, RIGHT, WRONG, episode
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.errors import DataError
from retool_env.evaluation.recover.records import (
    ArmRecord,
    LeftOut,
    _head_key,
    read_arms,
    read_left_out,
    read_recover,
)
from retool_env.transcript import StopReason


def record(answer=RIGHT, sample=0, **more):
    named = {"protocol": "fork", "arm": "timeout", "parent": 1, "call": 2, **more}
    transcript = episode("b", StopReason.ANSWERED, answer, correct=answer == RIGHT)
    return ArmRecord("m", "b", sample, 0, transcript, **named)


@settings(max_examples=30)
@given(st.text(), st.text(), st.none() | st.integers(0, 99), st.integers(0, 9), st.integers(0, 99))
def test_the_head_of_a_line_has_the_key_of_the_record(problem, arm, parent, call, sample):
    one = ArmRecord("m", problem, sample, 0, RAN, None, "natural", arm, parent, call)
    line = json.dumps(one.to_json()).encode() + b"\n"
    assert _head_key(line) == one.key
    assert ArmRecord.from_json(json.loads(line)) == one


def test_of_lines_with_one_key_the_last_counts_and_a_half_line_does_not(tmp_path):
    lines = [record(WRONG), record(sample=1), record(RIGHT), record(arm="gone")]
    text = "".join(json.dumps(one.to_json()) + "\n" for one in lines)
    half = json.dumps(record(sample=5).to_json())[:-9]
    (tmp_path / "episodes.jsonl").write_text(text + half)
    assert list(read_arms(tmp_path)) == lines[1:]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "episodes.jsonl").write_text('{"schema": 1}\n')
    with pytest.raises(DataError, match="line 1 is not an episode"):
        list(read_arms(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "the field schema is missing"),
        ("null", "it holds None, and not an object"),
        ('{"schema": 1}', "the fields name, .*suite, part, .* are missing"),
        ('{"schema": 7}', "schema 7 is unknown: a newer retool-env wrote it"),
    ],
)
def test_a_record_without_its_fields_says_which_are_missing(text, words, tmp_path):
    (tmp_path / "recover.json").write_text(text)
    with pytest.raises(DataError, match=rf"recover\.json is damaged: {words}"):
        read_recover(tmp_path)


def test_a_prefix_is_left_out_once(tmp_path):
    lines = [LeftOut("fork", "b", 0, 1, reason) for reason in ("x", "y")]
    text = "".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in lines)
    (tmp_path / "left_out.jsonl").write_text(text)
    assert read_left_out(tmp_path) == lines[1:]
    (tmp_path / "left_out.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="line 1 is damaged"):
        read_left_out(tmp_path)


def test_another_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="is not a folder of `retool recover`"):
        read_recover(tmp_path)
