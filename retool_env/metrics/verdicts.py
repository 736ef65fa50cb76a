"""Verdicts that a reader should look at: wrong by the rules, though the model may be right.

The grade of an episode is decided by its answer alone, as it should be. A low accuracy then has two
causes, wrong values and missed forms, and the warnings here tell them apart. No warning changes a
grade.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from retool_env.grading import extract_boxed, is_equivalent, is_value
from retool_env.transcript import Transcript

Doubt = Literal["right_not_in_form", "cut_before_answer", "unreadable_answer"]
"""The kind of a warning; see `GradingWarning.kind`."""

DOUBTS: tuple[Doubt, ...] = get_args(Doubt)

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"(?:^|[\s{])[A-Za-z]{2,}(?=[\s:.,])")


@dataclass(frozen=True)
class GradingWarning:
    """A verdict that a reader should look at."""

    kind: Doubt
    """The reason:

    * `right_not_in_form`: the model wrote the right value, but not as the protocol asks. Without an
      answer, this is the last box of its text, or the last number of a text without a box. An
      answer that is a sentence counts if the right value is the only number in it.
    * `cut_before_answer`: a budget or a deadline ended the episode before an answer.
    * `unreadable_answer`: the answer is not a mathematical value, nor a word or two.
    """
    index: int
    """The position of the transcript among all transcripts."""
    problem: str
    """The problem's id."""
    written: str
    """The value or the answer as the model wrote it; empty for a cut episode."""
    gold: str
    """The reference answer."""


def grading_warnings(transcripts: Iterable[Transcript]) -> list[GradingWarning]:
    """List the warnings of finished transcripts, in their order.

    A right episode has no warning, and an episode that is not scored has none either. A wrong one
    may have two.

    Args:
        transcripts: Finished transcripts.

    Raises:
        GraderUnavailable: If the grader's process can't be started.
    """
    return [
        GradingWarning(kind, index, transcript.problem.id, written, transcript.problem.answer)
        for index, transcript in enumerate(transcripts)
        if transcript.scored and not transcript.correct
        for kind, written in _doubts(transcript)
    ]


def _doubts(transcript: Transcript) -> list[tuple[Doubt, str]]:
    found: list[tuple[Doubt, str]] = []
    answer, reason, gold = transcript.answer, transcript.stop_reason, transcript.problem.answer
    value = _value_of_text(transcript) if answer is None else _value_of_sentence(answer)
    if value and is_equivalent(value, gold):
        found.append(("right_not_in_form", value))
    if answer is None:
        if reason is not None and not reason.terminated:
            found.append(("cut_before_answer", ""))
    elif not is_value(answer):
        found.append(("unreadable_answer", answer))
    return found


def _value_of_text(transcript: Transcript) -> str | None:
    """The last box that the model wrote, or else the last number."""
    text = "\n".join(span.text for span in transcript.spans if span.author == "model")
    if (boxed := extract_boxed(text)) is not None:
        return boxed
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _value_of_sentence(answer: str) -> str | None:
    """The only number of an answer that is a sentence."""
    text = _COMMAND.sub("", answer)
    numbers = _NUMBER.findall(text)
    return numbers[0] if len(numbers) == 1 and _WORD.search(text) else None
