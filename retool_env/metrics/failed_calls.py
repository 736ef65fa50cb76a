"""Figures of failed calls: their errors, what comes next, and whether a program runs again.

A call fails by the result that the model was shown. So an injected fault that shows an error is a
failed call. The figures `fault/...` and `error/calls/own` tell the two apart. An infrastructure
failure is neither: its episode is not scored.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Literal, get_args

from retool_env.metrics.estimators import ClusterMean
from retool_env.metrics.figure import Figure, figure_of, share
from retool_env.metrics.recovery import fail_alike, measure_recovery
from retool_env.metrics.scored_episode import ScoredEpisode
from retool_env.transcript import Call, StopReason

Fate = Literal[
    "same_error", "other_error", "ok", "answered_right", "answered_wrong", "gave_up", "cut"
]
"""The fate of a failed call; see `FATES`."""

FATES: dict[Fate, str] = {
    "same_error": "the next call fails with the same outcome and the same line of error",
    "other_error": "the next call fails in another way",
    "ok": "the next call runs without error",
    "answered_right": "the model answers without another call, and is right",
    "answered_wrong": "the model answers without another call, and is wrong",
    "gave_up": "the model ends the episode without another call and without an answer",
    "cut": "a budget, the limit of calls or a deadline ends the episode before another call",
}
"""The fates of a failed call, with their definitions."""

assert set(FATES) == set(get_args(Fate))

_GAVE_UP = (StopReason.STOPPED, StopReason.VOID_TURN)


def error_kind(call: Call) -> str:
    """The kind of a failed call's error: its outcome, and the class of its exception, if any.

    Args:
        call: A failed call.

    Example:
        >>> from retool_env.execution import Execution, Outcome
        >>> error = "NameError: name 'x' is not defined"
        >>> error_kind(Call("x", Execution(Outcome.RUNTIME_ERROR, "", error), 0, "plain"))
        'runtime_error/nameerror'
    """
    outcome, exception = str(call.execution.outcome), call.execution.exception
    return f"{outcome}/{exception.lower()}" if exception else outcome


def _fate(episode: ScoredEpisode, index: int) -> Fate:
    """The fate of the failed call at `index`."""
    call, *after = episode.calls[index : index + 2]
    if not after:
        if episode.transcript.stop_reason is StopReason.ANSWERED:
            return "answered_right" if episode.right else "answered_wrong"
        return "gave_up" if episode.transcript.stop_reason in _GAVE_UP else "cut"
    if after[0].ok:
        return "ok"
    return "same_error" if fail_alike(call, after[0]) else "other_error"


def errors(episodes: list[ScoredEpisode]) -> Iterable[Figure]:
    """The share of failed calls, of each kind of error, and the flow of `FATES`."""
    yield share(
        "error/calls",
        [(e.problem, not call.ok) for e in episodes for call in e.calls],
        "Share of calls that failed, by the results that the model was shown.",
    )
    failed: list[tuple[str, str, Fate]] = []  # problem, kind, fate
    for episode in episodes:
        for index, call in enumerate(episode.calls):
            if not call.ok:
                failed.append((episode.problem, error_kind(call), _fate(episode, index)))
    yield from _flow("all", [(problem, fate) for problem, _, fate in failed])
    numbers = Counter(kind for _, kind, _ in failed)
    for kind in sorted(numbers, key=lambda kind: (-numbers[kind], kind)):
        yield share(
            f"error/{kind}",
            [(problem, other == kind) for problem, other, _ in failed],
            f"Share of failed calls with the error {kind}.",
        )
        yield from _flow(
            kind, [(problem, fate) for problem, other, fate in failed if other == kind]
        )


def _flow(kind: str, fates: list[tuple[str, Fate]]) -> Iterable[Figure]:
    """A row of the flow: its shares sum to 1."""
    for fate, words in FATES.items():
        yield share(
            f"error/{kind}/next/{fate}",
            [(problem, other == fate) for problem, other in fates],
            "Share of failed calls"
            + ("" if kind == "all" else f" with the error {kind}")
            + f" after which {words}.",
        )


def faults(episodes: list[ScoredEpisode]) -> Iterable[Figure]:
    """How many faults were ordered and took place; nothing where no fault was ordered."""
    calls = [(e.problem, call, call.execution.fault) for e in episodes for call in e.calls]
    ordered = [(problem, fault) for problem, _, fault in calls if fault is not None]
    if not ordered:
        return
    yield share(
        "fault/ordered",
        [(problem, fault is not None) for problem, _, fault in calls],
        "Share of calls for which a fault was ordered.",
    )
    yield share(
        "fault/injected",
        [(problem, fault.injected) for problem, fault in ordered],
        "Share of the ordered faults that were injected. The other calls were not eligible, and "
        "the model saw the program's own result.",
    )
    for kind in sorted({fault.kind for _, fault in ordered}):
        yield share(
            f"fault/injected/{kind}",
            [(problem, fault.injected) for problem, fault in ordered if fault.kind == kind],
            f"Share of the ordered faults of the kind {kind} that were injected.",
        )
    yield share(
        "error/calls/own",
        [(problem, not call.ok) for problem, call, _ in calls if not call.faulty],
        "Share of calls that failed, among the calls without an injected fault: the model's own "
        "errors.",
    )
    yield share(
        "error/calls/injected",
        [(problem, not call.ok) for problem, call, _ in calls if call.faulty],
        "Share of calls that failed, by the shown results, among the calls with an injected fault. "
        "The rest are silent faults and placebos.",
    )


RECOVERY_WITHIN = (1, 2, 3)
"""The numbers of calls within which a program may run again."""


def recovery(episodes: list[ScoredEpisode]) -> Iterable[Figure]:
    """How often one of the next calls runs after a failed call."""
    for k in RECOVERY_WITHIN:
        had_turn: list[tuple[str, bool]] = []
        called: list[tuple[str, bool]] = []
        for episode in episodes:
            for index, call in enumerate(episode.calls):
                if call.ok:
                    continue
                after = episode.calls[index + 1 :]
                case = (episode.problem, any(later.ok for later in after[:k]))
                if after:
                    called.append(case)
                if after or _spoke_after(episode, index):
                    had_turn.append(case)
        event = f"Share of failed calls after which one of the next {k} calls ran" * (k > 1)
        event = event or "Share of failed calls after which the next call ran"
        yield share(
            f"recovery/ran@{k}/had_turn",
            had_turn,
            f"{event}, among the failed calls followed by another turn.",
        )
        yield share(
            f"recovery/ran@{k}/called",
            called,
            f"{event}, among the failed calls followed by another call.",
        )
    # The interval stays as it is in a summary.
    transcripts = [episode.transcript for episode in episodes]
    mended = measure_recovery(transcripts).mended
    problems = {e.problem for e in episodes if not all(call.ok for call in e.calls)}
    found = mended.interval
    mean = ClusterMean(mended.count, len(problems), None, None, None)
    if found is not None:
        mean = dataclasses.replace(mean, mean=found.mean, low=found.low, high=found.high)
    yield figure_of(
        "recovery/mended",
        mean,
        "Share of errors that a later call of the episode mends. An error is a run of failed "
        "calls.",
    )


def _spoke_after(episode: ScoredEpisode, index: int) -> bool:
    """Whether the model has a turn after the result of the call at `index`."""
    response = episode.transcript.response
    shown = [at for at, span in enumerate(response) if span.execution is not None][index]
    return any(span.author == "model" for span in response[shown:])
