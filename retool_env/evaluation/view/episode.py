"""One episode as the viewers show it: its spans cut into text, programs, answers and results.

The parts of a model's span follow the protocol's own parser. A program is coloured by Pygments, in
*pieces*: pairs of a short token class (`k`, `nb`, …; empty for plain text) and a text. Forks are
the episodes of `retool recover` that go on from this episode, by their call and arm.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pygments.lexers.python import PythonLexer
from pygments.token import STANDARD_TYPES

from retool_env.errors import SettingsError
from retool_env.evaluation.recover.protocols import CONTROL, PARENTS
from retool_env.evaluation.view.index import Index
from retool_env.execution import Execution
from retool_env.protocol import RESULT_CLOSE, RESULT_OPEN, TurnKind
from retool_env.protocol.hermes import RESPONSE_CLOSE, RESPONSE_OPEN
from retool_env.protocol.turn import Turn
from retool_env.transcript import Call, Span, Transcript

MOST_CHARACTERS = 200_000
"""The largest number of characters of a span, and of a text of a call, that a view holds."""
MOST_COLOURED = 20_000
"""The largest number of characters of a program that is coloured."""

Pieces = list[list[str]]
"""Pairs of a token class and a text; the joined texts are the program."""


def episode_view(index: Index, address: str) -> dict[str, Any]:
    """One episode as plain JSON values.

    Args:
        index: The index of the run.
        address: The address of the episode.

    Raises:
        SettingsError: The run has no such episode.
        DataError: The episode's line is damaged, or its file was replaced.
    """
    place, transcript = index.episode(address, tokens=False)
    row, problem = index.row(address), transcript.problem
    parent = transcript.parent
    return {
        "address": address,
        "place": dataclasses.asdict(place),
        "problem": {
            "id": problem.id,
            "question": _cut(problem.question),
            "answer": _cut(problem.answer),
            "metadata": dict(problem.metadata),
        },
        "right": transcript.correct,
        "stop": None if transcript.stop_reason is None else str(transcript.stop_reason),
        "answer": None if transcript.answer is None else _cut(transcript.answer),
        "reward": transcript.reward,
        "protocol": transcript.protocol,
        "revision": transcript.revision,
        "version": transcript.weight_version,
        "trained_version": transcript.trained_version,
        "interpreter": transcript.interpreter,
        "parent": parent and {"address": _parent_address(index, row), **dataclasses.asdict(parent)},
        "forks": forks(index, row),
        "spans": list(_spans(transcript)),
    }


def span_text(index: Index, address: str, span: int, start: int) -> str:
    """The text of a span from a character on.

    Args:
        index: The index of the run.
        address: The address of the episode.
        span: The number of the span, from 0.
        start: The number of characters before the text.

    Raises:
        SettingsError: The run has no such episode, or the episode no such span.
    """
    spans = index.episode(address)[1].spans
    if span >= len(spans):
        raise SettingsError(f"span {span}: {address} has {len(spans)} spans, numbered from 0")
    return spans[span].text[start:]


# --- forks --------------------------------------------------------------------------------------


def forks(index: Index, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The episodes that were forked from an episode, by the call and the arm.

    Only `retool recover` records whose fork an episode is.

    Args:
        index: The index of the run.
        row: The row of the parent.
    """
    if (row["protocol"], row["arm"]) != PARENTS:
        return []
    arms: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for fork in index.rows():
        if (fork["problem"], fork["parent"]) == (row["problem"], row["sample"]):
            arms[fork["call"], fork["arm"]].append(fork)
    return [
        {
            "call": call,
            "arm": arm,
            "right": sum(fork["right"] is True for fork in those),
            "ended": sum(fork["right"] is not None for fork in those),
            "addresses": [fork["address"] for fork in those],
        }
        for (call, arm), those in sorted(arms.items(), key=_control_first)
    ]


def _control_first(item: tuple[tuple[int, str], Any]) -> tuple[int, bool, str]:
    (call, arm), _ = item
    return call, arm != CONTROL, arm


def _parent_address(index: Index, row: Mapping[str, Any]) -> str | None:
    """The address of a fork's parent; `None` where the run does not record or hold it."""
    address = f"{'/'.join(PARENTS)}/{row['problem']}/{row['parent']}"
    known = index.run.kind == "recover" and index.has(address)
    return address if known else None


# --- spans --------------------------------------------------------------------------------------


