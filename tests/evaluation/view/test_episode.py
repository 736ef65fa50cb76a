"""An episode is cut into parts that join to its text, with its forks and colours."""

import dataclasses
import json

import pytest
from helpers.episodes import ANSWERED, NAME, OK, RIGHT, episode
from helpers.viewed_runs import a_recover, hostile
from hypothesis import given
from hypothesis import strategies as st

from retool_env.errors import SettingsError
from retool_env.evaluation.runs import open_run
from retool_env.evaluation.view.episode import (
    MOST_CHARACTERS,
    MOST_COLOURED,
    episode_view,
    pieces,
    span_text,
)
from retool_env.evaluation.view.index import Index
from retool_env.evaluation.view.rows import to_json
from retool_env.problems import Problem
from retool_env.transcript import Span, StopReason, Transcript, write_transcripts


def opened(path):
    index = Index(open_run(path), cache=False)
    index.refresh()
    return index


def viewed(tmp_path, transcript):
    write_transcripts(tmp_path / "t.jsonl", [transcript])
    return episode_view(opened(tmp_path / "t.jsonl"), "line/1")


def parts(view, span):
    return [(part["kind"], part["text"]) for part in view["spans"][span]["parts"]]


def hermes(*turns):
    spans = [Span("prompt", "?")]
    for turn in turns:
        spans.append(Span("model", turn) if isinstance(turn, str) else Span("model", turn[0]))
        if not isinstance(turn, str):
            text = f"<|im_end|>\n<tool_response>\n{turn[1].stdout}\n</tool_response>\n"
            spans.append(Span("env", text, execution=turn[1]))
    return Transcript(
        Problem("p", "?", "42"), tuple(spans), stop_reason=ANSWERED, protocol="hermes"
    )


def test_a_turn_is_cut_into_text_program_and_answer(tmp_path):
    turn = "I see. <code>\n```python\nprint(1)\n```\n</code>"
    shown = dataclasses.replace(OK, stdout="\n<interpreter>\n42\n</interpreter>\n\n")
    view = viewed(tmp_path, episode("p", ANSWERED, (turn, shown), "So <answer> 42 </answer>"))
    assert parts(view, 1) == [
        *(("text", "I see. <code>\n```python\n"), ("program", "print(1)")),
        ("text", "\n```\n</code>"),
    ]
    assert parts(view, 2)[1] == ("result", "\n42\n")
    assert parts(view, 3) == [("text", "So <answer> "), ("answer", "42"), ("text", " </answer>")]
    assert view["spans"][1]["parts"][1]["pieces"][0] == ["nb", "print"]


def test_a_call_in_json_is_one_part_and_its_program_comes_with_the_result(tmp_path):
    call = '<tool_call>{"name": "code_interpreter", "arguments": {"code": "a\\nb"}}</tool_call>'
    view = viewed(tmp_path, hermes((f"So: {call}", OK), r"It is \boxed{ 42 }."))
    assert parts(view, 1) == [("text", "So: "), ("program", call)]
    assert view["spans"][2]["call"]["program"] == "a\nb"
    assert view["spans"][2]["call"]["pieces"] == [["n", "a"], ["w", "\n"], ["n", "b"]]
    assert parts(view, 2)[1] == ("result", "\n42\n\n")
    assert parts(view, 3) == [("text", r"It is \boxed{ "), ("answer", "42"), ("text", " }.")]


def test_a_turn_that_a_budget_cut_holds_neither_program_nor_answer(tmp_path):
    view = viewed(tmp_path, episode("p", StopReason.TOKEN_BUDGET, RIGHT))
    assert parts(view, 1) == [("text", RIGHT)]


def test_a_call_shows_its_fault_and_the_real_result(tmp_path):
    index = opened(a_recover(tmp_path / "run"))
    call = episode_view(index, "fork/timeout/p/0.1/0")["spans"][2]["call"]
    assert (call["number"], call["ok"], call["outcome"], call["pieces"]) == (
        1,
        False,
        "timeout",
        None,
    )
    assert call["fault"]["kind"] == "timeout"
    assert call["fault"]["real"] == {
        "outcome": "ok",
        "stdout": "42\n",
        "error": "",
        "traceback": "",
    }


def test_a_void_turn_counts_in_the_numbers_of_calls_as_for_forks(tmp_path):
    view = viewed(tmp_path, episode("p", ANSWERED, ("hm", "..."), ("<code>a</code>", NAME), RIGHT))
    assert [span["call"] and span["call"]["number"] for span in view["spans"]] == [
        *(None, None, None, None, 2, None),
    ]


