"""Span and Transcript: the only record of an episode, and its loss mask.

A transcript is a sequence of frozen spans, each with one author. `check_transcript` checks these
invariants:

- The joined token ids of the spans are exactly the model's context; text is never encoded again.
- The loss mask is 1 exactly on sampled tokens, and each sampled token has a log-prob.
- Prompt and environment spans carry no log-probs.

Masks, metrics, viewers and training rows are derived from the transcript.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retool_env.execution import Execution, Outcome, drop_unset_fault, execution_from_json
from retool_env.files import read_lines
from retool_env.problem import Problem
from retool_env.protocol import PROTOCOLS, ProtocolName
from retool_env.protocol.program import Form, read_one_fence, read_program
from retool_env.protocol.turn import Turn, TurnKind, TurnProtocol
from retool_env.provenance import REVISION
from retool_env.stop_reason import StopReason as StopReason
from retool_env.tokens import Runs

Author = Literal["prompt", "model", "env"]
"""The author of a span."""

FORMAT = 4
"""Version of the file format of transcripts.

| version | change from the version before                                                         |
|---------|----------------------------------------------------------------------------------------|
| 1       | neither `format` nor `revision`: the transcripts are of revision 1                     |
| 2       | adds `format` and `revision`                                                           |
| 3       | adds `form` to a span with a result: the rule by which its program was read. Without   |
|         | `form`, the program is read as before: from a leading fence (`fenced`), or as written  |
|         | (`plain`)                                                                              |
|         | adds `weight_runs` to a span, if the weights changed during its generation             |
| 4       | adds `fault` to an execution, if a fault was ordered for the call; `parent` to a       |
|         | transcript, if the episode goes on from another episode (a fork); `sent` and `apart`   |
|         | to a span, if an API wrote it                                                          |
"""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the transcript with one author."""

    author: Author
    """The author of the text."""
    text: str
    """The text. With token ids, it is their decoding without a final end-of-sequence token."""
    token_ids: tuple[int, ...] | None = None
    """The tokens, shape `(T,)`; `None` in an episode of text actions."""
    logprobs: tuple[float, ...] | None = None
    """The natural log-prob of each token under the sampling distribution, shape `(T,)`; `None` on
    spans that the model did not sample."""
    surplus: int = 0
    """Number of characters after the closing tag that belong to the token which completed the tag.
    They stay, because the model saw them, but they are never executed or graded."""
    execution: Execution | None = None
    """The program's result, its output cut as shown; `None` on spans that show no result."""
    seconds: float = dataclasses.field(default=0.0, compare=False)
    """Wall-clock seconds that the generation or the execution took."""
    weight_version: int | None = None
    """The optimizer step of the weights that sampled the first token; `None` on spans that no
    policy with weights sampled."""
    trained_logprobs: tuple[float, ...] | None = None
    """The log-prob of each token in the trainer's first pass over the episode, shape `(T,)`; `None`
    on spans that no trainer used."""
    form: Form | None = None
    """The rule by which the program of the shown result was read; `None` on spans that show no
    result, and in records before format 3."""
    weight_runs: Runs = ()
    """The weight version of each token, run-length encoded, `weight_version` first, if the weights
    changed during the generation. Empty if they did not; a file then leaves it out."""
    sent: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """Digests of the API's request for this turn: of its settings, then of each message. Empty on
    spans that no API wrote; a file then leaves it out."""
    apart: bool = dataclasses.field(default=False, compare=False)
    """Whether the API kept a reasoning apart from this turn, which no later request shows again. A
    file leaves it out if it is false."""

    @property
    def weights(self) -> Runs:
        """The weight versions of the tokens, run-length encoded; empty without a weight version."""
        if self.weight_runs or self.weight_version is None:
            return self.weight_runs
        return ((self.weight_version, len(self.token_ids or ())),)


