r"""Calls of the interpreter in what a model writes, in each of the forms that chat templates have.

All forms are read, whichever the template has. The first is the one that `hermes` describes:

    <tool_call>
    {"name": "code_interpreter", "arguments": {"code": "print(6 * 7)"}}
    </tool_call>

| the form of a call                                                    | who writes it          |
|-----------------------------------------------------------------------|------------------------|
| `<tool_call>`, JSON as above, `</tool_call>`                          | Hermes, Qwen2.5, Qwen3 |
| `<tool_call><function=code_interpreter><parameter=code>…</parameter>` | Qwen3-Coder, Qwen3.5,  |
| `</function></tool_call>`: XML, in which the program stands as it is  | Qwen3.6, Nemotron 3    |
| JSON with `parameters` for `arguments`, the first thing in the turn   | Llama 3.1, Llama 3.2   |
| `<|python_tag|>`, then such JSON, or the program itself               | Llama 3.1              |
| `<|tool_call_start|>[code_interpreter(code="…")]<|tool_call_end|>`    | LFM2, LFM2.5           |

Of a string in a call in Python, some templates escape nothing: it is read with Python's escapes if
that gives a program that compiles, and otherwise as it is, up to the last quote.
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
_JSON = json.JSONDecoder(strict=False)  # line breaks may stand in strings as they are
_BARE = re.compile(r"""\s*\{(?=(?P<name>\s*"name"\s*:)?)""")
_FUNCTION = re.compile(r"\s*<function=(?P<name>[^>\n]*)>(?P<parameters>.*)", re.DOTALL)
_PARAMETER = re.compile(
    r"<parameter=code>\n?(?P<code>.*?)\n?</parameter>\s*(?=<parameter=|</function>|\Z)", re.DOTALL
)
_PYTHON_CALL = re.compile(r"\s*\[?\s*(?P<name>[\w.]+)\s*\(")
_PYTHON_CODE = re.compile(
    r"""\s*code\s*=\s*(?P<quote>['"])(?P<code>.*)(?P=quote)\s*(?:,\s*)?\)\s*\]?\s*\Z""", re.DOTALL
)


class Call(NamedTuple):
    """A call of the interpreter, as far as it could be read."""

    start: int
    """Where it begins in the turn."""
    code: str
    error: str
    """Why there is no code."""


def first_call(text: str) -> Call | None:
    """The first call of a turn; `None` if it holds none."""
    bare = _BARE.match(text)
    if bare:
        with suppress(ValueError, RecursionError):  # an object of another kind, or text
            found, _ = _JSON.raw_decode(text, bare.end() - 1)
            if "name" in found and found.keys() & {"arguments", "parameters"}:
                return Call(bare.end() - 1, *_code_of_call(found))
        if bare["name"]:
            return Call(bare.end() - 1, *_code_of_json(text, bare.end() - 1))
    opened = _OPENING.search(text)
    if opened is None:
        return None
    start, tag = opened.start(), opened[0]
    if tag == PYTHON_TAG:
        rest = text[opened.end() :].lstrip()
        return Call(start, *(_code_of_json(rest, 0) if rest.startswith("{") else (rest, "")))
    closed = text.find(_CLOSING[tag], start)
    if closed < 0:
        return Call(start, "", _failure(f"{tag} is not closed"))
    start = text.rfind(tag, start, closed)
    block = text[start + len(tag) : closed]
    if tag == CALL_OPEN:
        xml = _FUNCTION.match(block)
        return Call(start, *(_code_of_json(block) if xml is None else _code_of_xml(xml)))
    in_json = block.lstrip(" \t\r\n[").startswith("{")
    return Call(start, *(_code_of_json(block) if in_json else _code_of_python(block)))


def _failure(why: str) -> str:
    return f"ToolCallError: {why}"


def _code_of_json(text: str, at: int | None = None) -> tuple[str, str]:
    """The `code` of a call in JSON, and why there is none.

    Args:
        text: The JSON, and nothing else.
        at: Where in the text it begins instead, with anything ahead of it and behind.
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
    if isinstance(call, list):  # of several
        call = call[0] if call else None
    if not isinstance(call, dict):
        return "", _failure('a call is an object with "name" and "arguments"')
    name = call.get("name")
    if name != TOOL_NAME:
        return "", _no_tool(name)
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
    found = _PARAMETER.search(function["parameters"])
    if found is None:
        return "", _failure("there must be <parameter=code>, closed by </parameter>")
    return found["code"], ""


def _code_of_python(block: str) -> tuple[str, str]:
    written = _PYTHON_CALL.match(block)
    if written is None:
        return "", _failure(f'a call is written [{TOOL_NAME}(code="...")]')
    if written["name"] != TOOL_NAME:
        return "", _no_tool(written["name"])
    call = parse_expression(block.strip())
    if isinstance(call, ast.List):  # of several
        call = call.elts[0]
    keywords = call.keywords if isinstance(call, ast.Call) else []
    values = [each.value for each in keywords if each.arg == "code"]
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
    """The `code` among a call's arguments; `None` if there is none.

    Args:
        arguments: An object, its JSON, or that JSON in a string once more.
    """
    arguments = _decoded(_decoded(arguments))
    code = arguments.get("code") if isinstance(arguments, dict) else None
    return code if isinstance(code, str) else None


def _decoded(value: object) -> object:
    """What a text means as JSON; anything else as it is."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return _JSON.decode(value)
    return value
