"""Attempts at the interpreter that miss the form of a call."""

from __future__ import annotations

import json

import pytest

from retool_env.metrics.attempts import MISSES, missed_attempts
from retool_env.protocol import PROTOCOLS

CODE = "<code>print(1)</code>"
JSON = '{"name": "code_interpreter", "arguments": {"code": "print(1)"}}'
CALL = f"<tool_call>\n{JSON}\n</tool_call>"


def missed(text, protocol="tags", ended=True):
    turn = PROTOCOLS[protocol](True, False, False).parse(text, ended=ended)
    return missed_attempts(text, turn, protocol)


@pytest.mark.parametrize(
    ("text", "misses"),
    [
        (CODE, set()),
        ("<answer>4</answer>", set()),
        ("I could write some code in python, or not.", set()),
        ("```python\nprint(1)\n```", {"fence"}),
        ("so ~~~ {.py}\nprint(1)\n~~~", {"fence"}),
        ("```\n1 + 1\n```", set()),  # it may be anything
        ("```pyramid\n1\n```", set()),
        (f"```python\nprint(2)\n```\n{CODE}", {"fence"}),
        ("<code>\n```python\nprint(1)\n```\n</code>", set()),  # a program, in the form of a call
        (CALL, {"foreign_call"}),
        (f"I call {JSON}", {"foreign_call"}),
        ('{"name": "python", "parameters": {"x": 1}}', {"foreign_call"}),
        ('{"name": "Ann", "age": 7}', set()),
        ("<|python_tag|>print(1)", {"foreign_call"}),
        (f"<code>print('''{CALL}''')</code>", set()),  # a string of a program
        ("<interpreter>\n2\n</interpreter>", {"written_output"}),
        ("```output\n2\n```", {"written_output"}),
        (f"<interpreter>\n2\n</interpreter>\n{CODE}", {"written_output"}),
        ("<code>print(1)", {"half_tag"}),
        ("print(1)</code>", {"half_tag"}),
        ("<code>print(1) <answer>4</answer>", {"half_tag"}),
        (f"With <code> I do: {CODE}", set()),  # it makes its call
        (
            "```python\nprint(1)\n```\n```output\n1\n```\n<answer>1</answer>",
            {"fence", "written_output"},
        ),
    ],
)
def test_what_a_turn_of_tags_misses(text, misses):
    assert missed(text) == misses


@pytest.mark.parametrize(
    ("text", "ended", "misses"),
    [
        (CALL, True, set()),
        (JSON, True, set()),  # alone, it is a call
        ("<tool_call>\n{", True, set()),  # a failed call, which is a call
        (f"I write {JSON}", True, {"foreign_call"}),
        (CODE, True, {"foreign_call"}),
        (rf"{CODE} \boxed{{4}}", True, {"foreign_call"}),
        ("```python\nprint(1)\n```", True, {"fence"}),
        (f"{CALL}\n<tool_response>\n1\n</tool_response>", True, {"written_output"}),
        ("<tool_response>1</tool_response>", True, {"written_output"}),
        (CALL, False, {"half_tag"}),  # cut by a budget, so no call
        ("<tool_call>\n" + json.dumps({"name": "x"}), False, {"half_tag"}),
    ],
)
def test_what_a_turn_of_tool_calls_misses(text, ended, misses):
    assert missed(text, "hermes", ended) == misses


def test_another_protocol_has_no_tags_of_its_own_here():
    text = f"{CODE} {CALL}"
    turn = PROTOCOLS["hermes"](False, False, False).parse(text)
    assert missed_attempts(text, turn, "mine") == {"foreign_call"}
    assert set(MISSES) == {"fence", "foreign_call", "written_output", "half_tag"}
