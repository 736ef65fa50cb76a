"""Protocols: the formats of prompts, turns and results, one module for each format.

* [`turn`][retool_env.protocol.turn]: a parsed turn, and the interface of a protocol.
* [`prompt`][retool_env.protocol.prompt]: the default prompt, and the user's own templates.
* [`result`][retool_env.protocol.result]: the text that shows a program's result.
* [`program`][retool_env.protocol.program]: how a program is found in a code block.
* [`tags`][retool_env.protocol.tags]: the paper's format.
* [`hermes`][retool_env.protocol.hermes]: the tool calls that chat models are trained on.
* [`calls`][retool_env.protocol.calls]: the forms in which models write these calls.
"""

from collections.abc import Callable

from retool_env.protocol.hermes import Hermes
from retool_env.protocol.prompt import PromptTemplate, default_prompt
from retool_env.protocol.result import (
    EMPTY_PROGRAM,
    Cut,
    Errors,
    cut_text,
    is_empty_program,
    render_output,
)
from retool_env.protocol.tags import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    CODE_CLOSE,
    CODE_OPEN,
    RESULT_CLOSE,
    RESULT_OPEN,
    TEXT_VOID_NOTICE,
    VOID_NOTICE,
    Tags,
    closing_tags,
    parse_turn,
    render_result,
)
from retool_env.protocol.turn import EncodedText, Said, Turn, TurnKind, TurnProtocol

__all__ = [
    "ANSWER_CLOSE",
    "ANSWER_OPEN",
    "CODE_CLOSE",
    "CODE_OPEN",
    "EMPTY_PROGRAM",
    "PROTOCOLS",
    "RESULT_CLOSE",
    "RESULT_OPEN",
    "TEXT_VOID_NOTICE",
    "VOID_NOTICE",
    "Cut",
    "EncodedText",
    "Errors",
    "Hermes",
    "PromptTemplate",
    "ProtocolName",
    "Said",
    "Tags",
    "Turn",
    "TurnKind",
    "TurnProtocol",
    "closing_tags",
    "cut_text",
    "default_prompt",
    "is_empty_program",
    "parse_turn",
    "render_output",
    "render_result",
]

ProtocolName = str
"""The name of a protocol: a key of `PROTOCOLS`."""

PROTOCOLS: dict[str, Callable[[bool, bool, bool], TurnProtocol]] = {"tags": Tags, "hermes": Hermes}
"""The registry of protocols: a class for each value of `Rules.protocol`.

Its arguments are three settings: `interpreter`, `session` and `display` (see `Rules`). To add a
protocol, write `PROTOCOLS["mine"] = Mine`; episodes and the reader of transcripts then know it.
"""
