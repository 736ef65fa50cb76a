"""All figures of an evaluation, each with an interval, its number of cases and its definition.

`measure` gives a flat list. Every figure has a key, which joins the figures of two evaluations:

| keys           | meaning of the figures                                                |
|----------------|-----------------------------------------------------------------------|
| `accuracy/...` | how often answers are right: avg, pass@k, pass^k, maj@k, and by group |
| `warning/...`  | verdicts that a reader should look at (`retool_env.metrics.verdicts`) |
| `use/...`      | how the model uses the interpreter, and the forms of its attempts     |
| `error/...`    | the errors of programs, and the next step after each                  |
| `recovery/...` | how often a program runs again after a failed one                     |
| `cost/...`     | tokens and dollars, where the usage is known                          |

Figures are of scored episodes. Those of `use`, `error` and `recovery` are of episodes with an
interpreter. The episodes of one problem are one cluster of every interval
(`retool_env.metrics.estimators.cluster_mean`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, Self, get_args

from retool_env.errors import SettingsError
from retool_env.grading import is_equivalent
from retool_env.metrics.attempts import MISSES, Miss, missed_attempts
from retool_env.metrics.estimators import (
    ClusterMean,
    class_sizes,
    cluster_mean,
    cluster_ratio,
    pass_at_k,
    pass_hat_k,
    votes_at_k,
)
from retool_env.metrics.intervals import SHOWN_FROM
from retool_env.metrics.recovery import measure_recovery
from retool_env.metrics.verdicts import DOUBTS, grading_warnings
from retool_env.protocol import Turn, TurnKind, is_empty_program
from retool_env.transcript import Call, Span, StopReason, Transcript


@dataclass(frozen=True)
class Figure:
    """One figure of an evaluation."""

    key: str
    """Names the figure, in lower case: `accuracy/pass@4`."""
    count: int
    """Number of cases: episodes, calls or errors, as the definition says."""
    problems: int
    """Number of problems with a case, which are the clusters of the interval."""
    mean: float | None
    """The figure; `None` without a case."""
    low: float | None
    """Lower bound of the 95 % interval; `None` where it is unbounded, with one problem."""
    high: float | None
    """Upper bound of the 95 % interval; `None` where it is unbounded, with one problem."""
    definition: str
    """The meaning of the figure, in a sentence or two."""

    @property
    def marked(self) -> bool:
        """Whether it rests on fewer than 50 cases. Such a figure is shown with a mark."""
        return self.count < SHOWN_FROM

    def to_json(self) -> dict[str, Any]:
        """The figure as plain JSON values; `from_json` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Rebuild a figure from the values of `to_json`. Other values in the record are ignored."""
        return cls(**{field.name: record[field.name] for field in dataclasses.fields(cls)})


class EpisodeUsage(Protocol):
    """The tokens of one episode, as an API counts and bills them.

    An attribute `cost`, in dollars or `None`, is read where there is one.
    """

    @property
    def prompt_tokens(self) -> int:
        """Tokens that the API read; the whole conversation counts anew at each turn."""
        ...

    @property
    def completion_tokens(self) -> int:
        """Tokens that the API wrote."""
        ...


def measure(
    transcripts: Iterable[Transcript],
    ks: Sequence[int] = (),
    usage: Sequence[EpisodeUsage | None] | None = None,
    equal: Callable[[str, str], bool] = is_equivalent,
) -> list[Figure]:
    """Compute all figures of finished transcripts.

    Args:
        transcripts: Finished transcripts, any number of each problem, in the order of the samples.
        ks: The sizes of `pass@k`, `pass^k` and `maj@k`. By default 1, 2, 4, 8 and so on, and the
            largest number of scored episodes that a problem has. A problem with fewer than `k`
            scored episodes is left out of the figures of that `k`.
        usage: The usage of each transcript, in the same order; `None` for a transcript whose usage
            is not known. By default there are no figures of cost.
        equal: Whether two answers have the same vote in `maj@k`.

    Returns:
        The figures, in a fixed order. A figure without a case has the mean `None`.

    Raises:
        SettingsError: If a transcript is not finished, no problem has `k` scored episodes, or
            `usage` differs from `transcripts` in length.
    """
    transcripts = list(transcripts)
    if any(transcript.stop_reason is None for transcript in transcripts):
        raise SettingsError("measure takes finished transcripts, and one has not ended yet")
    if usage is not None and len(usage) != len(transcripts):
        raise SettingsError(
            f"usage must have an entry for each transcript: {len(usage)} entries and "
            f"{len(transcripts)} transcripts were given"
        )
    scored = [transcript for transcript in transcripts if transcript.scored]
    episodes = [_Episode(transcript) for transcript in scored]
    with_tool = [episode for episode in episodes if episode.transcript.interpreter]
    figures = [
        *_accuracy(scored, ks, equal),
        *_accuracy_by_group(scored),
        *_accuracy_by_calls(with_tool),
        *_warnings(scored),
        *_funnel(with_tool),
        *_calls(with_tool),
        *_first_call(with_tool),
        *_errors(with_tool),
        *_recovery(with_tool),
    ]
    if usage is not None:
        pairs = zip(transcripts, usage, strict=True)
        figures += _cost([(t, used) for t, used in pairs if t.scored and used is not None])
    return figures


# --- an episode, read once ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Episode:
    """A scored transcript, with the parts that several figures ask for."""

    transcript: Transcript

    @property
    def problem(self) -> str:
        return self.transcript.problem.id

    @property
    def right(self) -> bool:
        return bool(self.transcript.correct)

    @cached_property
    def calls(self) -> list[Call]:
        return self.transcript.calls

    @cached_property
    def turns(self) -> list[Turn]:
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
        return any(call.ok for call in self.calls)

    @property
    def results(self) -> list[Span]:
        """The spans that show a result, one for each call."""
        return [span for span in self.transcript.response if span.execution is not None]


def _figure(key: str, mean: ClusterMean, definition: str) -> Figure:
    return Figure(key, mean.count, mean.clusters, mean.mean, mean.low, mean.high, definition)


def _share(key: str, cases: Iterable[tuple[str, bool]], definition: str) -> Figure:
    """A share of cases, each with its problem."""
    numbers = ((problem, float(value)) for problem, value in cases)
    return _figure(key, cluster_mean(numbers, share=True), definition)


def _mean(key: str, cases: Iterable[tuple[str, float]], definition: str) -> Figure:
    return _figure(key, cluster_mean(cases), definition)


# --- accuracy -----------------------------------------------------------------------------------


def _over_problems(key: str, values: dict[str, tuple[float, int]], definition: str) -> Figure:
    """The mean over problems of a share. The count is of episodes.

    Args:
        key: The figure's key.
        values: The share and the number of episodes of each problem.
        definition: The figure's definition.
    """
    found = cluster_mean(((name, share) for name, (share, _) in values.items()), share=True)
    count = sum(number for _, number in values.values())
    return _figure(key, dataclasses.replace(found, count=count), definition)


def _by_problem(transcripts: Iterable[Transcript]) -> dict[str, list[Transcript]]:
    groups: dict[str, list[Transcript]] = defaultdict(list)
    for transcript in transcripts:
        groups[transcript.problem.id].append(transcript)
    return groups


def _average(transcripts: Iterable[Transcript]) -> dict[str, tuple[float, int]]:
    """The share of right episodes of each problem, and their number."""
    return {
        name: (sum(bool(t.correct) for t in some) / len(some), len(some))
        for name, some in _by_problem(transcripts).items()
    }


def _accuracy(
    scored: list[Transcript], ks: Sequence[int], equal: Callable[[str, str], bool]
) -> Iterable[Figure]:
    groups = _by_problem(scored)
    yield _over_problems(
        "accuracy/avg",
        _average(scored),
        "Mean over problems of the share of right episodes. The cases are episodes.",
    )
    most = max(map(len, groups.values()), default=0)
    votes = {}
    for name, some in groups.items():
        answers = [t.answer if t.answer and t.answer.strip() else None for t in some]
        votes[name] = class_sizes(answers, [bool(t.correct) for t in some], equal)
    for k in ks or _default_ks(most):
        if not 1 <= k <= most:
            raise SettingsError(
                f"k must be from 1 to the number of samples, but k = {k} and n = {most}"
            )
        yield from _at_k(groups, votes, k)


def _at_k(
    groups: dict[str, list[Transcript]], votes: dict[str, tuple[list[int], list[bool]]], k: int
) -> Iterable[Figure]:
    """The three figures of `k` samples.

    Args:
        groups: The scored transcripts of each problem.
        votes: The sizes of each problem's classes of answers, and whether each class is right.
        k: Number of samples.
    """
    numbers = {
        name: (len(some), sum(bool(t.correct) for t in some))
        for name, some in groups.items()
        if len(some) >= k
    }
    estimates = {
        f"pass@{k}": (
            {a: pass_at_k(n, c, k) for a, (n, c) in numbers.items()},
            f"at least one of k = {k} answers is right",
        ),
        f"pass^{k}": (
            {a: pass_hat_k(n, c, k) for a, (n, c) in numbers.items()},
            f"all k = {k} answers are right",
        ),
        f"maj@{k}": (
            {a: votes_at_k(n, *votes[a], k) for a, (n, _) in numbers.items()},
            f"the majority vote of k = {k} answers is right",
        ),
    }
    for name, (shares, words) in estimates.items():
        yield _over_problems(
            f"accuracy/{name}",
            {problem: (share, numbers[problem][0]) for problem, share in shares.items()},
            f"Mean over problems of the chance that {words}, among the problem's episodes. The "
            "cases are episodes.",
        )


def _default_ks(most: int) -> list[int]:
    powers = [2**power for power in range(most.bit_length())]
    return powers if not most or powers[-1] == most else [*powers, most]


def _accuracy_by_group(scored: list[Transcript]) -> Iterable[Figure]:
    groups: dict[tuple[str, str], list[Transcript]] = defaultdict(list)
    for transcript in scored:
        for kind, value in _groups_of(transcript):
            groups[kind, value].append(transcript)
    words = {"data_set": "the data set", "subject": "the subject"}
    for kind, value in sorted(groups, key=lambda group: (group[0], _by_number(group[1]))):
        yield _over_problems(
            f"accuracy/{kind}/{value}",
            _average(groups[kind, value]),
            f"Mean over the problems of {words.get(kind, kind)} {value} of the share of right "
            "episodes. The cases are episodes.",
        )


def _by_number(text: str) -> tuple[int, str]:
    """A key to sort by, which puts 9 ahead of 10."""
    return (int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0, text)


def _groups_of(transcript: Transcript) -> Iterable[tuple[str, str]]:
    """The groups of a transcript's problem, each a kind and a value as in a key."""
    problem = transcript.problem
    known = dict(problem.metadata)
    known["data_set"] = known.get("data_set") or problem.id.rpartition("/")[0]
    for kind in ("data_set", "difficulty", "level", "subject"):
        if value := _slug(str(known.get(kind, ""))):
            yield kind, value


