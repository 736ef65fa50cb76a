r"""Finds a call of the interpreter in a model turn, in any form that chat templates use.

All forms are read, whichever form the tokenizer's template uses. `hermes` describes the first:

    <tool_call>
    {"name": "code_interpreter", "arguments": {"code": "print(6 * 7)"}}
    </tool_call>

| the form of a call                                                    | who writes it          |
|-----------------------------------------------------------------------|------------------------|
| `<tool_call>`, JSON as above, `</tool_call>`                          | Hermes, Qwen2.5, Qwen3 |
| `<tool_call><function=code_interpreter><parameter=code>…</parameter>` | Qwen3-Coder, Qwen3.5,  |
| `</function></tool_call>`: XML with an unescaped program              | Qwen3.6, Nemotron 3    |
| JSON at the start of the turn, `parameters` instead of `arguments`    | Llama 3.1, Llama 3.2   |
| `<|python_tag|>`, then such JSON, or the program itself               | Llama 3.1              |
| `<|tool_call_start|>[code_interpreter(code="…")]<|tool_call_end|>`    | LFM2, LFM2.5           |

Some templates write a call in Python without escaping its string. Such a string is read with
Python's escapes if the resulting program compiles, and otherwise literally, up to the last quote.
"""

from __future__ import annotations

import ast
import json
import re
from contextlib import suppress
from typing import NamedTuple

from retool_env.protocol.program import compiles, parse_expression, read_program

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
PYTHONIC_OPEN, PYTHONIC_CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
PYTHON_TAG = "<|python_tag|>"
TOOL_NAME = "code_interpreter"

_CLOSING = {CALL_OPEN: CALL_CLOSE, PYTHONIC_OPEN: PYTHONIC_CLOSE}
_OPENING = re.compile("|".join(map(re.escape, (CALL_OPEN, PYTHONIC_OPEN, PYTHON_TAG))))
_JSON = json.JSONDecoder(strict=False)  # strings may hold unescaped line breaks
_BARE = re.compile(r"""\s*\{(?=(?P<name>\s*"name"\s*:)?)""")
_FUNCTION = re.compile(r"\s*<function=(?P<name>[^>\n]*)>(?P<parameters>.*)", re.DOTALL)
_PARAMETER = re.compile(
    r"<parameter=code>\n?(?P<code>.*?)\n?</parameter>\s*(?=<parameter=|</function>|\Z)", re.DOTALL
)
_PYTHON_CALL = re.compile(r"\s*\[?\s*(?P<name>[\w.]+)\s*\(")
_PYTHON_CODE = re.compile(
    r"""\s*code\s*=\s*(?P<quote>['"])(?P<code>.*)(?P=quote)\s*(?:,\s*)?\)\s*\]?\s*\Z""", re.DOTALL
)


class ToolCall(NamedTuple):
    """A call of the interpreter, parsed as far as possible."""

    start: int
    """Index of the call's first character in the turn."""
    code: str
    """The `code` argument; empty if it can't be read."""
    error: str
    """The reason why the code can't be read; empty if it can."""


Call = ToolCall
"""The former name of `ToolCall`."""


def first_call(text: str) -> ToolCall | None:
    """The first call of a turn; `None` if the turn has no call."""
    if bare := _BARE.match(text):
        start = bare.end() - 1
        with suppress(ValueError, RecursionError):  # an object of another kind, or text
            value, _ = _JSON.raw_decode(text, start)
            if "name" in value and value.keys() & {"arguments", "parameters"}:
                return ToolCall(start, *_code_of_call(value))
        if bare["name"]:
            return ToolCall(start, *_code_of_json(text, start))
    opened = _OPENING.search(text)
    if opened is None:
        return None
    start, tag = opened.start(), opened[0]
    if tag == PYTHON_TAG:
        rest = text[opened.end() :].lstrip()
        return ToolCall(start, *(_code_of_json(rest, 0) if rest.startswith("{") else (rest, "")))
    closed = text.find(_CLOSING[tag], start)
    if closed < 0:
        return ToolCall(start, "", _failure(f"{tag} is not closed"))
    start = text.rfind(tag, start, closed)
    block = text[start + len(tag) : closed]
    if tag == CALL_OPEN:
        xml = _FUNCTION.match(block)
        return ToolCall(start, *(_code_of_json(block) if xml is None else _code_of_xml(xml)))
    in_json = block.lstrip(" \t\r\n[").startswith("{")
    return ToolCall(start, *(_code_of_json(block) if in_json else _code_of_python(block)))