@dataclass(frozen=True)
class Call:
    """One use of the interpreter."""

    program: str
    """The program text."""
    execution: Execution
    """The result of the program."""
    position: int
    """Number of characters of the response before the code block or tool call."""
    form: Form
    """The rule by which the program was read (see `retool_env.protocol.program`)."""

    @property
    def ok(self) -> bool:
        """Whether the program ran without error, by the result as shown."""
        return self.execution.outcome is Outcome.OK

    @property
    def faulty(self) -> bool:
        """Whether a fault was injected, so that the shown result is not the program's own."""
        return self.execution.fault is not None and self.execution.fault.injected


@dataclass(frozen=True, slots=True)
class Parent:
    """The episode from which a forked episode goes on. Its problem is the fork's problem."""

    sample: int
    """The number of the parent among the episodes of its problem, from 0."""
    call: int
    """The number of the call at which the fork begins, from 1."""
    arm: str
    """The name of the result that this call got: `"control"` (the true result), the kind of a
    fault, or another arm of a protocol."""
    visible: bool = False
    """Whether only the visible messages are the parent's, because the API does not take its
    reasoning back."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """An episode, finished or unfinished."""

    problem: Problem
    """The problem of the episode."""
    spans: tuple[Span, ...]
    """The prompt, then model and environment spans in turn."""
    interpreter: bool = True
    """Whether the model could run code."""
    stop_reason: StopReason | None = None
    """Why the episode ended; `None` while it goes on."""
    answer: str | None = None
    """The unchanged content of the answer tag or, with tool calls, of the last box; `None` without
    an answer."""
    correct: bool | None = None
    """Whether the answer is mathematically equal to the reference; `None` before grading."""
    weight_version: int | None = None
    """The optimizer step of the weights that sampled the first turn; `None` for policies without
    weights."""
    trained_version: int | None = None
    """The optimizer step of the weights that were trained on the episode: `weight_version` plus the
    staleness. `None` if no trainer used the episode."""
    reward: float | None = None
    """The reward, given once at the end; `None` before the end and for unscored episodes."""
    protocol: ProtocolName = "tags"
    """The protocol of the turns."""
    revision: int = REVISION
    """The revision of the environment that made the episode (`retool_env.REVISION`)."""
    parent: Parent | None = None
    """The episode from which this episode was forked; `None` for an episode of its own."""

    def __repr__(self) -> str:
        """One line, without token ids."""
        from retool_env.transcript_text import as_line

        return as_line(self)

    def __str__(self) -> str:
        """The episode for a reader: `print(transcript)`. Long texts are cut."""
        from retool_env.transcript_text import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        """The episode for a notebook, as HTML without scripts."""
        from retool_env.transcript_text import as_html

        return as_html(self)

    @property
    def scored(self) -> bool:
        """Whether the episode counts for the model.

        It does not after an infrastructure failure, or if it was cut before the first model turn.
        """
        unbegun = self.stop_reason is StopReason.CANCELLED and not self.response
        return self.stop_reason is not StopReason.INFRASTRUCTURE and not unbegun

    @property
    def text(self) -> str:
        """The text of all spans: the Gymnasium observation."""
        return "".join(span.text for span in self.spans)

    @property
    def response(self) -> tuple[Span, ...]:
        """The spans after the prompt."""
        return self.spans[1:]

    @property
    def response_text(self) -> str:
        """The text of the spans after the prompt."""
        return "".join(span.text for span in self.response)

    @property
    def prompt_ids(self) -> list[int]:
        """Token ids of the prompt, shape `(P,)`."""
        return [token for span in self.spans[:1] for token in _ids(span)]

    @property
    def completion_ids(self) -> list[int]:
        """Token ids after the prompt, including the interpreter's tokens, shape `(T,)`."""
        return [token for span in self.response for token in _ids(span)]

    @property
    def loss_mask(self) -> list[int]:
        """1 for a token of the model and 0 for a token of the environment, shape `(T,)`."""
        return [int(span.author == "model") for span in self.response for _ in _ids(span)]

    @property
    def logprobs(self) -> list[float]:
        """Sampling log-probs, shape `(T,)`; a meaningless 0.0 where the loss mask is 0."""
        return [p for span in self.response for p in span.logprobs or (0.0,) * len(_ids(span))]

    @property
    def turns(self) -> list[Turn]:
        """The parsed turns of the model, in order."""
        protocol = self._turn_protocol()
        turns = [protocol.parse(span.text) for span in self.spans if span.author == "model"]
        last = self.spans[-1]
        if self.stop_reason is StopReason.TOKEN_BUDGET and last.author == "model":
            # A turn that the budget cut is void, whatever it holds.
            turns[-1] = Turn(TurnKind.VOID, "", len(last.text), len(last.text))
        return turns

    @property
    def calls(self) -> list[Call]:
        """The model's calls of the interpreter with their results, in order."""
        calls: list[Call] = []
        protocol = self._turn_protocol()
        position, text, start = 0, None, 0
        for span in self.response:
            if span.author == "model":
                text, start = span.text, position
            elif span.execution is not None and text is not None:
                read = read_one_fence if span.form is None else read_program
                turn = protocol.parse(text, read=read)
                form = span.form or turn.form or "unread"
                calls.append(Call(turn.content, span.execution, start + turn.start, form))
            position += len(span.text)
        return calls

    def _turn_protocol(self) -> TurnProtocol:
        # `session` and `display` change the prompt only, not the parser.
        return PROTOCOLS[self.protocol](self.interpreter, False, False)

    def as_shown(self) -> Transcript:
        """The transcript without the records of faults."""
        clean = dataclasses.replace
        runs = ((s, s.execution and clean(s.execution, fault=None)) for s in self.spans)
        return clean(self, spans=tuple(clean(span, execution=run) for span, run in runs))

    def to_json(self) -> dict[str, Any]:
        """The transcript as plain JSON values; `from_json` is the inverse."""
        record = {"format": FORMAT, **dataclasses.asdict(self)}
        for span in record["spans"]:
            for name in ("weight_runs", "sent", "apart"):
                if not span[name]:
                    del span[name]
            drop_unset_fault(span["execution"])
        if record["parent"] is None:
            del record["parent"]
        record["problem"]["metadata"] = dict(self.problem.metadata)
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Transcript:
        """Rebuild a transcript from the values of `to_json`, also in an older format.

        Args:
            record: The JSON object of a transcript.

        Raises:
            ValueError: If a newer version wrote the record, its protocol is not registered, or a
                field has a value of another type.
        """
        record = {"revision": 1, "interpreter": True, **record}
        version = record.pop("format", 1)
        if version not in range(1, FORMAT + 1):
            raise ValueError(
                f"format {version!r} is unknown, only 1 to {FORMAT} are known: a newer retool-env "
                "wrote the transcript, so update retool-env"
            )
        protocol = record.get("protocol", "tags")
        if protocol not in [*PROTOCOLS]:
            known = ", ".join(PROTOCOLS)
            raise ValueError(
                f"the protocol {protocol!r:.60} is unknown; registered are {known}: register it in "
                "retool_env.protocol.PROTOCOLS first"
            )
        spans = tuple(_span_from_json(span) for span in record["spans"])
        reason, parent = record["stop_reason"], record.get("parent")
        for name, kinds in _KINDS.items():
            _check_kind(name, record.get(name), kinds)
        return cls(
            **{
                **record,
                "parent": None if parent is None else Parent(**parent),
                "problem": Problem(**record["problem"]),
                "spans": spans,
                "stop_reason": None if reason is None else StopReason(reason),
            }
        )


