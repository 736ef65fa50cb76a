"""Records are checked field by field; an incomplete last line is told from a damaged line."""

from __future__ import annotations

import json
import os

import pytest

from agents.base import records as reading
from agents.base.records import check_seal, is_cut, read_episodes, read_lines, seal
from agents.base.settings import SettingsError
from retool_env.problems import Problem
from retool_env.transcript import Span, StopReason, Transcript, write_transcripts


def a_transcript(name="1"):
    spans = (
        Span("prompt", "2 + 2?", (1, 2)),
        Span("model", "<answer>4</answer>", (3, 4), (-0.5, -0.25)),
    )
    reason = StopReason.ANSWERED
    problem = Problem(name, "2 + 2?", "4")
    return Transcript(problem, spans, stop_reason=reason, answer="4", correct=True, reward=1.0)


def of_object(change):
    """A damage to the values of a JSON object."""
    return lambda text: json.dumps(change(json.loads(text))).encode()


def damage_line(path, number, change):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = change(lines[number - 1].rstrip(b"\n")) + b"\n"
    path.write_bytes(b"".join(lines))


WRONG = {
    "no spans": lambda record: {**record, "spans": []},
    "a span that is a number": lambda record: {**record, "spans": [1]},
    "spans that are text": lambda record: {**record, "spans": "abc"},
    "no problem": lambda record: {k: v for k, v in record.items() if k != "problem"},
    "a problem that is a list": lambda record: {**record, "problem": []},
    "a question that is a number": lambda record: {
        **record,
        "problem": {**record["problem"], "question": 3},
    },
    "an unknown reason": lambda record: {**record, "stop_reason": "bored"},
    "an answer that is a number": lambda record: {**record, "answer": 3},
    "right in words": lambda record: {**record, "correct": "yes"},
    "a reward that is none": lambda record: {**record, "reward": float("nan")},
    "an unknown protocol": lambda record: {**record, "protocol": "telepathy"},
    "an unknown key": lambda record: {**record, "mood": "good"},
    "a newer format": lambda record: {**record, "format": 99},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_transcript_of_the_wrong_kind_is_named(wrong, tmp_path):
    path = tmp_path / "t.jsonl"
    write_transcripts(path, [a_transcript()] * 3)
    assert list(read_episodes(path, "x")) == [a_transcript()] * 3
    damage_line(path, 2, of_object(WRONG[wrong]))
    with pytest.raises(SettingsError, match=r"t\.jsonl, line 2: .*Restore it, or do so") as said:
        list(read_episodes(path, "do so"))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("key", ["author", "text", "token_ids", "logprobs", "surplus", "seconds"])
@pytest.mark.parametrize("value", [3.5, "x", [None], {"a": 1}, float("nan"), True])
def test_a_span_of_the_wrong_kind_is_named(key, value, tmp_path):
    if (key, value) in (("text", "x"), ("seconds", 3.5)):
        return
    path = tmp_path / "t.jsonl"
    write_transcripts(path, [a_transcript()])

    def change(record):
        record["spans"][1][key] = value
        return record

    damage_line(path, 1, of_object(change))
    with pytest.raises(SettingsError, match=r"t\.jsonl, line 1: "):
        list(read_episodes(path, "x"))


def test_a_cut_is_told_from_a_damage():
    whole = json.dumps({"a": 'x"}\\', "b": [1, {"c": None}], "d": "é{"}).encode()
    assert all(is_cut(whole[:end]) for end in range(1, len(whole)))
    assert not any(map(is_cut, (b"", whole, whole + b"{", b"x" + whole, b"[1, 2", b"nul")))


def test_blank_lines_are_no_damage_and_a_missing_file_has_none(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n\n  \n{"step": 2}')
    assert [line.record["step"] for line in reading.read_metrics(path)] == [1, 2]
    assert list(read_lines(tmp_path / "none.jsonl", "x")) == []


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda path: path.unlink(), "it is missing"),
        (lambda path: path.write_bytes(b"1234"), "it has 4 bytes instead of 3"),
        (lambda path: (path.unlink(), path.mkdir()), "it is a folder, not a file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "it is a named pipe, not a file"),
    ],
)
def test_a_seal_shows_that_a_file_of_a_checkpoint_was_lost_or_changed(damage, fault, tmp_path):
    path = tmp_path / "parts" / "weights"
    path.parent.mkdir()
    path.write_bytes(b"123")
    seal(tmp_path)
    check_seal(tmp_path, "x")
    damage(path)
    with pytest.raises(SettingsError, match=f"weights: {fault}"):
        check_seal(tmp_path, "x")
