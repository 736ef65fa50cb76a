"""The row of one episode: what a list of thousands of episodes shows and filters.

A row is a flat JSON object. It is made from the record's line once and then kept in a cache, so a
change of its fields or of their meaning needs a new `retool_env.evaluation.view.index.VERSION`.
"""

from __future__ import annotations

import json
import math
from typing import Any

from retool_env.evaluation.rows import clean
from retool_env.evaluation.runs import Place
from retool_env.execution import Execution, Outcome
from retool_env.protocol import PROTOCOLS, TurnKind
from retool_env.protocol.program import Program
from retool_env.stop_reason import StopReason
from retool_env.transcript import Transcript

MOST_ANSWER, MOST_QUESTION = 80, 120
"""The largest numbers of characters of an answer and of a question in a row."""


FIELDS = {
    *("address", "problem", "sample", "protocol", "arm", "parent", "call", "step", "right", "stop"),
    *("calls", "failed", "errors", "faults", "void", "turns", "tokens", "reward", "answer"),
    *("question", "version", "trained"),
}
"""The fields of a row."""


def make_row(location: Place, transcript: Transcript) -> dict[str, Any]:
    """The row of an episode, as plain JSON values.

    Args:
        location: The place of the episode in its run.
        transcript: The episode; its token ids are only counted.
    """
    executions = [span.execution for span in transcript.spans if span.execution is not None]
    failed = [execution for execution in executions if execution.outcome is not Outcome.OK]
    faults = [e.fault.kind for e in executions if e.fault is not None and e.fault.injected]
    turns = [span for span in transcript.spans if span.author == "model"]
    parent = transcript.parent
    forked = parent is not None and location.parent is None  # a fork outside of a benchmark
    row = {
        "address": location.address,
        "problem": location.problem,
        "sample": location.sample,
        "protocol": location.protocol,
        "arm": parent.arm if forked and parent else location.arm,
        "parent": parent.sample if forked and parent else location.parent,
        "call": parent.call if forked and parent else location.call,
        "step": location.step,
        "right": transcript.correct,
        "stop": None if transcript.stop_reason is None else str(transcript.stop_reason),
        "calls": len(executions),
        "failed": len(failed),
        "errors": list(dict.fromkeys(map(error_name, failed))),
        "faults": list(dict.fromkeys(faults)),
        "void": _void_turns(transcript),
        "turns": len(turns),
        "tokens": _sampled(transcript),
        "reward": transcript.reward,
        "answer": _short(transcript.answer, MOST_ANSWER),
        "question": _short(transcript.problem.question, MOST_QUESTION),
        "version": transcript.weight_version,
        "trained": transcript.trained_version is not None,
    }
    return finite(clean(row))


def error_name(execution: Execution) -> str:
    """The name of a failed call's error: the class of its exception, or its outcome.

    Example:
        >>> error_name(Execution(Outcome.RUNTIME_ERROR, "", "ZeroDivisionError: division by zero"))
        'ZeroDivisionError'
        >>> error_name(Execution(Outcome.TIMEOUT, "", "time limit: more than 5 s"))
        'timeout'
    """
    return execution.exception or str(execution.outcome)


def _void_turns(transcript: Transcript) -> int:
    """The number of void turns. Programs are not compiled: only the kinds of the turns count."""
    protocol = PROTOCOLS[transcript.protocol](transcript.interpreter, False, False)
    texts = [span.text for span in transcript.spans if span.author == "model"]
    void = [protocol.parse(text, read=_unread).kind is TurnKind.VOID for text in texts]
    cut = transcript.stop_reason is StopReason.TOKEN_BUDGET
    if void and cut and transcript.spans[-1].author == "model":
        void[-1] = True  # as in `Transcript.turns`
    return sum(void)


def _unread(written: str) -> Program:
    return Program(written, "plain")


def _sampled(transcript: Transcript) -> int | None:
    """The number of sampled tokens; `None` for an episode of text actions."""
    sampled = [span.token_ids for span in transcript.spans if span.author == "model"]
    known = [ids for ids in sampled if ids is not None]
    return None if len(known) < len(sampled) else sum(map(len, known))


def _short(text: object, most: int) -> str | None:
    if text is None:
        return None
    shown = str(text)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def finite(value: Any) -> Any:
    """A value without NaN and infinities, which JSON does not have: `None` in their places.

    Example:
        >>> finite({"a": [1.5, float("nan")]})
        {'a': [1.5, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value


def to_json(value: Any) -> str:
    """The JSON text of a value, in ASCII; `None` in the place of NaN and infinities.

    Args:
        value: The value. Lone halves of surrogate pairs are written as they were read.
    """
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), separators=(",", ":"), allow_nan=False)
