r"""Verification of a cold start's traces: their format, then their answer (ReTool, section 2.2).

A trace is dropped for the first of these that holds:

| dropped as           | because                                                                                   |
|----------------------|-------------------------------------------------------------------------------------------|
| refused              | the API would not answer this one, too long or against its rules, but did answer others     |
| unfinished           | the episode ended without an answer: a void turn, or a limit of calls, tokens, characters |
| stray tag            | a turn has other tags than those of its one code block or its one answer                  |
| text after answer    | a trace that was rewritten already goes on behind its answer                              |
| no code              | it runs no program                                                                        |
| empty block          | a code block holds no program                                                             |
| no single box        | the answer has no `\boxed{}`, or several                                                  |
| tag in output        | a program printed a tag, so that who wrote what can't be told from the text               |
| last program failed  | the answer does not rest on a program that ran                                            |
| contradiction        | a result that was made up has other values than the real one                              |
| wrong answer         | it is not equal to the known one                                                          |

The paper keeps contradictions, as it runs nothing again. Here they go, unless told otherwise: the text behind such a result
speaks of values that are not there, and would teach a model to overlook what its interpreter says. A program before the last one
may have failed: an error that is mended is worth learning from.
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
"""Who wrote what of a response, in order."""


@dataclass(frozen=True)
class Drop:
    """Why a trace is dropped."""

    reason: str
    """One of the module's table."""
    detail: str = ""
    """Where, and what is wrong."""


def verify(
    transcript: Transcript, said: Parts = (), keep_contradictions: bool = False
) -> Drop | None:
    """Why a trace is dropped; `None` if it is not.

    Args:
        transcript: A finished episode, its answer graded.
        said: Of a trace that was rewritten already: what it was before its programs ran.
        keep_contradictions: Whether a result that was made up may differ from the real one.
    """
    if transcript.stop_reason is not StopReason.ANSWERED:
        return Drop("unfinished", str(transcript.stop_reason))
    parts = written(transcript)
    for number, text in enumerate((text for author, text in parts if author == "model"), 1):
        kind = parse_turn(text).kind
        if re.findall(r"</?(?:code|interpreter|answer)>", text) != [f"<{kind}>", f"</{kind}>"]:
            return Drop("stray tag", f"turn {number}")
    if said and (behind := said[-1][1][parse_turn(said[-1][1]).end :].strip()):
        return Drop("text after answer", behind)
    calls = [call.execution for call in transcript.calls]
    if not calls:
        return Drop("no code")
    if EMPTY_PROGRAM in calls:
        return Drop("empty block", f"block {calls.index(EMPTY_PROGRAM) + 1}")
    answer = transcript.answer or ""
    if answer.count(r"\boxed") != 1 or not (extract_boxed(answer) or "").strip():
        return Drop("no single box", answer)
    if authors("".join(text for _, text in parts)) != parts:
        return Drop("tag in output")
    if calls[-1].outcome is not Outcome.OK:
        return Drop("last program failed", calls[-1].error)
    for number, (made_up, real) in enumerate(results(transcript, said), 1):
        if not (keep_contradictions or agrees(made_up, real)):
            detail = f"block {number}: {_inside(made_up)!r}, and really {_inside(real.text)!r}"
            return Drop("contradiction", detail)
    return None if transcript.correct else Drop("wrong answer", answer)


def written(transcript: Transcript) -> list[tuple[Author, str]]:
    """Who wrote what of a response, without what a token held behind a closing tag."""
    return [
        (span.author, span.text[: len(span.text) - span.surplus]) for span in transcript.response
    ]


def results(transcript: Transcript, said: Parts) -> list[tuple[str, Span]]:
    """Each result that was made up, with the span of the real one."""
    made_up = [text for author, text in said if author == "env"]
    real = [span for span in transcript.response if span.author == "env"]
    return list(zip(made_up, real, strict=False))  # an episode may end before the trace does


def agrees(made_up: str, real: Span) -> bool:
    """Whether the text that was written behind one result can stand behind another.

    They have the same words, signs and numbers in the same order, whatever the space between. Decimal numbers may be rounded or
    cut: they agree if they differ by less than a unit in the last place of the one with fewer places. Of an error only the
    kind must be the same (`NameError`), since nobody can know how the sandbox words it.

    Args:
        made_up: A result in its tags.
        real: The environment's, of a program that ran.
    """
    said, execution = _inside(made_up), real.execution
    if execution is not None and execution.outcome is not Outcome.OK:
        last = (said.splitlines() or [""])[-1]
        return last.strip().partition(":")[0] == execution.error.partition(":")[0]
    ours, theirs = _TOKEN.findall(_inside(real.text)), _TOKEN.findall(said)
    return len(ours) == len(theirs) and all(map(_same, ours, theirs))


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
    # The exponent of what is not finite would be text.
    return abs(a - b) < Decimal((0, (1,), places))  # type: ignore[arg-type]  # of digits that were read