def _failure(why: str) -> str:
    return f"ToolCallError: {why}"


def _code_of_json(text: str, at: int | None = None) -> tuple[str, str]:
    """The `code` of a call in JSON, or an empty string, and then the reason.

    Args:
        text: The text of the call.
        at: Index at which the JSON begins; other text may surround it. `None`: the JSON is the
            whole text.
    """
    try:
        call = _JSON.decode(text) if at is None else _JSON.raw_decode(text, at)[0]
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        return "", _failure(f"not valid JSON: {error.msg} ({where})")
    except (ValueError, RecursionError):
        return "", _failure("not valid JSON: a number too long, or brackets nested too deep")
    return _code_of_call(call)


def _code_of_call(call: object) -> tuple[str, str]:
    call = _decoded(call)
    if isinstance(call, list):  # several calls in one block
        call = call[0] if call else None
    if not isinstance(call, dict):
        return "", _failure('a call is an object with "name" and "arguments"')
    if call.get("name") != TOOL_NAME:
        return "", _no_tool(call.get("name"))
    code = code_of(call["arguments"] if "arguments" in call else call.get("parameters"))
    if code is None:
        return "", _failure('"arguments" must be an object that holds "code", a string')
    return code, ""


def _no_tool(name: object) -> str:
    named = f"named {name!r}" if isinstance(name, str) else "without a name"
    return _failure(f'no tool {named}; there is "{TOOL_NAME}"')


def _code_of_xml(function: re.Match[str]) -> tuple[str, str]:
    if function["name"] != TOOL_NAME:
        return "", _no_tool(function["name"])
    parameter = _PARAMETER.search(function["parameters"])
    if parameter is None:
        return "", _failure("there must be <parameter=code>, closed by </parameter>")
    return parameter["code"], ""


def _code_of_python(block: str) -> tuple[str, str]:
    written = _PYTHON_CALL.match(block)
    if written is None:
        return "", _failure(f'a call is written [{TOOL_NAME}(code="...")]')
    if written["name"] != TOOL_NAME:
        return "", _no_tool(written["name"])
    call = parse_expression(block.strip())
    if isinstance(call, ast.List):  # several calls in one block
        call = call.elts[0]
    keywords = call.keywords if isinstance(call, ast.Call) else []
    values = [keyword.value for keyword in keywords if keyword.arg == "code"]
    code = values[0].value if values and isinstance(values[0], ast.Constant) else None
    raw = _PYTHON_CODE.match(block, written.end())
    if isinstance(code, str) and (
        raw is None
        or compiles(read_program(code).text)
        or not compiles(read_program(raw["code"]).text)
    ):
        return code, ""
    if raw is not None:
        return raw["code"], ""
    return "", _failure(f'"code" must be a string: [{TOOL_NAME}(code="...")]')


def code_of(arguments: object) -> str | None:
    """The `code` among a call's arguments; `None` if it is missing or not a string.

    Args:
        arguments: A mapping, its JSON text, or a JSON string that holds this text.
    """
    arguments = _decoded(_decoded(arguments))
    code = arguments.get("code") if isinstance(arguments, dict) else None
    return code if isinstance(code, str) else None


def _decoded(value: object) -> object:
    """The value of a JSON text; any other value or text unchanged."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return _JSON.decode(value)
    return value
