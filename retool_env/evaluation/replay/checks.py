"""Invariants of a recorded episode, checked by driving an `Episode` with its turns and results.

The recorded turns and results go through the rules once more, without model and sandbox. Where the
episode that the rules make differs from the record, the record violates an invariant:

| invariant     | the record must hold                                                           |
|---------------|--------------------------------------------------------------------------------|
| `spans`       | what `check_transcript` demands of ids, log-probs and weight versions          |
| `mask`        | turns and results where the rules put them: the loss mask follows from them    |
| `turns`       | turns that end with their closing tag, and programs read by the recorded form  |
| `results`     | the result of each call, rendered as the rules render it                       |
| `budget`      | at most the tokens and calls that the rules allow                              |
| `stop reason` | the reason for which the rules end the episode here                            |
| `answer`      | the content of the last turn's answer                                          |
| `reward`      | the value of the reward's preset                                               |

Without recorded rules the budgets, the texts of results and the reward are not checked. A fork has
the budget of its parent, which is not known here, so its budgets are not checked. Neither are ends
from outside: a failure, a deadline, a limit of time, a full context.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from retool_env.episode import Episode, RunProgram
from retool_env.evaluation.recorded_rules import RecordedRules
from retool_env.execution import Outcome
from retool_env.need import GradeAnswer
from retool_env.rewards import earned
from retool_env.rules import Rules
from retool_env.transcript import Span, StopReason, Transcript, check_transcript

_FROM_OUTSIDE = {
    StopReason.INFRASTRUCTURE,
    StopReason.CANCELLED,
    StopReason.TIME_BUDGET,
    StopReason.TOKEN_BUDGET,
}
"""Ends that do not follow from the texts of an episode."""

_OF_BUDGETS = {StopReason.CALL_LIMIT, StopReason.CHARACTER_BUDGET, StopReason.VOID_TURN}
"""Ends that follow from the rules' numbers."""


@dataclass(frozen=True)
class Violation:
    """A violated invariant."""

    invariant: str
    """The name of the invariant; see the module."""
    text: str
    """The fault."""
    span: int | None = None
    """The index of the span, from 0 (the prompt); `None` for the whole episode."""

    def __str__(self) -> str:
        where = "" if self.span is None else f"span {self.span}: "
        return f"{self.invariant}: {where}{self.text}"


def check_episode(transcript: Transcript, recorded: RecordedRules) -> list[Violation]:
    """Checks the invariants of a recorded episode.

    Args:
        transcript: The episode.
        recorded: The rules of the episode.

    Returns:
        The violations, in the order of the spans; empty if all invariants hold.
    """
    try:
        check_transcript(transcript)
    except ValueError as error:
        return [Violation("spans", str(error))]
    driven = _Driven(transcript, recorded)
    found = driven.violations()
    if driven.exact:
        found += _budget(transcript, recorded.rules)
    if recorded.known and recorded.reward is not None:
        found += _reward(transcript, recorded.reward)
    return found


