"""Figures of how a model uses the interpreter, and of the forms in which it tries to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from retool_env.metrics.attempts import MISSES, Miss
from retool_env.metrics.figure import Figure, mean_of, share
from retool_env.metrics.scored_episode import ScoredEpisode
from retool_env.transcript import Call


def funnel(episodes: list[ScoredEpisode]) -> Iterable[Figure]:
    """The stages attempted, well formed, ran, right; and the forms that attempts miss."""
    stages: tuple[tuple[str, Callable[[ScoredEpisode], bool], str], ...] = (
        ("attempted", lambda e: e.attempted, "with an attempt at the interpreter, in any form"),
        (
            "well_formed",
            lambda e: e.well_formed,
            "with a call in the protocol's form that holds a program",
        ),
        ("ran", lambda e: e.ran, "with a call that ran without error"),
        (
            "right",
            lambda e: e.ran and e.right,
            "with a call that ran without error, and a right answer",
        ),
    )
    for stage, holds, words in stages:
        cases = [(episode.problem, holds(episode)) for episode in episodes]
        yield share(f"use/{stage}", cases, f"Share of episodes {words}.")
    words_of: dict[Miss, str] = {
        "fence": "a Python fence outside of a call",
        "foreign_call": "a call in the form of another protocol",
        "written_output": "a program's output that the model wrote itself",
        "half_tag": "one of the two tags of a call, in a turn without a call",
    }
    for miss in MISSES:
        cases = [(episode.problem, miss in episode.misses) for episode in episodes]
        yield share(f"use/missed/{miss}", cases, f"Share of episodes with {words_of[miss]}.")


MOST_CALLS = 10
"""Episodes with so many calls or more are one class of the histogram."""

_CAUGHT = re.compile(
    r"\b\w*(?:Error|Exception)\b|Traceback \(most recent call last\)"
    r"|\b(?:KeyboardInterrupt|StopIteration|StopAsyncIteration|SystemExit|GeneratorExit"
    r"|ExceptionGroup|BaseExceptionGroup)\b"
)
_EXCEPT = re.compile(r"^[ \t]*except\b[^\n]*:", re.MULTILINE)


def calls(episodes: list[ScoredEpisode]) -> Iterable[Figure]:
    """The number of calls, silent calls, errors that programs catch, and seconds."""
    numbers = [(episode.problem, len(episode.calls)) for episode in episodes]
    yield mean_of("use/calls", numbers, "Mean number of calls in an episode.")
    for number in range(MOST_CALLS):
        yield share(
            f"use/calls/{number}",
            [(problem, calls == number) for problem, calls in numbers],
            f"Share of episodes with {number} call{'s' * (number != 1)}.",
        )
    yield share(
        f"use/calls/{MOST_CALLS}+",
        [(problem, calls >= MOST_CALLS) for problem, calls in numbers],
        f"Share of episodes with {MOST_CALLS} calls or more.",
    )
    ran = [(e.problem, call) for e in episodes for call in e.calls if call.ok]
    yield share(
        "use/silent",
        [(problem, not call.execution.stdout.strip()) for problem, call in ran],
        "Share of the calls that ran without error which printed nothing.",
    )
    yield share(
        "use/self_caught",
        [(problem, _caught(call)) for problem, call in ran],
        "Share of the calls that ran without error which caught an error of their own: the "
        "program has an `except`, and its output shows a traceback or an exception's name.",
    )
    yield mean_of(
        "use/tool_seconds",
        [(e.problem, math.fsum(span.seconds for span in e.results)) for e in episodes],
        "Mean seconds that an episode waits for results.",
    )


def _caught(call: Call) -> bool:
    return bool(_EXCEPT.search(call.program) and _CAUGHT.search(call.execution.stdout))


def first_call(episodes: list[ScoredEpisode]) -> Iterable[Figure]:
    """How soon the first call comes: in turns, characters and tokens."""
    some = [(episode, _start_of_call(episode)) for episode in episodes if episode.calls]
    of = "of episodes with a call"
    yield mean_of(
        "use/first_call/turns",
        [(e.problem, start.turns) for e, start in some],
        f"Mean number of the model's turns before the turn with the first call, {of}.",
    )
    yield mean_of(
        "use/first_call/characters",
        [(e.problem, e.calls[0].position) for e, _ in some],
        f"Mean number of characters of the response before the first call, {of}.",
    )
    yield mean_of(
        "use/first_call/tokens",
        [(e.problem, start.tokens) for e, start in some if start.tokens is not None],
        f"Mean number of tokens of the response before the first call, {of} and token ids. Within "
        "the turn of the call, tokens are counted in proportion to characters.",
    )


@dataclass(frozen=True)
class _Start:
    """Where the first call of an episode begins."""

    turns: int
    """The model's turns before its turn."""
    tokens: float | None
    """The tokens before it; `None` without token ids."""


def _start_of_call(episode: ScoredEpisode) -> _Start:
    """Where the first call of an episode with a call begins."""
    response = episode.transcript.response
    shown = next(index for index, span in enumerate(response) if span.execution is not None)
    turn = max(index for index in range(shown) if response[index].author == "model")
    before, span = response[:turn], response[turn]
    turns = sum(each.author == "model" for each in before)
    if span.token_ids is None:
        return _Start(turns, None)
    characters = episode.calls[0].position - sum(len(each.text) for each in before)
    tokens = sum(len(each.token_ids or ()) for each in before)
    return _Start(turns, tokens + len(span.token_ids) * characters / max(len(span.text), 1))
