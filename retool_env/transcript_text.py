"""A transcript for a reader: as plain text, as one line, and as HTML for notebooks.

Both forms are made of the same blocks: the problem, each span with its author, programs and results
set off, and the end. Texts of models and programs are untrusted: control characters are escaped, in
the text form they are indented below headings at the margin, and in the HTML form they are escaped
text without scripts. Long texts are cut in the middle, with a note.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from retool_env.execution import Execution
from retool_env.printable import one_line, printable
from retool_env.problem import Problem
from retool_env.protocol.turn import Turn, TurnKind

MOST_CHARACTERS = 4000
"""The largest number of characters of a block; of a longer text, the middle is cut out."""

Kind = Literal["problem", "prompt", "text", "program", "answer", "result", "failed", "fault", "end"]
"""The content of a block, which chooses its colour in HTML."""


class ShownSpan(Protocol):
    """The parts of a `retool_env.transcript.Span` that a reader sees."""

    @property
    def author(self) -> str:
        """The author."""

    @property
    def text(self) -> str:
        """The text."""

    @property
    def token_ids(self) -> Sequence[int] | None:
        """The tokens, which are only counted."""

    @property
    def execution(self) -> Execution | None:
        """The result that the span shows."""


class ShownTranscript(Protocol):
    """The parts of a `retool_env.transcript.Transcript` that a reader sees."""

    @property
    def problem(self) -> Problem:
        """The problem."""

    @property
    def spans(self) -> Sequence[ShownSpan]:
        """The spans."""

    @property
    def turns(self) -> Sequence[Turn]:
        """The parsed turns of the model."""

    @property
    def stop_reason(self) -> str | None:
        """The reason of the end."""

    @property
    def answer(self) -> str | None:
        """The answer."""

    @property
    def correct(self) -> bool | None:
        """The verdict."""

    @property
    def reward(self) -> float | None:
        """The reward."""


@dataclass(frozen=True)
class Block:
    """A heading and a text of a transcript."""

    kind: Kind
    """The content."""
    heading: str
    """The heading; it holds no line break."""
    text: str = ""
    """The text, printable and cut; empty: the heading says all."""


def as_line(transcript: ShownTranscript) -> str:
    """One line without token ids: the `repr` of a transcript.

    Args:
        transcript: The transcript.
    """
    shown = sum(span.execution is not None for span in transcript.spans)
    values = {
        "problem": one_line(transcript.problem.id),
        "spans": len(transcript.spans),
        "calls": shown,
        "stop_reason": transcript.stop_reason and str(transcript.stop_reason),
        "answer": None if transcript.answer is None else one_line(transcript.answer, 40),
        "correct": transcript.correct,
        "reward": transcript.reward,
    }
    return f"Transcript({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def as_text(transcript: ShownTranscript) -> str:
    """The transcript as plain text: `str` of a transcript.

    Headings stand at the margin and every other line is indented, so no text can pass for a
    heading.

    Args:
        transcript: The transcript.
    """
    lines = []
    for block in _blocks(transcript):
        lines.append(f"── {block.heading}")
        bar = "  │ " if block.kind in ("program", "result", "failed", "fault") else "  "
        lines += [f"{bar}{line}".rstrip() for line in block.text.split("\n") if block.text]
    return "\n".join(lines)


def as_html(transcript: ShownTranscript) -> str:
    """The transcript as an HTML element with inline styles, for light and dark notebooks.

    Args:
        transcript: The transcript.
    """
    inner = "".join(_element(block) for block in _blocks(transcript))
    return f'<div style="max-width:60em;text-align:left">{inner}</div>'


def _blocks(transcript: ShownTranscript) -> Iterator[Block]:
    problem = transcript.problem
    reference = f" · reference answer {one_line(problem.answer)}"
    yield Block("problem", f"problem {one_line(problem.id)}{reference}", _cut(problem.question))
    turns = iter(transcript.turns if transcript.spans else ())
    number = 0
    for span in transcript.spans:
        tokens = "" if span.token_ids is None else _counted(len(span.token_ids))
        if span.author == "prompt":
            yield Block("prompt", f"prompt{tokens}", _cut(span.text))
        elif span.author == "model":
            number += 1
            yield from _turn(f"model, turn {number}{tokens}", span.text, next(turns))
        elif span.execution is None:
            yield Block("text", f"environment{tokens}", _cut(span.text))
        else:
            yield from _result(span.text, span.execution, tokens)
    yield Block("end", _end(transcript))


def _turn(heading: str, text: str, turn: Turn) -> Iterator[Block]:
    """The text of a turn before its call or answer, the call or answer, and the rest."""
    if turn.kind is TurnKind.VOID:
        yield Block("text", f"{heading} · neither a program nor an answer", _cut(text))
        return
    yield Block("text", heading, _cut(text[: turn.start].strip()))
    if turn.kind is TurnKind.CODE:
        yield Block("program", "program", _cut(turn.content.strip("\n") or turn.error))
    else:
        yield Block("answer", "answer", _cut(turn.content))
    if rest := text[turn.end :].strip():
        yield Block("text", "after the closing tag, without effect", _cut(rest))


def _result(text: str, execution: Execution, tokens: str) -> Iterator[Block]:
    kind: Kind = "result" if execution.outcome == "ok" else "failed"
    seconds = f" · {execution.duration:.2f} s" if execution.duration else ""
    heading = f"result: {_outcome(execution)}{seconds}{tokens}"
    yield Block(kind, heading, _cut(text.strip("\n")))
    fault = execution.fault
    if fault is None:
        return
    name = f"fault {one_line(fault.kind)}"
    if not fault.injected:
        yield Block("fault", f"{name} did not take place: the result is the program's own")
    elif fault.real is None:
        yield Block("fault", f"{name} was made in the program's process")
    else:
        real = fault.real
        said = "\n".join(part for part in (real.stdout.strip("\n"), real.error) if part)
        heading = f"{name}: the model did not see the real result: {_outcome(real)}"
        yield Block("fault", heading, _cut(said))


def _counted(tokens: int) -> str:
    return f" · {tokens:,} token{'s' * (tokens != 1)}"


def _outcome(execution: Execution) -> str:
    return str(execution.outcome).replace("_", " ")


def _end(transcript: ShownTranscript) -> str:
    if transcript.stop_reason is None:
        return "not finished"
    answer = "no answer" if transcript.answer is None else f"answer {one_line(transcript.answer)}"
    verdict = {True: "right", False: "wrong", None: "not graded"}[transcript.correct]
    reward = "no reward" if transcript.reward is None else f"reward {transcript.reward:g}"
    return f"end: {transcript.stop_reason} · {answer} · {verdict} · {reward}"


def _cut(text: str) -> str:
    if (surplus := len(text) - MOST_CHARACTERS) <= 0:
        return printable(text)
    half = MOST_CHARACTERS // 2
    note = f"\n[… {surplus:,} characters are not shown …]\n"
    return printable(text[:half]) + note + printable(text[-half:])


# --- HTML ---------------------------------------------------------------------------------------

_COLOURS: dict[Kind, str] = {
    "problem": "128,128,128",
    "prompt": "128,128,128",
    "text": "128,128,128",
    "program": "64,120,220",
    "answer": "130,90,200",
    "result": "46,160,90",
    "failed": "220,80,80",
    "fault": "220,150,30",
    "end": "128,128,128",
}
"""The colour of each kind. The texts keep the notebook's own colour, so they can be read on both
backgrounds; the headings name everything that a colour says."""

_PRE = (
    "margin:0;padding:.3em .6em;white-space:pre-wrap;overflow-wrap:anywhere;max-height:24em;"
    "overflow:auto;color:inherit;font-size:.9em;background:rgba({colour},.1)"
)
_LINE = "border-left:3px solid rgba({colour},.8);margin:.3em 0;padding:0 .6em"


def _element(block: Block) -> str:
    colour = _COLOURS[block.kind]
    heading = f"<code>{html.escape(block.heading)}</code>"  # a notebook leaves code's $ alone
    style = _LINE.format(colour=colour)
    if not block.text:
        return f'<div style="{style}">{heading}</div>'
    text = f'<pre style="{_PRE.format(colour=colour)}">{html.escape(block.text)}</pre>'
    if block.kind == "prompt":
        inner = f"<details><summary>{heading}</summary>{text}</details>"
    else:
        inner = f"{heading}{text}"
    return f'<div style="{style}">{inner}</div>'
