"""Span and Transcript: the one record of an episode, and its loss mask.

A transcript is a sequence of frozen spans, each with one author. Invariants, checked by `check_transcript`:

- the spans' token ids, joined, are exactly what the model saw; text is never tokenised again;
- the loss mask is 1 exactly on tokens that the model sampled, and each of those has a log-prob;
- environment spans, prompt and interpreter text alike, carry no log-probs.

Masks, metrics, viewers and training rows are derived from it. Nothing else stores the episode.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retool_env.execution import Execution, Outcome
from retool_env.files import read_lines
from retool_env.problem import Problem
from retool_env.protocol import PROTOCOLS, ProtocolName
from retool_env.protocol.program import Form, read_one_fence, read_program
from retool_env.protocol.turn import Turn, TurnKind, TurnProtocol
from retool_env.provenance import REVISION
from retool_env.tokens import Runs

Author = Literal["prompt", "model", "env"]

FORMAT = 3
"""Version of the form in which a transcript is written.

| version | what differs from the version before it                                                |
|---------|----------------------------------------------------------------------------------------|
| 1       | it does not name its version, and has no `revision`: its transcripts are of revision 1 |
| 2       | `format` and `revision`                                                                |
| 3       | `form` of a span with a result: how its program was read. Without it, the program is   |
|         | read as before: out of one fence at its beginning (`fenced`), or as written (`plain`)  |
|         | `weight_runs` of a span, where the weights changed while it was sampled                |
"""


class StopReason(enum.StrEnum):
    """Why an episode ended. A closed set; each is either a termination or a truncation."""

    ANSWERED = "answered"
    """The model gave an answer."""
    STOPPED = "stopped"
    """The model's turn was empty: it had nothing more to say, and gave no answer."""
    VOID_TURN = "void_turn"
    """A turn held neither a code block nor an answer, and the rules end the episode there."""
    CALL_LIMIT = "call_limit"
    """The last allowed call was spent, its result was shown, and the next turn was no answer."""
    TOKEN_BUDGET = "token_budget"
    CHARACTER_BUDGET = "character_budget"
    TIME_BUDGET = "time_budget"
    CANCELLED = "cancelled"
    """Cut from outside, by a deadline say. If the model had not written anything yet, it is not scored."""
    INFRASTRUCTURE = "infrastructure_failure"
    """The sandbox, not the program, failed. Such an episode is not scored and never trained on."""

    @property
    def terminated(self) -> bool:
        """Whether the episode ended by its own rules, rather than cut from outside."""
        return self in (self.ANSWERED, self.STOPPED, self.VOID_TURN, self.CALL_LIMIT)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the transcript with one author."""

    author: Author
    """Who wrote it."""
    text: str
    """Its text. Where there are token ids: their decoding, without a final end-of-sequence token."""
    token_ids: tuple[int, ...] | None = None
    """Its tokens, where a tokenizer was used."""
    logprobs: tuple[float, ...] | None = None
    """Natural-log probability of each token under the distribution it was sampled from; model spans only."""
    surplus: int = 0
    """Number of characters after the closing tag that came with the token that completed it. Kept, since the model
    saw them; never executed or graded."""
    execution: Execution | None = None
    """On an environment span that shows a program's result: that result, its output cut as shown."""
    seconds: float = dataclasses.field(default=0.0, compare=False)
    """Wall-clock seconds that it took to write it (generation, execution)."""
    weight_version: int | None = None
    """On a model span: the optimizer step whose weights sampled its first token, where a policy with weights did."""
    trained_logprobs: tuple[float, ...] | None = None
    """On a model span, where a trainer was trained on it: the log-prob of each token in its first pass over the episode."""
    form: Form | None = None
    """On an environment span that shows a program's result: how that program was read. `None` in records
    from before format 3."""
    weight_runs: Runs = ()
    """On a model span that was sampled with several weights, one after the other: the version of each token,
    run-length, `weight_version` first. Empty where all its tokens have that one; a file then leaves it out."""

    @property
    def weights(self) -> Runs:
        """The weight versions of its tokens, run-length; none where no policy with weights sampled it."""
        if self.weight_runs or self.weight_version is None:
            return self.weight_runs
        return ((self.weight_version, len(self.token_ids or ())),)


@dataclass(frozen=True)
class Call:
    """One use of the interpreter."""

    program: str
    """What was to be run."""
    execution: Execution
    """What came of it."""
    position: int
    """Characters of the response before the opening tag of the code block or call."""
    form: Form
    """How the program was read (`retool_env.protocol.program`): as written, from a fence, or mended and by which
    rule; `unread` where the call holds none."""

    @property
    def ok(self) -> bool:
        """Whether the program ran without error."""
        return self.execution.outcome is Outcome.OK