def _spans(transcript: Transcript) -> Iterator[dict[str, Any]]:
    turns = iter(transcript.turns)
    calls = _calls_by_span(transcript)
    for at, span in enumerate(transcript.spans):
        call = calls.get(at)
        if span.author == "model":
            parts = _model_parts(span, next(turns), calls.get(at + 1))
        elif call is not None:
            parts = _result_parts(span.text)
        else:
            parts = [_Part("text", span.text)]
        yield {
            "author": span.author,
            "text": span.text[:MOST_CHARACTERS],
            "cut": max(len(span.text) - MOST_CHARACTERS, 0),
            "surplus": span.surplus,
            "seconds": span.seconds,
            "tokens": None if span.token_ids is None else len(span.token_ids),
            "parts": list(_part_views(parts)),
            "call": None if call is None else _call_view(call, at, transcript.spans[at - 1]),
        }


def _calls_by_span(transcript: Transcript) -> dict[int, Call]:
    """The calls by the index of the span that shows the result."""
    shown = [at for at, span in enumerate(transcript.spans) if span.execution is not None]
    return dict(zip(shown, transcript.calls, strict=False))


class _Part(NamedTuple):
    """A stretch of a span."""

    kind: str
    """`text`, `program`, `answer` or `result`."""
    text: str
    """The text as recorded."""
    plain: bool = False
    """Whether a program is written in another language around it, such as JSON."""


def _model_parts(span: Span, turn: Turn, call: Call | None) -> list[_Part]:
    text = span.text
    if turn.kind is TurnKind.VOID:
        return [_Part("text", text)]
    kind = "answer" if turn.kind is TurnKind.ANSWER else "program"
    content = turn.content if call is None else call.program
    at = text.find(content, turn.start) if content else -1
    if at < 0:  # the text of the call is not the program, word for word: the whole call
        end = len(text) - span.surplus
        return _between(text, turn.start, min(turn.end, end), kind, plain=True)
    return _between(text, at, at + len(content), kind)


def _result_parts(text: str) -> list[_Part]:
    """The result between its tags; the tags and a chat template's words around it are text."""
    for before, after in ((RESULT_OPEN, RESULT_CLOSE), (RESPONSE_OPEN, RESPONSE_CLOSE)):
        start, end = text.find(before), text.rfind(after)
        if 0 <= start < end:
            return _between(text, start + len(before), end, "result")
    return [_Part("result", text)]


def _between(text: str, start: int, end: int, kind: str, plain: bool = False) -> list[_Part]:
    parts = [_Part("text", text[:start]), _Part(kind, text[start:end], plain)]
    return [part for part in (*parts, _Part("text", text[end:])) if part.text]


def _part_views(parts: list[_Part]) -> Iterator[dict[str, Any]]:
    left = MOST_CHARACTERS
    for part in parts:
        text = part.text[:left]
        left -= len(text)
        if not text:
            return
        view: dict[str, Any] = {"kind": part.kind, "text": text}
        if part.kind == "program":
            view["pieces"] = [["", text]] if part.plain else pieces(text)
        yield view


def _call_view(call: Call, at: int, model: Span) -> dict[str, Any]:
    execution = call.execution
    fault = execution.fault
    verbatim = call.program in model.text
    return {
        "number": at // 2,  # as forks count: a void turn and its notice count as a call
        **_result_view(execution),
        "ok": call.ok,
        "seconds": execution.duration,
        "form": call.form,
        "program": _cut(call.program),
        "pieces": None if verbatim else pieces(_cut(call.program)),
        "fault": fault
        and {
            "kind": fault.kind,
            "injected": fault.injected,
            "real": fault.real and _result_view(fault.real),
        },
    }


def _result_view(execution: Execution) -> dict[str, str]:
    return {
        "outcome": str(execution.outcome),
        "stdout": _cut(execution.stdout),
        "error": _cut(execution.error),
        "traceback": _cut(execution.traceback),
    }


def _cut(text: str) -> str:
    left_out = len(text) - MOST_CHARACTERS
    if left_out <= 0:
        return text
    return f"{text[:MOST_CHARACTERS]}\n[{left_out} more characters are not shown]"


# --- colours ------------------------------------------------------------------------------------

_LEXER = PythonLexer()


def pieces(program: str) -> Pieces:
    """A program in pieces of one token class. Any text is cut; nothing of it is changed.

    Args:
        program: The program. Of a very long program the end is one piece without a class.

    Example:
        >>> pieces("print(1)# one")
        [['nb', 'print'], ['p', '('], ['mi', '1'], ['p', ')'], ['c1', '# one']]
    """
    coloured, rest = program[:MOST_COLOURED], program[MOST_COLOURED:]
    tokens = (
        (_short_class(kind), text) for _, kind, text in _LEXER.get_tokens_unprocessed(coloured)
    )
    groups = itertools.groupby(tokens, key=lambda token: token[0])
    made = [[name, "".join(text for _, text in group)] for name, group in groups]
    return made + [["", rest]] * bool(rest)


def _short_class(kind: Any) -> str:
    """Pygments' short name of a token type, or of the nearest type above it."""
    while kind not in STANDARD_TYPES:
        kind = kind.parent
    return STANDARD_TYPES[kind]
