"""The paper's tags: properties of the parser, and the programs of code blocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.protocol.program import read_program
from retool_env.protocol.tags import parse_turn
from retool_env.protocol.turn import TurnKind

PIECES = [
    "<code>",
    "</code>",
    "<answer>",
    "</answer>",
    "<think>",
    "</think>",
    "```python\n",
    "```",
    "\n",
    "π",
]
tagged = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8))).map("".join)


@given(tagged, st.booleans())
def test_parsing_is_total_and_the_first_closing_tag_decides(text, interpreter):
    turn = parse_turn(text, interpreter)
    tags = ["</code>", "</answer>"] if interpreter else ["</answer>"]
    ends = [text.find(tag) + len(tag) for tag in tags if tag in text]
    assert turn.end == (min(ends) if ends else len(text))
    assert 0 <= turn.start <= turn.end <= len(text)
    if turn.kind is TurnKind.CODE:
        block = text[turn.start : turn.end].removeprefix("<code>").removesuffix("</code>")
        assert (turn.content, turn.form) == read_program(block)
    else:
        assert turn.form is None
    if turn.kind is not TurnKind.VOID:
        assert turn.kind is TurnKind.CODE or turn.content in text[turn.start : turn.end]
        assert text[: turn.end].endswith(f"</{turn.kind}>")
        assert text[turn.start :].startswith(f"<{turn.kind}>")


@given(tagged, st.text(), st.booleans())
def test_what_follows_the_closing_tag_changes_nothing(text, rest, interpreter):
    turn = parse_turn(text, interpreter)
    if turn.kind is not TurnKind.VOID:
        assert parse_turn(text + rest, interpreter) == turn


@pytest.mark.parametrize(
    ("block", "program", "form"),
    [
        ("\nprint(1)\n", "print(1)", "plain"),
        ("\n```python\nprint(1)\n```\n", "print(1)", "fenced"),
        ("So: ```python print(1)```", "print(1)", "fenced"),
        ("\ufeffprint(1)", "print(1)", "mended:marks"),
        ("\n>>> print(1)\n1\n", "print(1)", "mended:prompts"),
        ("\n    print(1)\n", "print(1)", "mended:dedent"),
        ("\n    print(1\n", "    print(1", "plain"),
        ("\n```python\n```\n", "", "fenced"),
        ("", "", "plain"),
    ],
)
def test_the_program_of_a_block_says_how_it_was_read(block, program, form):
    turn = parse_turn(f"<code>{block}</code>")
    assert (turn.content, turn.form) == (program, form)
