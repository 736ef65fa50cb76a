"""Rows of episodes and calls, conversations, and the records of older folders."""

import json

import pytest
from evaluation.test_records import PROBLEM, record, transcript, under_fault

from retool_env.errors import DataError
from retool_env.evaluation.records import EpisodeRecord
from retool_env.evaluation.rows import (
    CALL_COLUMNS,
    EPISODE_COLUMNS,
    call_rows,
    conversation,
    describe,
    episode_row,
)
from retool_env.execution import Execution, Outcome
from retool_env.transcript import Span, StopReason, Transcript, write_transcripts


def test_a_row_has_the_columns_and_a_call_has_its_columns():
    episode = EpisodeRecord("m", "own/1", 0, 0, transcript())
    assert list(episode_row(episode, record())) == list(EPISODE_COLUMNS)
    [row] = call_rows(episode, record())
    assert list(row) == list(CALL_COLUMNS) and row["fault"] is row["injected"] is None


@pytest.mark.parametrize("injected", [True, False])
def test_a_call_names_the_ordered_fault_and_whether_it_took_place(injected):
    episode = EpisodeRecord("m", "own/1", 0, 0, under_fault(injected))
    [row] = call_rows(episode, record())
    assert (row["fault"], row["injected"]) == ("wrong_value", injected)


@pytest.mark.parametrize(
    ("shown", "content"),
    [
        ("\n<interpreter>\n42\n</interpreter>\n", "42"),
        ("<|im_end|>\n<tool_response>\n42\n</tool_response><|im_end|>", "42"),
        ("some notice", "some notice"),
    ],
)
def test_a_conversation_shows_a_programs_output_without_tags(shown, content):
    spans = (
        Span("prompt", "q"),
        Span("model", "Let me see.\n<code>print(42)</code>"),
        Span("env", shown, execution=Execution(Outcome.OK, "42\n"), form="plain"),
        Span("model", "<code>cut"),
    )
    made = Transcript(PROBLEM, spans, stop_reason=StopReason.CHARACTER_BUDGET)
    assert conversation(made) == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Let me see.", "program": "print(42)"},
        {"role": "tool", "content": content},
        {"role": "assistant", "content": "<code>cut"},
    ]


def test_a_notice_is_a_users_message_and_a_call_that_was_not_run_is_text():
    spans = (
        Span("prompt", "q"),
        Span("model", "nothing"),
        Span("env", "[Go on.]"),
        Span("model", "<code>1</code>"),
    )
    made = Transcript(PROBLEM, spans, stop_reason=StopReason.CALL_LIMIT)
    assert [(m["role"], m["content"]) for m in conversation(made)][1:] == [
        ("assistant", "nothing"),
        ("user", "[Go on.]"),
        ("assistant", "<code>1</code>"),
    ]


def test_the_record_of_an_older_folder_has_what_was_written(tmp_path):
    write_transcripts(tmp_path / "transcripts.jsonl", [transcript()])
    command = {"model": "runs/x", "seed": "4", "env": "ReTool-GSM8K-v0", "k": "3", "api": "None"}
    command |= {"temperature": "0.5", "max_tokens": "None"}
    old = {"command": command, "problems": 1, "revision": 2, "seconds": 3.5, "settings": {}}
    (tmp_path / "results.json").write_text(json.dumps(old))
    found = describe(tmp_path)
    assert (found.k, found.revision, found.seconds, found.status) == (3, 2, 3.5, "finished")
    assert (found.model.kind, found.sampling) == ("hub", {"temperature": 0.5})
    other = {**old, "command": {**command, "api": "http://h/v1"}}
    (tmp_path / "results.json").write_text(json.dumps(other))
    assert (describe(tmp_path).model.kind, describe(tmp_path).model.url) == ("api", "http://h/v1")
    (tmp_path / "results.json").unlink()  # the evaluation was stopped before its end
    assert describe(tmp_path).status == "stopped"
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError, match=r"results.json is damaged"):
        describe(tmp_path)