def _slug(text: str) -> str:
    """A text as a part of a key."""
    return re.sub(r"[^\w/.+-]+", "_", text.lower()).strip("_/")


CALL_GROUPS = {
    "none": "without a call",
    "without_error": "with calls that all ran without error",
    "error_mended": "with a failed call whose last call ran without error",
    "error_not_mended": "whose last call failed",
}
"""The groups of episodes by their calls, with their definitions."""


def _accuracy_by_calls(episodes: list[_Episode]) -> Iterable[Figure]:
    cases: dict[str, list[tuple[str, bool]]] = {group: [] for group in CALL_GROUPS}
    for episode in episodes:
        if not episode.calls:
            group = "none"
        elif all(call.ok for call in episode.calls):
            group = "without_error"
        else:
            group = "error_mended" if episode.calls[-1].ok else "error_not_mended"
        cases[group].append((episode.problem, episode.right))
    for group, words in CALL_GROUPS.items():
        yield _share(
            f"accuracy/calls/{group}",
            cases[group],
            f"Share of right answers among the episodes {words}.",
        )


_WARNINGS = {
    "right_not_in_form": "in which the model wrote the right value, but not in the asked form",
    "cut_before_answer": "that a budget or a deadline ended before an answer",
    "unreadable_answer": "whose answer can't be read as a value",
}


