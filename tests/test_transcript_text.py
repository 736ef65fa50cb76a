"""A printed transcript names each author, and nothing in it steers a terminal or a notebook."""

import copy
import dataclasses
import pickle
from html.parser import HTMLParser

import pytest
from helpers.episodes import ANSWERED, NAME, OK, episode, with_ids
from hypothesis import given
from hypothesis import strategies as st

from retool_env.execution import Execution, Fault, Outcome
from retool_env.transcript import Span, StopReason, Transcript
from retool_env.transcript_text import MOST_CHARACTERS

LIE = Execution(Outcome.OK, "41\n", fault=Fault("wrong_value", True, real=OK))
PLAIN = dataclasses.replace(
    episode(
        "sums/1",
        ANSWERED,
        ("First.\n<code>print(a)</code>", NAME),
        ("<code>print(6 * 7)</code>", LIE),
        "It is <answer>42</answer>",
        correct=True,
    ),
    answer="42",
)
EVIL = "\x1b[2J\x1b]0;x\x07\u202e<script>alert(1)</script><img src=x onerror=alert(1)>$x$\r── end"


def test_the_text_has_each_span_with_its_author_and_the_end():
    lines = str(PLAIN).splitlines()
    assert [line for line in lines if line.startswith("── ")] == [
        "── problem sums/1 · reference answer 42",
        "── prompt",
        "── model, turn 1",
        "── program",
        "── result: runtime error",
        "── model, turn 2",
        "── program",
        "── result: ok",
        "── fault wrong_value: the model did not see the real result: ok",
        "── model, turn 3",
        "── answer",
        "── end: answered · answer 42 · right · reward 1",
    ]
    assert "  First." in lines and "  │ print(6 * 7)" in lines
    assert lines[lines.index("── result: ok") + 1 :][:3] == [
        "  │ 41",
        "── fault wrong_value: the model did not see the real result: ok",
        "  │ 42",
    ]


def test_tokens_are_counted_and_not_shown():
    text = str(with_ids(PLAIN))
    assert "── model, turn 2 · 50 tokens" in text and "── prompt · 1 token" in text
    assert "49" not in repr(with_ids(PLAIN)) and "49" not in text  # the last id of the turn


def test_the_repr_is_one_short_line():
    long = dataclasses.replace(PLAIN, answer="9\n" * 10**6)
    line = repr(long)
    assert line.startswith("Transcript(problem='sums/1', spans=6, calls=2, stop_reason='answered'")
    assert line.endswith("correct=True, reward=1.0)") and len(line) < 200 and "\n" not in line


def test_a_void_turn_a_notice_and_an_unfinished_episode_say_so():
    lines = str(episode("a", StopReason.VOID_TURN, ("Hm.", "Write a program."))).splitlines()
    assert "── model, turn 1 · neither a program nor an answer" in lines
    assert "── environment" in lines and lines[-1].startswith("── end: void_turn · no answer")
    assert str(dataclasses.replace(PLAIN, stop_reason=None)).endswith("── not finished")
    assert str(dataclasses.replace(PLAIN, spans=())).count("──") == 2


def test_a_fault_that_did_not_take_place_or_has_no_other_result_is_named():
    for fault, words in (
        (Fault("stale", injected=False), "stale did not take place"),
        (Fault("missing_package", True), "missing_package was made in the program's process"),
    ):
        run = dataclasses.replace(OK, fault=fault)
        assert words in str(episode("a", ANSWERED, ("<code>1</code>", run)))


def test_a_long_text_is_cut_in_the_middle_with_a_note():
    text = str(episode("a", ANSWERED, "begin\x1b" + "x" * 99_998 + "\x9bthe end"))
    assert r"begin\x1b" in text and r"\x9bthe end" in text and len(text) < 2 * MOST_CHARACTERS
    assert f"[… {100_012 - MOST_CHARACTERS:,} characters are not shown …]" in text


def hostile(text: str) -> Transcript:
    """An episode with a text in each place that a model or a program can reach."""
    real = Execution(Outcome.RUNTIME_ERROR, text, text)
    run = Execution(Outcome.OK, text, fault=Fault(text, True, real=real))
    made = episode(f"a{text}", ANSWERED, (f"{text}<code>{text}</code>{text}", run), text)
    return dataclasses.replace(made, answer=text)


class Page(HTMLParser):
    """The elements, the attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data) -> None:
        self.text += data


@given(st.one_of(st.just(EVIL), st.text(st.characters(exclude_categories=()))))
def test_nothing_in_an_episode_steers_a_terminal_or_a_notebook(text):
    transcript = hostile(text)
    shown, page = str(transcript), transcript._repr_html_()
    for form in (shown, page, repr(transcript)):
        assert not {*map(ord, form)} & {*range(9), *range(11, 32), 0x9B, 0x202E, 0xD800}
    found = Page(page)
    assert found.elements <= {"div", "pre", "code", "details", "summary"}
    assert found.attributes == {"style"}
    heads = [line.split()[1] for line in shown.split("\n") if line and line[0] not in " \t"]
    assert heads[-1] == "end:" and heads.count("end:") == 1


def test_a_notebook_typesets_no_formula_of_a_model():
    """JupyterLab typesets `$…$` outside of `pre` and `code`."""
    page = hostile("$x$")._repr_html_()
    outside = page
    for name in ("pre", "code"):
        while (start := outside.find(f"<{name}")) >= 0:
            outside = outside[:start] + outside[outside.index(f"</{name}>", start) + 1 :]
    assert "$" in page and "$" not in outside


def test_the_html_has_the_text_of_the_transcript_and_no_colour_of_its_own_for_it():
    page = PLAIN._repr_html_()
    for words in ("print(6 * 7)", "the model did not see the real result", "right · reward 1"):
        assert words in Page(page).text
    assert "color:inherit" in page and "background:rgba(" in page


@pytest.mark.parametrize("transcript", [PLAIN, with_ids(PLAIN)])
def test_equality_copies_pickles_and_records_are_those_of_a_dataclass(transcript):
    assert transcript == copy.deepcopy(transcript) == pickle.loads(pickle.dumps(transcript))
    assert Transcript.from_json(transcript.to_json()) == transcript
    assert transcript != dataclasses.replace(transcript, reward=0.5)
    assert [field.name for field in dataclasses.fields(transcript)][:2] == ["problem", "spans"]
    assert hash(transcript.spans[0]) == hash(dataclasses.replace(transcript.spans[0]))
    assert isinstance(transcript.spans[1], Span)