@dataclass(frozen=True, slots=True)
class Transcript:
    """An episode, finished or not."""

    problem: Problem
    spans: tuple[Span, ...]
    interpreter: bool = True
    """Whether the model could run code."""
    stop_reason: StopReason | None = None
    """Why it ended; `None` while it goes on."""
    answer: str | None = None
    """The content of the answer tag or, of a tool-calling model, of the last box, as written."""
    correct: bool | None = None
    """Whether the answer is mathematically equal to the problem's; `None` while not graded."""
    weight_version: int | None = None
    """The optimizer step whose weights its first turn was sampled with, where a policy with weights did."""
    trained_version: int | None = None
    """The optimizer step whose weights were trained on it, where a trainer did: later than the above by its staleness."""
    reward: float | None = None
    """Earned once, at the end; `None` while it goes on, after an infrastructure failure, and if it never began."""
    protocol: ProtocolName = "tags"
    """How its turns are to be read."""
    revision: int = REVISION
    """The revision of the environment that it was made in (`retool_env.REVISION`)."""

    @property
    def scored(self) -> bool:
        """Whether it says anything of the model: not after an infrastructure failure, nor if it was cut before it began."""
        unbegun = self.stop_reason is StopReason.CANCELLED and not self.response
        return self.stop_reason is not StopReason.INFRASTRUCTURE and not unbegun

    @property
    def text(self) -> str:
        """All of it, as text: the Gymnasium observation."""
        return "".join(span.text for span in self.spans)

    @property
    def response(self) -> tuple[Span, ...]:
        """The spans after the prompt."""
        return self.spans[1:]

    @property
    def response_text(self) -> str:
        """What stands after the prompt, as text."""
        return "".join(span.text for span in self.response)

    @property
    def prompt_ids(self) -> list[int]:
        """Token ids of the prompt, shape `(P,)`."""
        return _joined(self.spans[:1])

    @property
    def completion_ids(self) -> list[int]:
        """Token ids after the prompt, the interpreter's included, shape `(T,)`."""
        return _joined(self.response)

    @property
    def loss_mask(self) -> list[int]:
        """1 where the model sampled the token and 0 where the environment wrote it, shape `(T,)`."""
        return [int(span.author == "model") for span in self.response for _ in _ids(span)]

    @property
    def logprobs(self) -> list[float]:
        """Sampling log-probs, shape `(T,)`; 0.0, which means nothing, where the mask is 0."""
        return [p for span in self.response for p in span.logprobs or (0.0,) * len(_ids(span))]

    @property
    def turns(self) -> list[Turn]:
        """The model's turns, parsed."""
        protocol = self._turn_protocol()
        turns = [protocol.parse(span.text) for span in self.spans if span.author == "model"]
        last = self.spans[-1]
        if self.stop_reason is StopReason.TOKEN_BUDGET and last.author == "model":
            # It was cut, and so is void, whatever stands in it.
            turns[-1] = Turn(TurnKind.VOID, "", len(last.text), len(last.text))
        return turns

    @property
    def calls(self) -> list[Call]:
        """The programs that the model wanted run, with what came of each, in order."""
        calls: list[Call] = []
        protocol = self._turn_protocol()
        position, said, said_at = 0, None, 0
        for span in self.response:
            if span.author == "model":
                said, said_at = span.text, position
            elif span.execution is not None and said is not None:
                read = read_one_fence if span.form is None else read_program
                turn = protocol.parse(said, read=read)
                form = span.form or turn.form or "unread"
                at = said_at + turn.start
                calls.append(Call(turn.content, span.execution, at, form))
            position += len(span.text)
        return calls

    def _turn_protocol(self) -> TurnProtocol:
        # To read a turn, it is all the same whether programs shared a process.
        return PROTOCOLS[self.protocol](self.interpreter, False, False)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; `from_json` is its inverse."""
        record: dict[str, Any] = {"format": FORMAT}
        record |= dataclasses.asdict(dataclasses.replace(self, problem=None))  # type: ignore[arg-type]  # it is written below
        for span in record["spans"]:
            if not span["weight_runs"]:
                del span["weight_runs"]
        problem = self.problem
        record["problem"] = {
            "id": problem.id,
            "question": problem.question,
            "answer": problem.answer,
            "metadata": dict(problem.metadata),
        }
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Transcript:
        """Rebuild a transcript from `to_json`'s values, those of older versions too.

        Raises:
            ValueError: If they were written by a newer version, or in a protocol that is not
                registered.
        """
        record = {"revision": 1, **record}
        version = record.pop("format", 1)
        if version not in range(1, FORMAT + 1):
            raise ValueError(
                f"format {version!r} is not known here, only 1 to {FORMAT}: a newer retool-env wrote it"
            )
        protocol = record.get("protocol", "tags")
        if protocol not in [*PROTOCOLS]:
            known = ", ".join(PROTOCOLS)
            raise ValueError(f"the protocol {protocol!r:.60} is unknown; registered are {known}")
        spans = tuple(_span_from_json(span) for span in record["spans"])
        reason = record["stop_reason"]
        return cls(
            **{
                **record,
                "problem": Problem(**record["problem"]),
                "spans": spans,
                "stop_reason": None if reason is None else StopReason(reason),
            }
        )


def _ids(span: Span) -> tuple[int, ...]:
    if span.token_ids is None:
        raise ValueError(
            "this transcript has no token ids (it was made of text), so it can't be trained on"
        )
    return span.token_ids


def _joined(spans: Iterable[Span]) -> list[int]:
    ids: list[int] = []
    for span in spans:
        ids += _ids(span)
    return ids


def _length(values: tuple[float, ...] | None) -> int | None:
    return None if values is None else len(values)


def _span_from_json(record: dict[str, Any]) -> Span:
    execution = record["execution"]
    if execution is not None:
        execution = Execution(**{**execution, "outcome": Outcome(execution["outcome"])})
    tuples = {
        key: None if record.get(key) is None else tuple(record[key])
        for key in ("token_ids", "logprobs", "trained_logprobs")
    }
    runs = record.get("weight_runs", ())
    pairs = isinstance(runs, list | tuple) and all(
        isinstance(run, list | tuple) and len(run) == 2 for run in runs
    )
    if not pairs:
        raise ValueError(f"weight_runs must be pairs of a version and a length, not {runs!r:.60}")
    tuples["weight_runs"] = tuple(tuple(run) for run in runs)
    return Span(**{**record, **tuples, "execution": execution})


def check_transcript(transcript: Transcript) -> None:
    """Check the invariants that training relies on (see the module's docstring).

    Raises:
        ValueError: Naming the span and what is wrong with it.
    """
    spans = transcript.spans
    if not spans or spans[0].author != "prompt":
        raise ValueError("a transcript begins with its prompt")
    with_ids = spans[0].token_ids is not None
    for index, span in enumerate(spans):
        at = f"span {index} ({span.author})"
        if index and span.author == "prompt":
            raise ValueError(f"{at}: only the first span is the prompt")
        if index and span.author == spans[index - 1].author:
            raise ValueError(f"{at}: two spans in a row have the same author")
        if (span.token_ids is not None) != with_ids:
            raise ValueError(f"{at}: either every span has token ids, or none")
        if span.author == "model":
            if (span.execution, span.form) != (None, None):
                raise ValueError(f"{at}: a result belongs to the environment's span")
            if _length(span.logprobs) != _length(span.token_ids):
                raise ValueError(f"{at}: each sampled token has one log-prob")
            logprobs = span.logprobs or (0.0,)
            # A sum is not finite where one of them is not; that of finite ones is, short of 1e308.
            if not (math.isfinite(sum(logprobs)) and max(logprobs) <= 1e-4):
                raise ValueError(f"{at}: a log-prob is finite and not above 0")
            if _length(span.trained_logprobs) not in (None, _length(span.token_ids)):
                raise ValueError(f"{at}: a trainer has one log-prob of each sampled token")
            if span.weight_runs and sum(n for _, n in span.weight_runs) != _length(span.token_ids):
                raise ValueError(f"{at}: the lengths of its weight versions sum to its tokens")
            if span.weight_runs and span.weight_runs[0][0] != span.weight_version:
                raise ValueError(f"{at}: its weight version is that of its first token")
        elif (span.logprobs, span.trained_logprobs, span.weight_runs) != (None, None, ()):
            raise ValueError(f"{at}: what the model did not sample has no log-prob, and no weights")
    if not transcript.scored and transcript.reward is not None:
        raise ValueError("an infrastructure failure is not scored, nor what never began")


def write_transcripts(path: str | Path, transcripts: Iterable[Transcript]) -> None:
    """Append transcripts to a file, one JSON object a line.

    Where a writer that was killed has left half a line, it stays a line of its own.
    """
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        for transcript in transcripts:
            file.write(json.dumps(transcript.to_json()).encode() + b"\n")


def read_transcripts(path: str | Path) -> Iterator[Transcript]:
    """Read what `write_transcripts` wrote, or the `episodes.jsonl` of an evaluation.

    Raises:
        ValueError: Naming the file that is not a regular one, or the line that is no transcript.
    """
    for number, line in enumerate(read_lines(path), 1):
        try:
            record = json.loads(line)
            transcript = Transcript.from_json(record.get("transcript", record))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not a transcript ({error!r})") from error
        yield transcript