def _ids(span: Span) -> tuple[int, ...]:
    if span.token_ids is None:
        raise ValueError(
            "this transcript has no token ids (its actions were text), so it can't be trained on: "
            "sample it with a policy of token ids"
        )
    return span.token_ids


def _length(values: tuple[float, ...] | None) -> int | None:
    return None if values is None else len(values)


_NUMBER = (int, float)
_KINDS: dict[str, tuple[type, ...]] = {
    **{"answer": (str, type(None)), "correct": (bool, type(None))},
    **{"reward": (*_NUMBER, type(None)), "interpreter": (bool,)},
}
_SPAN_KINDS: dict[str, tuple[type, ...]] = {"text": (str,), "surplus": (int,), "seconds": _NUMBER}
"""The types of fields that every reader computes with or shows."""


def _check_kind(name: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        raise ValueError(f"{name} has the wrong value {value!r:.60}")


def _span_from_json(record: dict[str, Any]) -> Span:
    execution = execution_from_json(record["execution"])
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
    tuples["sent"] = tuple(record.get("sent", ()))
    for name, kinds in _SPAN_KINDS.items():
        _check_kind(f"{name} of a span", record.get(name, 0), kinds)
    return Span(**{**record, **tuples, "execution": execution})


def check_transcript(transcript: Transcript) -> None:
    """Check the invariants that training relies on (see the module's docstring).

    Raises:
        ValueError: If an invariant is violated. The message names the span and the fault.
    """
    spans = transcript.spans
    if not spans or spans[0].author != "prompt":
        raise ValueError("a transcript must begin with its prompt")
    with_ids = spans[0].token_ids is not None
    for index, span in enumerate(spans):
        at = f"span {index} ({span.author})"
        if index and span.author == "prompt":
            raise ValueError(f"{at}: only the first span may be a prompt")
        if index and span.author == spans[index - 1].author:
            raise ValueError(f"{at}: two spans in a row must not have the same author")
        if (span.token_ids is not None) != with_ids:
            raise ValueError(f"{at}: either every span has token ids, or no span has")
        if span.author == "model":
            if (span.execution, span.form) != (None, None):
                raise ValueError(f"{at}: a result belongs to the environment's span")
            if _length(span.logprobs) != _length(span.token_ids):
                raise ValueError(f"{at}: each sampled token must have one log-prob")
            logprobs = span.logprobs or (0.0,)
            # The sum is finite exactly if every log-prob is: finite ones never add up to 1e308.
            if not (math.isfinite(sum(logprobs)) and max(logprobs) <= 1e-4):
                raise ValueError(f"{at}: a log-prob must be finite and not above 0")
            if _length(span.trained_logprobs) not in (None, _length(span.token_ids)):
                raise ValueError(f"{at}: trained_logprobs must have one log-prob per sampled token")
            if span.weight_runs and sum(n for _, n in span.weight_runs) != _length(span.token_ids):
                raise ValueError(f"{at}: the lengths of weight_runs must sum to its tokens")
            if span.weight_runs and span.weight_runs[0][0] != span.weight_version:
                raise ValueError(f"{at}: weight_version must be the version of its first token")
        elif (span.logprobs, span.trained_logprobs, span.weight_runs) != (None, None, ()):
            raise ValueError(
                f"{at}: a span that the model did not sample has no log-probs and no weights"
            )
    if not transcript.scored and transcript.reward is not None:
        raise ValueError("an unscored episode (infrastructure failure, cut at once) has no reward")


def write_transcripts(path: str | Path, transcripts: Iterable[Transcript]) -> None:
    """Append transcripts to a file, one JSON object per line.

    If a killed writer left half a line, this line is closed first.

    Args:
        path: The file; it is created if it does not exist.
        transcripts: The transcripts.
    """
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        for transcript in transcripts:
            file.write(json.dumps(transcript.to_json()).encode() + b"\n")


def read_transcripts(path: str | Path) -> Iterator[Transcript]:
    """Read a file of `write_transcripts`, or the `episodes.jsonl` of an evaluation.

    Args:
        path: The file.

    Raises:
        ValueError: If the path is not a regular file, or a line does not hold a transcript. The
            message names the file and the line.
    """
    for number, line in enumerate(read_lines(path), 1):
        try:
            record = json.loads(line)
            transcript = Transcript.from_json(record.get("transcript", record))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not a transcript ({error!r})") from error
        yield transcript
