"""All figures of an evaluation, each with an interval, its number of cases and its definition.

`measure` gives a flat list. Every figure has a key, which joins the figures of two evaluations:

| keys           | meaning of the figures                                                |
|----------------|-----------------------------------------------------------------------|
| `accuracy/...` | how often answers are right: avg, pass@k, pass^k, maj@k, and by group |
| `warning/...`  | verdicts that a reader should look at (`retool_env.metrics.verdicts`) |
| `use/...`      | how the model uses the interpreter, and the forms of its attempts     |
| `error/...`    | the errors of programs, and the next step after each                  |
| `fault/...`    | the faults that `Rules.faults` ordered; only where it ordered any     |
| `recovery/...` | how often a program runs again after a failed one                     |
| `cost/...`     | tokens and dollars, where the usage is known                          |

Figures are of scored episodes. Those of `use`, `error` and `recovery` are of episodes with an
interpreter. They count results as shown to the model, with injected faults, unless a definition
says otherwise. The episodes of one problem are one cluster of every interval
(`retool_env.metrics.estimators.cluster_mean`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol

from retool_env.errors import SettingsError
from retool_env.grading import is_equivalent
from retool_env.metrics.accuracy import accuracy, accuracy_by_calls, accuracy_by_group, doubts
from retool_env.metrics.estimators import cluster_ratio
from retool_env.metrics.failed_calls import errors, faults, recovery
from retool_env.metrics.figure import Figure, figure_of, mean_of
from retool_env.metrics.scored_episode import ScoredEpisode
from retool_env.metrics.tool_use import calls, first_call, funnel
from retool_env.transcript import Transcript

__all__ = ["EpisodeUsage", "Figure", "measure"]


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
    episodes = [ScoredEpisode(transcript) for transcript in scored]
    with_tool = [episode for episode in episodes if episode.transcript.interpreter]
    figures = [
        *accuracy(scored, ks, equal),
        *accuracy_by_group(scored),
        *accuracy_by_calls(with_tool),
        *doubts(scored),
        *funnel(with_tool),
        *calls(with_tool),
        *first_call(with_tool),
        *errors(with_tool),
        *faults(with_tool),
        *recovery(with_tool),
    ]
    if usage is not None:
        pairs = zip(transcripts, usage, strict=True)
        figures += _cost([(t, used) for t, used in pairs if t.scored and used is not None])
    return figures


def _cost(pairs: list[tuple[Transcript, EpisodeUsage]]) -> Iterable[Figure]:
    tokens = [(t, used.prompt_tokens, used.completion_tokens) for t, used in pairs]
    yield mean_of(
        "cost/prompt_tokens",
        [(t.problem.id, prompt) for t, prompt, _ in tokens],
        "Mean number of tokens that the API reads in an episode.",
    )
    yield mean_of(
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
    yield mean_of(
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
    found = cluster_ratio(cases)
    low = None if found.low is None else max(found.low, 0.0)  # tokens and dollars are positive
    return figure_of(key, dataclasses.replace(found, low=low), definition)