class _Driven:
    """An episode that is driven by recorded turns and results."""

    def __init__(self, transcript: Transcript, recorded: RecordedRules) -> None:
        self.transcript = transcript
        self.exact = recorded.known and transcript.parent is None
        self._outside = _FROM_OUTSIDE | (set() if self.exact else _OF_BUDGETS)
        free = {"max_tokens": None, "max_seconds": None, "reward": "paper", "faults": None}
        if not self.exact:
            free |= {"max_calls": None, "max_characters": None, "max_void": None}
        if not recorded.known:
            free |= {"void_turn": "continue"}
        self._rendered = recorded.known
        rules = dataclasses.replace(recorded.rules, **free)
        self._episode = Episode(transcript.problem, rules)

    def violations(self) -> list[Violation]:
        """The first difference between the record and the rules, and the fault of its end."""
        for index, span in enumerate(self.transcript.spans[1:], 1):
            if self._episode.done:
                reason = self._episode.transcript.stop_reason
                return [
                    Violation(
                        "stop reason",
                        f"the rules end the episode before this span: {reason}",
                        index,
                    )
                ]
            step = self._turn if span.author == "model" else self._result
            if found := step(index, span):
                return [found]
        return self._end()

    def _turn(self, index: int, span: Span) -> Violation | None:
        episode, last = self._episode, index == len(self.transcript.spans) - 1
        text = span.text[: len(span.text) - span.surplus]
        exhausted = last and self.transcript.stop_reason is StopReason.TOKEN_BUDGET
        # The form of a translated native call does not follow from its text.
        after = self.transcript.spans[index + 1 : index + 2]
        form = after[0].form if span.sent and after else None
        if episode.need is not None:
            return Violation("mask", "a turn stands where a result belongs", index)
        episode.act(text, exhausted, form=form)
        kept = episode.transcript.spans[index].text
        if kept == text or self.transcript.stop_reason is StopReason.CHARACTER_BUDGET:
            return None
        return Violation(
            "turns", f"the turn ends after {len(kept)} of {len(text)} characters", index
        )

    def _result(self, index: int, span: Span) -> Violation | None:
        episode = self._episode
        if isinstance(episode.need, RunProgram):
            if span.execution is None:
                return Violation("results", "the result of the program is missing", index)
            if span.execution.outcome is Outcome.INFRASTRUCTURE:
                return Violation("results", "a failure of the sandbox was shown", index)
            episode.executed(span.execution, recorded=True)
        if len(episode.transcript.spans) <= index:
            return Violation("mask", "a result stands where a turn belongs", index)
        own = episode.transcript.spans[index]
        if (own.execution is None) != (span.execution is None):
            kinds = ("a notice", "a result")
            there, here = kinds[own.execution is not None], kinds[span.execution is not None]
            return Violation("results", f"{here} stands where {there} belongs", index)
        if span.form is not None and own.form != span.form:
            return Violation("turns", f"the program's form is {own.form}, not {span.form}", index)
        if self._rendered and self._comparable(span) and own.text != span.text:
            return Violation("results", "the text differs from the rendered result", index)
        return None

    def _comparable(self, span: Span) -> bool:
        """Whether the text of a result follows from the record.

        It does not if there was no room to show the result, if a chat template may have rendered
        it, or if an error took a part of the room of an output that is cut in the record.
        """
        execution, limit = span.execution, self._episode.rules.output_characters
        crowded = execution is not None and execution.error and len(execution.stdout) > limit
        plain = span.token_ids is None or self.transcript.protocol == "tags"
        return bool(span.text) and plain and not crowded

    def _end(self) -> list[Violation]:
        episode, recorded = self._episode, self.transcript
        reason, answer = recorded.stop_reason, episode.transcript.answer
        if reason is None or reason in self._outside:
            return []
        if isinstance(episode.need, GradeAnswer):
            episode.graded(bool(recorded.correct))
        own = episode.transcript.stop_reason
        if own != reason:
            words = "the rules let it go on" if own is None else f"the rules end it as {own}"
            return [Violation("stop reason", f"the record says {reason}, but {words}")]
        if answer != recorded.answer:
            return [
                Violation("answer", f"the record has {recorded.answer!r:.80}, not {answer!r:.80}")
            ]
        return []


def _budget(transcript: Transcript, rules: Rules) -> list[Violation]:
    found = []
    calls = sum(span.author == "env" for span in transcript.spans)
    if rules.max_calls is not None and calls > rules.max_calls:
        found.append(
            Violation("budget", f"{calls} calls are more than max_calls={rules.max_calls}")
        )
    tokens = sum(len(span.token_ids or ()) for span in transcript.response)
    if rules.max_tokens is not None and tokens > rules.max_tokens:
        text = f"{tokens} tokens are more than max_tokens={rules.max_tokens}"
        found.append(Violation("budget", text))
    return found


def _reward(transcript: Transcript, preset: str) -> list[Violation]:
    if transcript.stop_reason is None:
        return []
    value = earned(preset, transcript) if transcript.scored else None
    if value == transcript.reward:
        return []
    text = f"the record has {transcript.reward}, but the reward {preset} is {value}"
    return [Violation("reward", text)]