def _warnings(scored: list[Transcript]) -> Iterable[Figure]:
    found = {(warning.kind, warning.index) for warning in grading_warnings(scored)}
    for kind in DOUBTS:
        cases = [(t.problem.id, (kind, index) in found) for index, t in enumerate(scored)]
        yield _share(f"warning/{kind}", cases, f"Share of episodes {_WARNINGS[kind]}.")


# --- use of the interpreter ---------------------------------------------------------------------


def _funnel(episodes: list[_Episode]) -> Iterable[Figure]:
    stages: tuple[tuple[str, Callable[[_Episode], bool], str], ...] = (
        (
            "attempted",
            lambda e: e.attempted,
            "with an attempt at the interpreter, in any form",
        ),
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
        yield _share(f"use/{stage}", cases, f"Share of episodes {words}.")
    words_of: dict[Miss, str] = {
        "fence": "a Python fence outside of a call",
        "foreign_call": "a call in the form of another protocol",
        "written_output": "a program's output that the model wrote itself",
        "half_tag": "one of the two tags of a call, in a turn without a call",
    }
    for miss in MISSES:
        cases = [(episode.problem, miss in episode.misses) for episode in episodes]
        yield _share(f"use/missed/{miss}", cases, f"Share of episodes with {words_of[miss]}.")


MOST_CALLS = 10
"""Episodes with so many calls or more are one class of the histogram."""

_CAUGHT = re.compile(
    r"\b\w*(?:Error|Exception)\b|Traceback \(most recent call last\)"
    r"|\b(?:KeyboardInterrupt|StopIteration|StopAsyncIteration|SystemExit|GeneratorExit"
    r"|ExceptionGroup|BaseExceptionGroup)\b"
)
_EXCEPT = re.compile(r"^[ \t]*except\b[^\n]*:", re.MULTILINE)


def _calls(episodes: list[_Episode]) -> Iterable[Figure]:
    yield _mean(
        "use/calls",
        [(episode.problem, len(episode.calls)) for episode in episodes],
        "Mean number of calls in an episode.",
    )
    numbers = [(episode.problem, len(episode.calls)) for episode in episodes]
    for number in range(MOST_CALLS):
        yield _share(
            f"use/calls/{number}",
            [(problem, calls == number) for problem, calls in numbers],
            f"Share of episodes with {number} call{'s' * (number != 1)}.",
        )
    yield _share(
        f"use/calls/{MOST_CALLS}+",
        [(problem, calls >= MOST_CALLS) for problem, calls in numbers],
        f"Share of episodes with {MOST_CALLS} calls or more.",
    )
    ran = [(e.problem, call) for e in episodes for call in e.calls if call.ok]
    yield _share(
        "use/silent",
        [(problem, not call.execution.stdout.strip()) for problem, call in ran],
        "Share of the calls that ran without error which printed nothing.",
    )
    yield _share(
        "use/self_caught",
        [(problem, _caught(call)) for problem, call in ran],
        "Share of the calls that ran without error which caught an error of their own: the "
        "program has an `except`, and its output shows a traceback or an exception's name.",
    )
    yield _mean(
        "use/tool_seconds",
        [(e.problem, math.fsum(span.seconds for span in e.results)) for e in episodes],
        "Mean seconds that an episode waits for results.",
    )


def _caught(call: Call) -> bool:
    return bool(_EXCEPT.search(call.program) and _CAUGHT.search(call.execution.stdout))


def _first_call(episodes: list[_Episode]) -> Iterable[Figure]:
    some = [(episode, _start_of_call(episode)) for episode in episodes if episode.calls]
    of = "of episodes with a call"
    yield _mean(
        "use/first_call/turns",
        [(e.problem, start.turns) for e, start in some],
        f"Mean number of the model's turns before the turn with the first call, {of}.",
    )
    yield _mean(
        "use/first_call/characters",
        [(e.problem, e.calls[0].position) for e, _ in some],
        f"Mean number of characters of the response before the first call, {of}.",
    )
    yield _mean(
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


def _start_of_call(episode: _Episode) -> _Start:
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


# --- errors and recovery ------------------------------------------------------------------------

Fate = Literal["same_error", "other_error", "ok", "gave_up", "cut"]
"""The fate of a failed call; see `FATES`."""

FATES: dict[Fate, str] = {
    "same_error": "the next call fails with the same outcome and the same line of error",
    "other_error": "the next call fails in another way",
    "ok": "the next call runs without error",
    "gave_up": "the model ends the episode without another call",
    "cut": "a budget, the limit of calls or a deadline ends the episode before another call",
}
"""The fates of a failed call, with their definitions."""

assert set(FATES) == set(get_args(Fate))

_GAVE_UP = (StopReason.ANSWERED, StopReason.STOPPED, StopReason.VOID_TURN)
_CLASS = re.compile(r"([A-Za-z_][\w.]*)(?::|\Z)")


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
    named = _CLASS.match(call.execution.error)
    outcome = str(call.execution.outcome)
    return f"{outcome}/{named[1].lower()}" if named else outcome


def _fate(episode: _Episode, index: int) -> Fate:
    """The fate of the failed call at `index`."""
    call, *after = episode.calls[index : index + 2]
    if not after:
        return "gave_up" if episode.transcript.stop_reason in _GAVE_UP else "cut"
    if after[0].ok:
        return "ok"
    one, two = call.execution, after[0].execution
    alike = (one.outcome, one.error) == (two.outcome, two.error)
    return "same_error" if alike else "other_error"


def _errors(episodes: list[_Episode]) -> Iterable[Figure]:
    yield _share(
        "error/calls",
        [(e.problem, not call.ok) for e in episodes for call in e.calls],
        "Share of calls that failed.",
    )
    failed: list[tuple[str, str, Fate]] = []  # problem, kind, fate
    for episode in episodes:
        for index, call in enumerate(episode.calls):
            if not call.ok:
                failed.append((episode.problem, error_kind(call), _fate(episode, index)))
    yield from _flow("all", [(problem, fate) for problem, _, fate in failed])
    numbers = Counter(kind for _, kind, _ in failed)
    for kind in sorted(numbers, key=lambda kind: (-numbers[kind], kind)):
        yield _share(
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
        yield _share(
            f"error/{kind}/next/{fate}",
            [(problem, other == fate) for problem, other in fates],
            "Share of failed calls"
            + ("" if kind == "all" else f" with the error {kind}")
            + f" after which {words}.",
        )


RECOVERY_WITHIN = (1, 2, 3)
"""The numbers of calls within which a program may run again."""


def _recovery(episodes: list[_Episode]) -> Iterable[Figure]:
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
        yield _share(
            f"recovery/ran@{k}/had_turn",
            had_turn,
            f"{event}, among the failed calls followed by another turn.",
        )
        yield _share(
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
    yield _figure(
        "recovery/mended",
        mean,
        "Share of errors that a later call of the episode mends. An error is a run of failed "
        "calls.",
    )


def _spoke_after(episode: _Episode, index: int) -> bool:
    """Whether the model has a turn after the result of the call at `index`."""
    response = episode.transcript.response
    shown = [at for at, span in enumerate(response) if span.execution is not None][index]
    return any(span.author == "model" for span in response[shown:])


# --- cost ---------------------------------------------------------------------------------------


def _cost(pairs: list[tuple[Transcript, EpisodeUsage]]) -> Iterable[Figure]:
    tokens = [(t, used.prompt_tokens, used.completion_tokens) for t, used in pairs]
    yield _mean(
        "cost/prompt_tokens",
        [(t.problem.id, prompt) for t, prompt, _ in tokens],
        "Mean number of tokens that the API reads in an episode.",
    )
    yield _mean(
        "cost/completion_tokens",
        [(t.problem.id, completion) for t, _, completion in tokens],
        "Mean number of tokens that the API writes in an episode.",
    )
    yield _per_right(
        "cost/tokens_per_right",
        [(t, prompt + completion) for t, prompt, completion in tokens],
        "Tokens, read and written, of all episodes for each right answer. The cases are episodes.",
    )
    costs = [(t, getattr(used, "cost", None)) for t, used in pairs]
    dollars = [(t, float(cost)) for t, cost in costs if cost is not None]
    yield _mean(
        "cost/dollars",
        [(t.problem.id, cost) for t, cost in dollars],
        "Mean cost of an episode in dollars, among the episodes whose cost is known.",
    )
    yield _per_right(
        "cost/dollars_per_right",
        dollars,
        "Dollars for each right answer, of episodes whose cost is known. The cases are episodes.",
    )


def _per_right(key: str, values: Sequence[tuple[Transcript, float]], definition: str) -> Figure:
    cases: list[tuple[Hashable, float, float]] = [
        (t.problem.id, value, float(bool(t.correct))) for t, value in values
    ]
    return _figure(key, cluster_ratio(cases), definition)
