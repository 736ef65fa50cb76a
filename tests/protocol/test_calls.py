"""Calls of the interpreter in all forms of chat templates, without any tokenizer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.protocol.calls import code_of, first_call

CODE = 'print("<a>")\nprint(1)'
OBJECT = {"name": "code_interpreter", "arguments": {"code": CODE}}
LLAMA = {"name": "code_interpreter", "parameters": {"code": CODE}}
XML = f"<function=code_interpreter>\n<parameter=code>\n{CODE}\n</parameter>\n</function>"
FORMS = {
    "JSON in tags": f"<tool_call>\n{json.dumps(OBJECT)}\n</tool_call>",
    "XML in tags": f"<tool_call>\n{XML}\n</tool_call>",
    "bare JSON": json.dumps(LLAMA),
    "JSON after a tag": f"<|python_tag|>{json.dumps(LLAMA)}",
    "a program after a tag": f"<|python_tag|>{CODE}",
    "Python": f"<|tool_call_start|>[code_interpreter(code={CODE!r})]<|tool_call_end|>",
    "Python without escapes": (
        f"<|tool_call_start|>[code_interpreter(code='{CODE}')]<|tool_call_end|>"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_call_gives_the_same_program(form):
    assert first_call(FORMS[form]) == (0, CODE, "")
    if form != "bare JSON":  # it must be the first text of a turn
        assert first_call(f"So: {FORMS[form]}") == (4, CODE, "")


def test_the_last_of_several_opening_tags_begins_the_call():
    assert first_call(f"<tool_call> so: {FORMS['JSON in tags']}") == (16, CODE, "")


def test_a_string_is_read_without_escapes_if_the_escaped_program_does_not_compile():
    text = r"""[code_interpreter(code='print("a\nb")')]"""
    call = first_call(f"<|tool_call_start|>{text}<|tool_call_end|>")
    assert call.code == r'print("a\nb")'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<tool_call>{}", "is not closed"),
        ("<tool_call>{</tool_call>", "not valid JSON"),
        ("<tool_call>3</tool_call>", "a call is an object"),
        ('<tool_call>{"name": "shell", "arguments": {}}</tool_call>', "no tool named 'shell'"),
        ('<tool_call>{"arguments": {"code": "1"}}</tool_call>', "no tool without a name"),
        ('{"name": "code_interpreter", "arguments": {"code": 1}}', '"code", a string'),
        ("<tool_call><function=code_interpreter></tool_call>", "<parameter=code>"),
        ("<|tool_call_start|>[shell()]<|tool_call_end|>", "no tool named 'shell'"),
        ("<|tool_call_start|>[code_interpreter(1)]<|tool_call_end|>", "must be a string"),
    ],
)
def test_a_call_that_cant_be_read_names_the_reason(text, reason):
    call = first_call(text)
    assert call.code == "" and call.error.startswith("ToolCallError: ") and reason in call.error


@pytest.mark.parametrize("text", ["", "no call", '{"answer": 1}', "</tool_call>", "<tool_calls>"])
def test_other_text_is_not_a_call(text):
    assert first_call(text) is None


@given(st.text())
def test_arguments_may_be_encoded_several_times(code):
    arguments = {"code": code}
    assert code_of(arguments) == code_of(json.dumps(arguments)) == code
    assert code_of(json.dumps(json.dumps(arguments))) == code
    assert code_of({"code": 1}) is code_of([code]) is code_of(None) is None
