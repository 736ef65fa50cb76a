"""Episodes whose figures are worked out by hand in the tests of metrics."""

from __future__ import annotations

import dataclasses

from retool_env.metrics.figures import Figure, measure
from retool_env.problems import Problem
from retool_env.protocol.result import EMPTY_PROGRAM
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import Span, StopReason, Transcript

OK = Execution(Outcome.OK, "42\n")
NAME = Execution(Outcome.RUNTIME_ERROR, "", "NameError: name 'a' is not defined")
TYPE = Execution(Outcome.RUNTIME_ERROR, "", "TypeError: 'int' object is not callable")
LATE = Execution(Outcome.TIMEOUT, "", "time limit: the program ran for more than 5 s")
NOTICE = "..."  # the environment's reply to a void turn


def episode(problem, reason, *turns, correct=False, interpreter=True) -> Transcript:
    """A finished episode with the prompt "?".

    A turn is a text, or a pair: a text and the result of its program, or a text and a notice.
    """
    spans = [Span("prompt", "?")]
    for turn in turns:
        if isinstance(turn, str):
            spans.append(Span("model", turn))
        elif isinstance(turn[1], str):
            spans += [Span("model", turn[0]), Span("env", turn[1])]
        else:
            spans += [Span("model", turn[0]), Span("env", turn[1].stdout, execution=turn[1])]
    scored = reason is not StopReason.INFRASTRUCTURE
    return Transcript(
        Problem(id=problem, question="?", answer="42"),
        tuple(spans),
        interpreter,
        reason,
        correct=correct if scored else None,
        reward=(1.0 if correct else -1.0) if scored else None,
    )


def with_ids(transcript: Transcript) -> Transcript:
    """The transcript with token ids: two for each character of the model, one for each other."""
    spans = []
    for span in transcript.spans:
        count = len(span.text) * (2 if span.author == "model" else 1)
        logprobs = (-1.0,) * count if span.author == "model" else None
        spans.append(dataclasses.replace(span, token_ids=tuple(range(count)), logprobs=logprobs))
    return dataclasses.replace(transcript, spans=tuple(spans))


CODE = "<code>a</code>"  # 14 characters
RIGHT, WRONG = "<answer>42</answer>", "<answer>4</answer>"  # 19 and 18
ANSWERED = StopReason.ANSWERED

# The comments: characters; lines of code; calls, successful calls; position of the first call.
DIRECT = episode("a", ANSWERED, RIGHT, correct=True)  # 19; no call
GUESS = episode("a", ANSWERED, WRONG)  # 18; no call
RAN = episode(
    "b", ANSWERED, (f"1234{CODE}", OK), RIGHT, correct=True
)  # 18 + 3 + 19 = 40; 1; 1, 1; 4
STUBBORN = episode("b", ANSWERED, (CODE, NAME), RIGHT, correct=True)  # 14 + 19 = 33; 1; 1, 0; 0
MENDED = episode(  # 17 + 14 + 3 + 19 = 53; 2 + 1, without the blank line; 2, 1; 0
    "c", ANSWERED, ("<code>a\n\nb</code>", NAME), (CODE, OK), RIGHT, correct=True
)
NEVER = episode(
    "c", ANSWERED, (f"12{CODE}", NAME), (CODE, TYPE), WRONG
)  # 16 + 14 + 18 = 48; 2; 2, 0; 2
TWICE = episode(  # 3 * 14 + 3 + 18 = 63; 3; 3, 1; 0
    "d", ANSWERED, (CODE, NAME), (CODE, NAME), (CODE, OK), WRONG
)
EMPTY = episode(  # 13 + 2 = 15; 0; 1, 0; 0
    "e", StopReason.VOID_TURN, ("<code></code>", EMPTY_PROGRAM), "hm"
)
LIMIT = episode(  # 16 + 14 = 30; 2, because the last block did not run; 1, 0; 0
    "f", StopReason.CALL_LIMIT, ("<code>a\nb</code>", LATE), CODE
)
PAUSED = episode(  # 14 + 2 + 3 + 14 + 3 + 19 = 55; 2; 2, 1; 0
    "g", ANSWERED, (CODE, NAME), ("hm", NOTICE), (CODE, OK), RIGHT, correct=True
)
CUT = episode("h", StopReason.CHARACTER_BUDGET, "and so on")  # 9; no call
BROKEN = episode("i", StopReason.INFRASTRUCTURE, (CODE, NAME), CODE)  # not scored
ALL = [DIRECT, GUESS, RAN, STUBBORN, MENDED, NEVER, TWICE, EMPTY, LIMIT, PAUSED, CUT, BROKEN]


def figures_of(transcripts, **settings) -> dict[str, Figure]:
    """The figures of `measure`, each under its key."""
    found = measure(transcripts, **settings)
    assert len({figure.key for figure in found}) == len(found)
    return {figure.key: figure for figure in found}


def means(figures, *keys) -> list[float]:
    """The means of the figures with these keys."""
    return [figures[key].mean for key in keys]


def sample(problem, answer, *turns, correct=False, **metadata):
    """An answered episode; an answer of `None` is cut by the budget."""
    reason = StopReason.TOKEN_BUDGET if answer is None else ANSWERED
    last = "hm" if answer is None else f"<answer>{answer}</answer>"
    made = episode(problem, reason, *turns, last, correct=correct)
    problem = dataclasses.replace(made.problem, metadata=metadata)
    return dataclasses.replace(made, answer=answer, problem=problem)
