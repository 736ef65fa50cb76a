"""Attempts at the interpreter that miss the protocol's form, so that nothing runs.

A model that never calls its tool may not want to, or may not know how. The form of an attempt tells
these apart. Each attempt is looked for in the text of a turn outside of its call.

| miss             | the model writes                                                            |
|------------------|-----------------------------------------------------------------------------|
| `fence`          | a Markdown fence of `python` or `py`, without the tag of a call             |
| `foreign_call`   | a call of another protocol: `<tool_call>` or JSON beside tags, `<code>`     |
|                  | beside tool calls                                                           |
| `written_output` | the output of a program itself: `<interpreter>`, `<tool_response>`, a fence |
|                  | of `output`                                                                 |
| `half_tag`       | one of the two tags of a call, in a turn that makes no call                 |

For a protocol of another name, both forms of a call count as foreign.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from retool_env.protocol import CODE_CLOSE, CODE_OPEN, RESULT_OPEN, ProtocolName, Turn, TurnKind
from retool_env.protocol.calls import (
    CALL_CLOSE,
    CALL_OPEN,
    PYTHON_TAG,
    PYTHONIC_CLOSE,
    PYTHONIC_OPEN,
)
from retool_env.protocol.hermes import RESPONSE_OPEN

Miss = Literal["fence", "foreign_call", "written_output", "half_tag"]
"""How an attempt misses the form of a call; see the module's table."""

MISSES: tuple[Miss, ...] = get_args(Miss)

_FENCE = re.compile(r"(?:`{3,}|~{3,})[ \t]*\{?\.?(?:python3?|py)\b", re.IGNORECASE)
_OUTPUT = re.compile(
    rf"{re.escape(RESULT_OPEN)}|{re.escape(RESPONSE_OPEN)}|(?:`{{3,}}|~{{3,}})[ \t]*output\b"
)
_JSON_CALL = re.compile(r"\{\s*\"name\"\s*:\s*\"[^\"\n]*\"\s*,\s*\"(?:arguments|parameters)\"\s*:")
_CALL_TAGS = (CALL_OPEN, CALL_CLOSE, PYTHONIC_OPEN, PYTHONIC_CLOSE, PYTHON_TAG)
_CALL_TAG = re.compile("|".join(map(re.escape, _CALL_TAGS)))
_CODE_TAG = re.compile(f"{CODE_OPEN}|{CODE_CLOSE}")
_CODE_BLOCK = re.compile(f"{CODE_OPEN}.*?{CODE_CLOSE}", re.DOTALL)


def missed_attempts(text: str, turn: Turn, protocol: ProtocolName) -> set[Miss]:
    r"""Find the attempts of one turn that miss the form of a call.

    Args:
        text: The text of the turn.
        turn: The same turn, parsed.
        protocol: The name of the protocol that the turn was parsed by.

    Example:
        >>> from retool_env.protocol import parse_turn
        >>> text = "```python\nprint(1)\n```"
        >>> missed_attempts(text, parse_turn(text), "tags")
        {'fence'}
    """
    calls = turn.kind is TurnKind.CODE
    prose = text[: turn.start if calls else turn.end]
    found: set[Miss] = set()
    own = {"tags": _CODE_TAG, "hermes": _CALL_TAG}.get(protocol)
    if not calls and own and (tag := own.search(prose)):
        found.add("half_tag")
        if protocol == "hermes":
            prose = prose[: tag.start()]  # the call is cut: its JSON is not of another protocol
    foreign = {
        "tags": (_CALL_TAG, _JSON_CALL),
        "hermes": (_CODE_BLOCK, _JSON_CALL),
    }.get(protocol, (_CALL_TAG, _CODE_BLOCK, _JSON_CALL))
    if any(form.search(prose) for form in foreign):
        found.add("foreign_call")
    if _FENCE.search(prose):
        found.add("fence")
    # A turn of tool calls may go on behind its call.
    if _OUTPUT.search(prose + text[turn.start : turn.end].partition(CALL_CLOSE)[2]):
        found.add("written_output")
    return found
