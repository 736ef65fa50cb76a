"""A transcript as a chat, and the reply of a chat as a turn: the view of a model behind an API.

The messages are made anew from the transcript at each turn, by total functions. The prompt becomes
a user message and each turn of the model an assistant message. The text after a turn becomes
another user message or, with native tool calls, a tool message:

| the transcript                 | tags                 | native tool calls                        |
|--------------------------------|----------------------|------------------------------------------|
| text, `<code>…</code>`         | assistant: all of it | assistant: the text and a call of a tool |
| `<interpreter>…</interpreter>` | user: all of it      | tool: the text between the tags, and     |
|                                |                      | the notice of calls behind them          |
| a turn without a code block    | assistant: all of it | assistant: all of it                     |
| a notice                       | user: all of it      | user: all of it                          |

In the other direction, a native call becomes a code block. A turn therefore has its usual meaning
(`retool_env.protocol`), and the record of an episode looks the same with tags and with native
calls.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from retool_env.protocol.calls import TOOL_NAME, code_of
from retool_env.protocol.program import Form, Program, read_program
from retool_env.protocol.tags import CODE_CLOSE, CODE_OPEN, RESULT_CLOSE, RESULT_OPEN, closing_tags
from retool_env.protocol.turn import TurnKind
from retool_env.rollout.openai.ends import End
from retool_env.rollout.policy import TurnEnd
from retool_env.transcript import Transcript


def messages_of(transcript: Transcript, native: bool) -> list[dict[str, Any]]:
    """Convert the conversation so far to the messages of a chat API.

    Args:
        transcript: The transcript of an episode that has not ended.
        native: Whether code blocks are shown as calls of the tool.

    Returns:
        The messages, in the form of OpenAI's chat completions API.
    """
    messages: list[dict[str, Any]] = [{"role": "user", "content": transcript.spans[0].text}]
    turns = iter(transcript.turns)
    call = None
    for span in transcript.response:
        if span.author == "model":
            turn = next(turns)
            if not native or turn.kind is not TurnKind.CODE:
                call = None
                messages.append({"role": "assistant", "content": span.text})
                continue
            # Nine letters and digits: Mistral's models take no other id.
            call = f"call{len(messages):05d}"
            function = {"name": TOOL_NAME, "arguments": json.dumps({"code": turn.content})}
            called = [{"id": call, "type": "function", "function": function}]
            content = span.text[: turn.start].rstrip() or None
            messages.append({"role": "assistant", "content": content, "tool_calls": called})
        elif call is not None:
            # The program may have printed the tag; the last one is the environment's.
            output, _, notice = span.text.strip().rpartition(RESULT_CLOSE)
            shown = f"{output.removeprefix(RESULT_OPEN).strip('\n')}\n\n{notice.strip()}".strip(
                "\n"
            )
            messages.append({"role": "tool", "tool_call_id": call, "content": shown})
        else:
            messages.append({"role": "user", "content": span.text})
    return messages


def digest(part: object) -> str:
    """A digest of a part of a request, byte for byte as JSON."""
    return hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16]


def call_text(text: str, name: str, arguments: object) -> str:
    r"""Write a native call as a turn with a code block.

    A call of another function, or with unreadable arguments, becomes a block with a comment that
    quotes the call. The turn is then a failed call: the model sees its error, and the sandbox does
    not run it. As everywhere, a closing tag inside a program ends the program.

    Args:
        text: The text that the model wrote before the call.
        name: The name of the called function.
        arguments: An object whose `code` is a string, or its JSON (see `hermes.code_of`).

    Example:
        >>> call_text("Let me see.", "code_interpreter", '{"code": "print(6 * 7)"}')
        'Let me see.\n<code>\n```python\nprint(6 * 7)\n```\n</code>'
    """
    program = _native(name, arguments).text
    gap = "" if not text or text.endswith("\n") else "\n"
    # The fence is longer than any fence inside the program, so that none of them closes it.
    mark = max(["``", *re.findall("`+", program)], key=len) + "`"
    return f"{text}{gap}{CODE_OPEN}\n{mark}python\n{program}\n{mark}\n{CODE_CLOSE}"


def call_form(text: str, name: str, arguments: object) -> Form | None:
    """Tell the form in which the program of a native call was read.

    `call_text` puts every program into a fence, so its text does not show the form.

    Args:
        text: The text that the model wrote before the call.
        name: The name of the called function.
        arguments: An object whose `code` is a string, or its JSON (see `hermes.code_of`).

    Returns:
        The form; `None` if a tag in the text decides the turn.
    """
    program = _native(name, arguments)
    tagged = any(tag in text + program.text for tag in closing_tags(True))
    return None if tagged else program.form


def _native(name: str, arguments: object) -> Program:
    code = code_of(arguments) if name == TOOL_NAME else None
    if code is not None:
        return read_program(code)
    # JSON without "<" holds neither a line break nor a tag, so the text can't leave the comment.
    written = json.dumps(f"{name}({arguments})").replace("<", "\\u003c")
    return Program(f'# not a call of {TOOL_NAME} with {{"code": "..."}}: {written}', "unread")


def completed(
    text: str, end: End, extra: Mapping[str, Any], stop: Sequence[str], sent: bool = True
) -> tuple[str, TurnEnd]:
    """Put back the closing tag that the API cut off, and tell why the turn ended.

    An API cuts off the stop string at which it stopped. vLLM (`stop_reason`) and SGLang
    (`matched_stop`) name that string; `null` or a token id there means that no stop string ended
    the turn. If the API gives neither field, the turn is taken to have ended with the closing tag
    of the last open block. A model that ends its sequence inside a block can't be told apart from
    this case, except where the finish reason says so (`eos`).

    Args:
        text: The text of the API's choice.
        end: The end that the finish reason of the choice names.
        extra: The fields of the choice that the OpenAI API does not define.
        stop: The closing tags.
        sent: Whether the request named the closing tags as stop strings.

    Returns:
        The text with its closing tag, and why the turn ended.
    """
    if any(tag in text for tag in stop):
        return text, "tag"
    if end == "cut":
        return text, "length"
    tag = _cut_tag(text, extra, stop) if sent and end == "stop" else None
    return (text, "eos") if tag is None else (text + tag, "tag")


def _cut_tag(text: str, extra: Mapping[str, Any], stop: Sequence[str]) -> str | None:
    for name in ("stop_reason", "matched_stop"):
        if name in extra:
            matched = extra[name]
            if matched in stop:
                return matched
            if not isinstance(matched, str):
                return None
    opened = {text.rfind(tag.replace("</", "<")): tag for tag in stop}
    last = max(opened, default=-1)
    return opened[last] if last >= 0 else None
