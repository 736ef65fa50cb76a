"""A scored transcript, read once for all figures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from retool_env.metrics.attempts import Miss, missed_attempts
from retool_env.protocol import TurnKind, is_empty_program
from retool_env.protocol.turn import Turn
from retool_env.transcript import Call, Span, Transcript


@dataclass(frozen=True)
class ScoredEpisode:
    """A scored transcript, with the parts that several figures ask for."""

    transcript: Transcript
    """The transcript."""

    @property
    def problem(self) -> str:
        """The id of the problem."""
        return self.transcript.problem.id

    @property
    def right(self) -> bool:
        """Whether the answer is right."""
        return bool(self.transcript.correct)

    @cached_property
    def calls(self) -> list[Call]:
        """The programs with their results, in order."""
        return self.transcript.calls

    @cached_property
    def turns(self) -> list[Turn]:
        """The model's turns, parsed."""
        return self.transcript.turns

    @cached_property
    def misses(self) -> set[Miss]:
        """The ways in which its attempts miss the form of a call."""
        protocol = self.transcript.protocol
        spans = [span for span in self.transcript.spans if span.author == "model"]
        found: set[Miss] = set()
        for span, turn in zip(spans, self.turns, strict=True):
            found |= missed_attempts(span.text, turn, protocol)
        return found

    @cached_property
    def attempted(self) -> bool:
        """Whether the model attempted a call in any form."""
        return bool(self.misses) or any(t.kind is TurnKind.CODE for t in self.turns)

    @cached_property
    def well_formed(self) -> bool:
        """Whether it has a call that can be read and holds a program, run or not."""
        if any(call.form != "unread" and not is_empty_program(call.program) for call in self.calls):
            return True
        # A call beyond the limit is not run, so it is not among the calls.
        last = self.turns[-1:] if self.transcript.spans[-1].author == "model" else []
        return any(
            turn.kind is TurnKind.CODE and not turn.error and not is_empty_program(turn.content)
            for turn in last
        )

    @cached_property
    def ran(self) -> bool:
        """Whether a call ran without error."""
        return any(call.ok for call in self.calls)

    @property
    def results(self) -> list[Span]:
        """The spans that show a result, one for each call."""
        return [span for span in self.transcript.response if span.execution is not None]
