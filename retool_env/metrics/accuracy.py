"""Figures of accuracy: avg, pass@k, pass^k, maj@k, by group and by calls, and doubtful verdicts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from retool_env.errors import SettingsError
from retool_env.metrics.estimators import class_sizes, pass_at_k, pass_hat_k, votes_at_k
from retool_env.metrics.figure import Figure, over_problems, share
from retool_env.metrics.scored_episode import ScoredEpisode
from retool_env.metrics.verdicts import DOUBTS, grading_warnings
from retool_env.problem import Problem
from retool_env.transcript import Call, Transcript


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


def accuracy(
    scored: list[Transcript], ks: Sequence[int], equal: Callable[[str, str], bool]
) -> Iterable[Figure]:
    """The figures of all scored episodes: avg, and pass@k, pass^k and maj@k of every `k`.

    Args:
        scored: The scored transcripts. Samples of one problem stand in their order.
        ks: The sizes `k`; empty: the powers of two and the largest number of samples.
        equal: Whether two answers have the same vote in `maj@k`.

    Raises:
        SettingsError: No problem has `k` scored episodes.
    """
    groups = _by_problem(scored)
    yield over_problems(
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
        yield over_problems(
            f"accuracy/{name}",
            {problem: (share, numbers[problem][0]) for problem, share in shares.items()},
            f"Mean over problems of the chance that {words}, among the problem's episodes. The "
            "cases are episodes.",
        )


def _default_ks(most: int) -> list[int]:
    powers = [2**power for power in range(most.bit_length())]
    return powers if not most or powers[-1] == most else [*powers, most]


def accuracy_by_group(scored: list[Transcript]) -> Iterable[Figure]:
    """The accuracy by data set, difficulty, level and subject, where problems have them."""
    groups: dict[tuple[str, str], list[Transcript]] = defaultdict(list)
    for transcript in scored:
        for kind, value in groups_of(transcript.problem):
            groups[kind, value].append(transcript)
    words = {"data_set": "the data set", "subject": "the subject"}
    for kind, value in sorted(groups, key=lambda group: (group[0], _by_number(group[1]))):
        yield over_problems(
            f"accuracy/{kind}/{value}",
            _average(groups[kind, value]),
            f"Mean over the problems of {words.get(kind, kind)} {value} of the share of right "
            "episodes. The cases are episodes.",
        )


def _by_number(text: str) -> tuple[int, str]:
    """A key to sort by, which puts 9 ahead of 10."""
    return (int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0, text)


def groups_of(problem: Problem) -> Iterable[tuple[str, str]]:
    """The groups of a problem, each a kind and a value as in a key: `("level", "3")`.

    Args:
        problem: The problem.
    """
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


def call_group(calls: Sequence[Call]) -> str:
    """The group of `CALL_GROUPS` of an episode.

    Args:
        calls: The calls of the episode.
    """
    if not calls:
        return "none"
    if all(call.ok for call in calls):
        return "without_error"
    return "error_mended" if calls[-1].ok else "error_not_mended"


def accuracy_by_calls(episodes: list[ScoredEpisode]) -> Iterable[Figure]:
    """The accuracy of each group of `CALL_GROUPS`."""
    cases: dict[str, list[tuple[str, bool]]] = {group: [] for group in CALL_GROUPS}
    for episode in episodes:
        cases[call_group(episode.calls)].append((episode.problem, episode.right))
    for group, words in CALL_GROUPS.items():
        yield share(
            f"accuracy/calls/{group}",
            cases[group],
            f"Share of right answers among the episodes {words}.",
        )


_WARNINGS = {
    "right_not_in_form": "in which the model wrote the right value, but not in the asked form",
    "cut_before_answer": "that a budget or a deadline ended before an answer",
    "unreadable_answer": "whose answer can't be read as a value",
}


def doubts(scored: list[Transcript]) -> Iterable[Figure]:
    """The shares of verdicts that a reader should look at (`retool_env.metrics.verdicts`)."""
    found = {(warning.kind, warning.index) for warning in grading_warnings(scored)}
    for kind in DOUBTS:
        cases = [(t.problem.id, (kind, index) in found) for index, t in enumerate(scored)]
        yield share(f"warning/{kind}", cases, f"Share of episodes {_WARNINGS[kind]}.")
