r"""Verification of a cold start's traces: their format, then their answer (ReTool, section 2.2).

A trace is dropped for the first of these reasons that holds:

| dropped as          | reason                                                                   |
|---------------------|--------------------------------------------------------------------------|
| refused             | the API refused this line for its length or content, but not others     |
| unfinished          | the episode ended by a void turn or a limit, without an answer           |
| stray tag           | a turn has tags beside the tags of its only code block or answer         |
| text after answer   | a rewritten trace goes on behind its answer                              |
| no code             | the trace runs no program                                                |
| empty block         | a code block holds no program                                            |
| no single box       | the answer has no `\boxed{}`, or several                                 |
| tag in output       | a program printed a tag, so that the text does not tell the authors      |
| last program failed | the answer does not rest on a program that ran                           |
| contradiction       | a made-up result has other values than the real result                   |
| wrong answer        | the answer does not equal the known answer                               |

The paper keeps contradictions, since it does not run the programs again. Here they are dropped by
default: the text behind a made-up result names values that the real result lacks, and would teach a
model to ignore its interpreter. Programs before the last may fail: an error that is repaired is
worth learning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from agents.traces.scripted import authors
from retool_env.execution import Outcome
from retool_env.grading import extract_boxed
from retool_env.protocol.result import EMPTY_PROGRAM
from retool_env.protocol.tags import RESULT_CLOSE, RESULT_OPEN, parse_turn
from retool_env.transcript import Author, Span, StopReason, Transcript

Parts = Sequence[tuple[Author, str]]
"""The parts of a response in order, with their authors."""


@dataclass(frozen=True)
class Drop:
    """The reason why a trace is dropped."""

    reason: str
    """A name in the module's table."""
    detail: str = ""
    """The place in the trace, and the text that is wrong."""


def verify(
    transcript: Transcript, parts: Parts = (), keep_contradictions: bool = False
) -> Drop | None:
    """The reason why a trace is dropped; `None` if it is not.

    Args:
        transcript: A finished episode with a graded answer.
        parts: The parts of a rewritten trace before its programs ran; empty for another trace.
        keep_contradictions: Whether a made-up result may differ from the real result.
    """
    if transcript.stop_reason is not StopReason.ANSWERED:
        return Drop("unfinished", str(transcript.stop_reason))
    response = written(transcript)
    for number, text in enumerate((text for author, text in response if author == "model"), 1):
        kind = parse_turn(text).kind
        if re.findall(r"</?(?:code|interpreter|answer)>", text) != [f"<{kind}>", f"</{kind}>"]:
            return Drop("stray tag", f"turn {number}")
    if parts and (behind := parts[-1][1][parse_turn(parts[-1][1]).end :].strip()):
        return Drop("text after answer", behind)
    calls = [call.execution for call in transcript.calls]
    if not calls:
        return Drop("no code")
    if EMPTY_PROGRAM in calls:
        return Drop("empty block", f"block {calls.index(EMPTY_PROGRAM) + 1}")
    answer = transcript.answer or ""
    if answer.count(r"\boxed") != 1 or not (extract_boxed(answer) or "").strip():
        return Drop("no single box", answer)
    if authors("".join(text for _, text in response)) != response:
        return Drop("tag in output")
    if calls[-1].outcome is not Outcome.OK:
        return Drop("last program failed", calls[-1].error)
    for number, (made_up, real) in enumerate(results(transcript, parts), 1):
        if not (keep_contradictions or agrees(made_up, real)):
            detail = f"block {number}: {_inside(made_up)!r}, and really {_inside(real.text)!r}"
            return Drop("contradiction", detail)
    return None if transcript.correct else Drop("wrong answer", answer)


def written(transcript: Transcript) -> list[tuple[Author, str]]:
    """The parts of a response with their authors, without the surplus text behind closing tags."""
    return [
        (span.author, span.text[: len(span.text) - span.surplus]) for span in transcript.response
    ]


def results(transcript: Transcript, parts: Parts) -> list[tuple[str, Span]]:
    """The made-up results of a rewritten trace, with the spans of the real results.

    Args:
        transcript: The episode in which the trace was replayed.
        parts: The parts of the trace before its programs ran.
    """
    made_up = [text for author, text in parts if author == "env"]
    real = [span for span in transcript.response if span.author == "env"]
    return list(zip(made_up, real, strict=False))  # the episode may end before the trace


def agrees(made_up: str, real: Span) -> bool:
    """Whether the text behind a made-up result also fits behind the real result.

    The results must have the same words, signs and numbers in the same order; white space does not
    matter. Decimal numbers may be rounded or cut: they agree if they differ by less than a unit in
    the last place of the number with fewer places. Errors must only be of the same type
    (`NameError`), since nobody can know how the sandbox words them.

    Args:
        made_up: The made-up result with its tags.
        real: The environment's result, of a program that ran.
    """
    text, execution = _inside(made_up), real.execution
    if execution is not None and execution.outcome is not Outcome.OK:
        last = (text.splitlines() or [""])[-1]
        return last.strip().partition(":")[0] == execution.error.partition(":")[0]
    expected, given = _TOKEN.findall(_inside(real.text)), _TOKEN.findall(text)
    return len(expected) == len(given) and all(map(_same, expected, given))


_TOKEN = re.compile(r"\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3})?|[^\W\d]\w*|[^\w\s]")


def _inside(result: str) -> str:
    return result.strip().removeprefix(RESULT_OPEN).removesuffix(RESULT_CLOSE).strip()


def _same(one: str, other: str) -> bool:
    if one == other or not (one[0].isdecimal() and other[0].isdecimal()):
        return one == other
    a, b = Decimal(one), Decimal(other)
    if one.isdecimal() or other.isdecimal():  # a count is exact
        return a == b
    places = max(number.as_tuple().exponent for number in (a, b))
    # Only the exponent of a number that is not finite is text.
    return abs(a - b) < Decimal((0, (1,), places))  # type: ignore[arg-type]  # digits: finite
