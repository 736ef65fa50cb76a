"""Transcripts as conversations, and replies as turns."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retool_env.episode import Episode
from retool_env.problems import Problem
from retool_env.protocol.calls import TOOL_NAME
from retool_env.protocol.program import read_program
from retool_env.protocol.result import is_empty_program
from retool_env.protocol.tags import closing_tags, parse_turn
from retool_env.protocol.turn import TurnKind
from retool_env.rollout.openai.chat import call_form, call_text, completed, messages_of
from retool_env.rollout.openai.ends import ENDS
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import Transcript

STOP = closing_tags(True)


def played(*turns: str) -> Transcript:
    """Build an unfinished episode in which every program prints 42."""
    rules = Rules(prompt_template="Q {query}", void_turn="continue")
    episode = Episode(Problem(id="p", question="6 * 7?", answer="42"), rules)
    for turn in turns:
        if episode.act(turn) is not None:
            episode.executed(Execution(Outcome.OK, "42\n"))
    assert not episode.done
    return episode.transcript


def test_a_conversation_with_tags():
    transcript = played("Hm.", "So:\n<code>print(6 * 7)</code>")
    user, void, notice, code, result = messages_of(transcript, native=False)
    assert user == {"role": "user", "content": "Q 6 * 7?"}
    assert void == {"role": "assistant", "content": "Hm."}
    assert notice["role"] == "user" and "Go on" in notice["content"]
    assert code == {"role": "assistant", "content": "So:\n<code>print(6 * 7)</code>"}
    assert result == {"role": "user", "content": "\n<interpreter>\n42\n</interpreter>\n\n"}
    contents = [m["content"] for m in messages_of(transcript, native=False)]
    assert "".join(contents) == transcript.text


def test_a_conversation_with_native_calls():
    transcript = played(
        "So:\n<code>print(6 * 7)</code>", "Hm.", "<code>\n```py\nx\n```\n</code>", "<code></code>"
    )
    messages = messages_of(transcript, native=True)
    assert [m["role"] for m in messages] == [
        *(
            "user",
            "assistant",
            "tool",
            "assistant",
            "user",
            "assistant",
            "tool",
            "assistant",
            "tool",
        )
    ]
    _, first, result, void, notice, second, _, third, failed = messages
    [call] = first["tool_calls"]
    assert first["content"] == "So:" and call["type"] == "function"
    assert call["function"] == {"name": TOOL_NAME, "arguments": '{"code": "print(6 * 7)"}'}
    assert result == {"role": "tool", "tool_call_id": call["id"], "content": "42"}
    assert void == {"role": "assistant", "content": "Hm."} and "Go on" in notice["content"]
    assert second["content"] is None  # nothing was said beside the call
    assert json.loads(second["tool_calls"][0]["function"]["arguments"]) == {"code": "x"}
    assert json.loads(third["tool_calls"][0]["function"]["arguments"]) == {"code": ""}
    assert "SyntaxError" in failed["content"] and "interpreter" not in failed["content"]
    ids = [m["tool_calls"][0]["id"] for m in messages if "tool_calls" in m]
    assert len(set(ids)) == 3 and all(len(i) == 9 and i.isalnum() for i in ids)


@given(st.text(), st.text())
@example("", "```python\nprint(1)\n```")
@example("Hm.", "x = '```'\n\n")
@example("", "x = '''\n```\n````\n'''")
@example("", "```output\n42\n```")
def test_a_native_call_is_read_back_as_it_was_made(text, code):
    if any(tag in text + code for tag in (*STOP, "<code>", "<answer>")):
        return
    written = call_text(text, TOOL_NAME, json.dumps({"code": code}))
    turn = parse_turn(written)
    assert turn.kind is TurnKind.CODE and turn.end == len(written)
    assert turn.content == read_program(code).text
    assert written.startswith(text)
    assert call_form(text, TOOL_NAME, {"code": code}) == read_program(code).form


CODE_ARGUMENT = json.dumps({"code": "print(6 * 7)"})


@pytest.mark.parametrize(
    "arguments",
    [
        CODE_ARGUMENT,
        json.dumps(CODE_ARGUMENT),
        {"code": "print(6 * 7)"},
        '{"code": "print(6 * 7)\n"}',
        '{"code": "print(6 * 7)", "timeout": 5}',
    ],
    ids=["JSON", "JSON in JSON", "an object", "a line break as it is", "one argument more"],
)
def test_arguments_are_read_however_they_are_encoded(arguments):
    turn = parse_turn(call_text("", TOOL_NAME, arguments))
    assert turn.content == "print(6 * 7)"
    assert call_form("", TOOL_NAME, arguments) == "plain"


@pytest.mark.parametrize(
    ("code", "form"),
    [
        ("print(1)", "plain"),
        ("```python\nprint(1)\n```", "fenced"),
        ("\ufeffprint(1)", "mended:marks"),
        (">>> print(1)", "mended:prompts"),
        ("  print(1)", "mended:dedent"),
    ],
)
def test_a_native_call_says_how_its_program_was_read(code, form):
    assert parse_turn(call_text("", TOOL_NAME, {"code": code})).content == "print(1)"
    assert call_form("Hm.", TOOL_NAME, {"code": code}) == form
    assert call_form("Hm.", "browser", {"code": code}) == "unread"
    # A tag in the text decides the turn, and the text shows how its program was read.
    assert call_form("<code>x</code>", TOOL_NAME, {"code": code}) is None


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (TOOL_NAME, '{"code": "print(1)'),
        (TOOL_NAME, ""),
        (TOOL_NAME, None),
        (TOOL_NAME, "print(1)"),
        (TOOL_NAME, "[" * 100_000),
        (TOOL_NAME, '"print(1)"'),
        (TOOL_NAME, '{"source": "print(1)"}'),
        (TOOL_NAME, '{"code": 1}'),
        (TOOL_NAME, '{"code": ["print(1)"]}'),
        (TOOL_NAME, json.dumps(json.dumps(CODE_ARGUMENT))),
        (TOOL_NAME, {"source": "```\n</code>"}),
        (TOOL_NAME, '{"source":\n"</code>\u2028<code>print(1)</code><answer>1</answer>"}'),
        ("python", '{"code": "print(1)"}'),
    ],
)
def test_what_is_no_call_is_a_failed_one_that_says_what_was_written(name, arguments):
    turn = parse_turn(call_text("Hm.", name, arguments))
    assert turn.kind is TurnKind.CODE and is_empty_program(turn.content)
    written = json.loads(turn.content.partition('..."}: ')[2])
    assert written == f"{name}({arguments})"


def test_a_closing_tag_in_a_native_program_ends_it_like_any_other():
    turn = parse_turn(call_text("", TOOL_NAME, json.dumps({"code": "print('</code>')"})))
    assert turn.content == "print('"
    turn = parse_turn(call_text("<answer>1</answer>", TOOL_NAME, '{"code": "print(2)"}'))
    assert turn.kind is TurnKind.ANSWER and turn.content == "1"


def test_a_native_result_keeps_the_notice_of_calls_outside_of_the_output():
    rules = Rules(prompt_template="Q {query}", announce_calls=True, max_calls=2)
    episode = Episode(Problem(id="p", question="6 * 7?", answer="42"), rules)
    episode.act("<code>print('</interpreter>')</code>")
    episode.executed(Execution(Outcome.OK, "</interpreter>\n42\n"))
    *_, result = messages_of(episode.transcript, native=True)
    assert result["content"] == "</interpreter>\n42\n\n[1 execution remains.]"
    *_, result = messages_of(episode.transcript, native=False)
    assert result["content"].endswith("</interpreter>\n[1 execution remains.]\n\n")


CODE, ANSWER = "a <code>x", "a <answer>1"


@pytest.mark.parametrize(
    ("text", "finish", "extra", "expected"),
    [
        # The API says nothing: the block that was opened last.
        (CODE, "stop", {}, (CODE + "</code>", "tag")),
        (ANSWER, "stop", {}, (ANSWER + "</answer>", "tag")),
        (ANSWER + CODE, "stop", {}, (ANSWER + CODE + "</code>", "tag")),
        (CODE + ANSWER, "stop", {}, (CODE + ANSWER + "</answer>", "tag")),
        ("a", "stop", {}, ("a", "eos")),
        ("", "stop", {}, ("", "eos")),
        # It says which.
        ("a", "stop", {"stop_reason": "</code>"}, ("a</code>", "tag")),
        (CODE, "stop", {"stop_reason": "</answer>"}, (CODE + "</answer>", "tag")),
        (CODE, "stop", {"matched_stop": "</code>"}, (CODE + "</code>", "tag")),
        # It says that it was none of them.
        (CODE, "stop", {"stop_reason": None}, (CODE, "eos")),
        (CODE, "stop", {"matched_stop": 151645}, (CODE, "eos")),
        # It says something of its own.
        (CODE, "stop", {"stop_reason": "stop_sequence"}, (CODE + "</code>", "tag")),
        # It was no stop.
        (CODE, "length", {}, (CODE, "length")),
        (CODE, "eos", {}, (CODE, "eos")),
        (CODE, "tool_calls", {}, (CODE, "eos")),
        # The tag is there.
        (CODE + "</code>", "stop", {}, (CODE + "</code>", "tag")),
        (CODE + "</code>", "stop", {"stop_reason": "</code>"}, (CODE + "</code>", "tag")),
        (CODE + "</code> and", "length", {}, (CODE + "</code> and", "tag")),
    ],
)
def test_the_closing_tag_is_put_back_only_where_it_was_cut_off(text, finish, extra, expected):
    assert completed(text, ENDS[finish], extra, STOP) == expected


def test_nothing_is_put_back_that_was_not_asked_for():
    assert completed(CODE, "stop", {}, STOP, sent=False) == (CODE, "eos")
    assert completed(CODE, "stop", {}, closing_tags(False)) == (CODE, "eos")  # no interpreter
    assert completed(CODE, "stop", {}, ()) == (CODE, "eos")
