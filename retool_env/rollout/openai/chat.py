"""A transcript as a chat, and a chat's reply as a turn: what models behind an API see and write.

Everything is made from the transcript alone, at each turn anew, by total functions. The prompt is a user's message and a
model's turn an assistant's. What follows a turn is a user's message again, or, with native tool calls, the tool's:

| the transcript                  | tags                   | native tool calls                              |
|---------------------------------|------------------------|------------------------------------------------|
| text, `<code>…</code>`          | assistant: all of it   | assistant: the text, with a call of the tool   |
| `<interpreter>…</interpreter>`  | user: all of it        | tool: what stands between                      |
| a turn without a code block     | assistant: all of it   | assistant: all of it                           |
| a notice                        | user: all of it        | user: all of it                                |

The other way round, a native call becomes a code block, so that a turn means what it always means
(`retool_env.protocol`), and the record of an episode looks the same whichever way it was made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from retool_env.protocol.calls import TOOL_NAME, code_of
from retool_env.protocol.program import Form, Program, read_program
from retool_env.protocol.tags import CODE_CLOSE, CODE_OPEN, RESULT_CLOSE, RESULT_OPEN, closing_tags
from retool_env.protocol.turn import TurnKind
from retool_env.transcript import Transcript

StopReason = Literal["tag", "eos", "length"]


def messages_of(transcript: Transcript, native: bool) -> list[dict[str, Any]]:
    """The conversation so far.

    Args:
        transcript: Of an episode that goes on.
        native: Whether code blocks are shown as calls of the tool.
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
            said = span.text[: turn.start].rstrip() or None
            messages.append({"role": "assistant", "content": said, "tool_calls": called})
        elif call is not None:
            shown = span.text.strip().removeprefix(RESULT_OPEN).removesuffix(RESULT_CLOSE)
            messages.append({"role": "tool", "tool_call_id": call, "content": shown.strip("\n")})
        else:
            messages.append({"role": "user", "content": span.text})
    return messages


def call_text(said: str, name: str, arguments: object) -> str:
    r"""A native call, written as a turn with a code block.

    What is no call of the tool becomes a block with a comment alone, which says what was written: a failed call, whose
    error the model sees, and never sent to the sandbox. A program that holds a closing tag ends there, as everywhere.

    Args:
        said: What the model wrote before the call.
        name: Of the function that it called.
        arguments: An object whose `code` is a text, or its JSON: what `hermes.code_of` takes.

    Example:
        >>> call_text("Let me see.", "code_interpreter", '{"code": "print(6 * 7)"}')
        'Let me see.\n<code>\n```python\nprint(6 * 7)\n```\n</code>'
    """
    program = _native(name, arguments).text
    gap = "" if not said or said.endswith("\n") else "\n"
    # Longer than any inside, so that none of them closes it.
    mark = max(["``", *re.findall("`+", program)], key=len) + "`"
    return f"{said}{gap}{CODE_OPEN}\n{mark}python\n{program}\n{mark}\n{CODE_CLOSE}"


def call_form(said: str, name: str, arguments: object) -> Form | None:
    """How the program of a native call was read, which `call_text` does not show: it fences all.

    Arguments as for `call_text`.

    Returns:
        The form; `None` where a tag in the text decides the turn.
    """
    program = _native(name, arguments)
    tagged = any(tag in said + program.text for tag in closing_tags(True))
    return None if tagged else program.form


def _native(name: str, arguments: object) -> Program:
    code = code_of(arguments) if name == TOOL_NAME else None
    if code is not None:
        return read_program(code)
    # Neither a line break nor a tag can get out of the comment.
    written = json.dumps(f"{name}({arguments})").replace("<", "\\u003c")
    return Program(f'# not a call of {TOOL_NAME} with {{"code": "..."}}: {written}', "unread")


def completed(
    text: str, finish: str | None, extra: Mapping[str, Any], stop: Sequence[str], sent: bool = True
) -> tuple[str, StopReason]:
    """What the model wrote, the closing tag that ended it put back, and why it stopped.

    An API cuts off the stop string that it stopped at. vLLM (`stop_reason`) and SGLang (`matched_stop`) say which one
    that was, or by `null` or a token's id that it was none. Where nothing is said, it was the closing tag of the block that
    was opened last, if there is one: a model that ends its turn inside of a block can't be told from it.

    Args:
        text: What the API gave.
        finish: Its `finish_reason`.
        extra: The choice's fields that the OpenAI API does not have.
        stop: The closing tags.
        sent: Whether the API was asked to stop at them.
    """
    if any(tag in text for tag in stop):
        return text, "tag"
    if finish == "length":
        return text, "length"
    tag = _cut_tag(text, extra, stop) if sent and finish == "stop" else None
    return (text, "eos") if tag is None else (text + tag, "tag")


def _cut_tag(text: str, extra: Mapping[str, Any], stop: Sequence[str]) -> str | None:
    for name in ("stop_reason", "matched_stop"):
        if name in extra:
            told = extra[name]
            if told in stop:
                return told
            if not isinstance(told, str):
                return None
    opened = {text.rfind(tag.replace("</", "<")): tag for tag in stop}
    last = max(opened, default=-1)
    return opened[last] if last >= 0 else None