def test_a_parent_lists_its_forks_and_a_fork_its_parent(tmp_path):
    index = opened(a_recover(tmp_path / "run"))
    assert episode_view(index, "dose/0/p/0")["forks"] == [
        {"call": 1, "arm": "control", "right": 2, "ended": 2}
        | {"addresses": ["fork/control/p/0.1/0", "fork/control/p/0.1/1"]},
        {"call": 1, "arm": "timeout", "right": 1, "ended": 2}
        | {"addresses": ["fork/timeout/p/0.1/0", "fork/timeout/p/0.1/1"]},
    ]
    fork = episode_view(index, "fork/timeout/p/0.1/1")
    assert fork["forks"] == []
    assert fork["parent"] == {
        **{"address": "dose/0/p/0", "sample": 0, "call": 1, "arm": "timeout", "visible": False},
    }


def test_a_fork_outside_of_a_benchmark_has_a_parent_without_an_address(tmp_path):
    index = opened(a_recover(tmp_path / "run").joinpath("episodes.jsonl"))
    view = episode_view(index, "line/2")
    assert (view["parent"]["address"], view["parent"]["sample"]) == (None, 0)
    assert index.row("line/2")["arm"] == "timeout"


def test_a_long_span_is_cut_and_its_rest_given_on_demand(tmp_path):
    long = "x" * MOST_CHARACTERS + "the end"
    shown = dataclasses.replace(OK, stdout=long)
    write_transcripts(
        tmp_path / "t.jsonl", [episode("p", ANSWERED, ("<code>a</code>", shown), RIGHT)]
    )
    index = opened(tmp_path / "t.jsonl")
    span = episode_view(index, "line/1")["spans"][2]
    assert span["cut"] == 7
    assert len(span["text"]) == sum(len(part["text"]) for part in span["parts"]) == MOST_CHARACTERS
    assert span["call"]["stdout"].endswith("\n[7 more characters are not shown]")
    assert span_text(index, "line/1", 2, MOST_CHARACTERS) == "the end"


def test_hostile_texts_are_given_as_they_are(tmp_path):
    made = hostile()
    view = json.loads(to_json(viewed(tmp_path, made)))
    assert [span["text"] for span in view["spans"]] == [span.text for span in made.spans]
    assert view["problem"]["metadata"] == dict(made.problem.metadata)


def test_an_unknown_address_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="has no episode 'nothing'"):
        episode_view(opened(a_recover(tmp_path / "run")), "nothing")


CALL = '{"name": "code_interpreter", "arguments": {"code": "a"}}'
TAGS = st.sampled_from(
    [
        *("<code>", "</code>", "<answer>", "</answer>", "```", "```python\n", "<tool_call>"),
        *("</tool_call>", r"\boxed{", "}", CALL, "print(1)", "<interpreter>", "</interpreter>"),
    ]
)
TEXTS = st.lists(st.one_of(TAGS, st.text(max_size=5)), max_size=8).map("".join)


@given(TEXTS, TEXTS, st.sampled_from(["tags", "hermes"]))
def test_the_parts_of_any_span_join_to_its_text(tmp_path_factory, turn, result, protocol):
    spans = (Span("prompt", "?"), Span("model", turn), Span("env", result, execution=OK))
    made = Transcript(Problem("p", "?", "1"), (*spans, Span("model", turn)), protocol=protocol)
    view = viewed_again(tmp_path_factory, made)
    for span, shown in zip(made.spans, view["spans"], strict=True):
        assert "".join(part["text"] for part in shown["parts"]) == span.text
        for part in shown["parts"]:
            assert (
                "".join(text for _, text in part.get("pieces", [["", part["text"]]]))
                == part["text"]
            )


def viewed_again(factory, transcript):
    path = factory.getbasetemp() / "again.jsonl"
    path.unlink(missing_ok=True)
    write_transcripts(path, [transcript])
    return episode_view(opened(path), "line/1")


@given(st.text())
def test_any_program_is_cut_into_pieces_that_join_to_it(program):
    assert "".join(text for _, text in pieces(program)) == program


@pytest.mark.parametrize("char", ["x", "(", "'", '"""', "\\", "\n", " ", "0", "f'{", "\r"])
def test_a_program_of_one_long_line_is_coloured_up_to_a_bound(char):
    program = char * (MOST_COLOURED + 10)
    made = pieces(program)
    assert "".join(text for _, text in made) == program
    assert made[-1] == ["", program[MOST_COLOURED:]]
