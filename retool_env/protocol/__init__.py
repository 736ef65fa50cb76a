"""How model and environment talk: prompts, turns, results, one file a format.

* [`turn`][retool_env.protocol.turn]: a turn as it was parsed, and what an episode asks of a format.
* [`prompt`][retool_env.protocol.prompt]: the default prompt, and templates of one's own.
* [`result`][retool_env.protocol.result]: what is shown of a program's result.
* [`program`][retool_env.protocol.program]: how a program is found in a code block.
* [`tags`][retool_env.protocol.tags]: the paper's format.
* [`hermes`][retool_env.protocol.hermes]: tool calls, as chat models are trained on.
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
from retool_env.protocol.turn import Said, Turn, TurnKind, TurnProtocol

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
"""A name in `PROTOCOLS`."""

PROTOCOLS: dict[str, Callable[[bool, bool, bool], TurnProtocol]] = {"tags": Tags, "hermes": Hermes}
"""The formats, by the names that `Rules.protocol` takes.

Each is made of three settings: whether there is an interpreter, whether the programs of an episode share a process,
and whether the value of a last expression is shown. A protocol of one's own is entered here,
`PROTOCOLS["mine"] = Mine`; episodes and the reading of transcripts then know it.
"""
