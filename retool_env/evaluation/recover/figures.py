"""Figures and counts of the benchmark, from the records alone: `results.json`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retool_env.evaluation.cost import Price
from retool_env.evaluation.recover.implied import implied_by_fault
from retool_env.evaluation.recover.protocols import (
    CONTROL,
    FREQUENCY,
    PARENTS,
    can_fork,
    injected,
)
from retool_env.evaluation.recover.records import (
    ArmRecord,
    LeftOut,
    RecoverRecord,
    read_arms,
    read_left_out,
    read_recover,
)
from retool_env.faults import KINDS
from retool_env.metrics.causal.comparison import compare_models
from retool_env.metrics.causal.contagion import contagion_figures
from retool_env.metrics.causal.continuation import (
    Cells,
    by_prefix,
    eligible,
    read_continuations,
)
from retool_env.metrics.causal.curves import outcome_curve
from retool_env.metrics.causal.detection import detection_figures
from retool_env.metrics.causal.dose import dose_figures
from retool_env.metrics.causal.effects import fault_figures
from retool_env.metrics.causal.figure import CausalFigure
from retool_env.metrics.causal.frequency import frequency_figures
from retool_env.metrics.causal.natural import natural_figures
from retool_env.rollout.policy import Usage
from retool_env.transcript import StopReason, Transcript

SCHEMA = 1
"""The version of `results.json`."""
RESULT_FIELDS = (
    *("model", "name", "suite", "part", "suite_hash", "quick", "fingerprint", "env", "revision"),
    *("rules", "prompt", "sampling", "seed", "k", "m", "samples", "kinds", "rates", "protocols"),
    *("versions", "status", "counts", "usage", "figures"),
)
"""The fields of `results.json`, apart from `schema`."""


def within_budget(transcript: Transcript, tokens: int | None, written: int) -> Transcript:
    """The episode as a budget of model-written tokens leaves it.

    The arms of `frequency` have equal budgets of the model's own tokens. `Rules.max_tokens` counts
    results as well, so the arms with a tool run with room for results, and an episode whose own
    tokens exceed the budget counts as cut: a budget cuts an episode and changes nothing before.

    Args:
        transcript: The episode.
        tokens: The budget; `None`: no budget.
        written: The number of tokens that the model wrote; 0 if nobody counted.
    """
    if tokens is None or written <= tokens or not transcript.scored:
        return transcript
    reason = StopReason.TOKEN_BUDGET
    return dataclasses.replace(transcript, stop_reason=reason, answer=None, correct=False)


def _budget(record: RecoverRecord, episodes: Sequence[ArmRecord]) -> int | None:
    """The budget of model-written tokens of the arms of `frequency`.

    Behind an API it is the budget of one turn, if the API counted the tokens of all turns.
    """
    if (most := record.rules.get("max_tokens")) is not None:
        return int(most)
    counted = all(e.usage is not None and not e.usage.uncounted for e in episodes if not e.failed)
    sampling = record.sampling
    turn = sampling.get("max_tokens", sampling.get("max_completion_tokens"))
    return turn if counted and isinstance(turn, int) else None


def _own_tokens(episode: ArmRecord) -> int:
    if episode.usage is not None:
        return episode.usage.completion_tokens
    spans = episode.transcript.spans
    return sum(len(span.token_ids or ()) for span in spans if span.author == "model")


def selected(
    record: RecoverRecord, episodes: Iterable[ArmRecord], left_out: Sequence[LeftOut]
) -> dict[tuple[str, str], list[Transcript]]:
    """The transcripts that the figures rest on, by protocol and arm.

    Forks of prefixes that can't be reproduced are left out.

    Args:
        record: The record of the folder.
        episodes: All episodes of the folder.
        left_out: The prefixes that can't be reproduced.
    """
    gone = {(one.protocol, one.problem, one.parent, one.call) for one in left_out}
    arms: dict[tuple[str, str], list[Transcript]] = defaultdict(list)
    frequency = []
    for episode in episodes:
        if (episode.protocol, episode.problem, episode.parent, episode.call) in gone:
            continue
        if episode.protocol == "frequency":
            frequency.append(episode)
        else:
            arms[episode.protocol, episode.arm].append(episode.transcript)
    budget = _budget(record, frequency)
    for episode in frequency:
        transcript = within_budget(episode.transcript, budget, _own_tokens(episode))
        arms["frequency", episode.arm].append(transcript)
    return dict(arms)


def counts(
    record: RecoverRecord, episodes: Iterable[ArmRecord], left_out: Sequence[LeftOut]
) -> dict[str, Any]:
    """The numbers of episodes and prefixes, including the prefixes that the figures leave out.

    Args:
        record: The record of the folder.
        episodes: All episodes of the folder.
        left_out: The prefixes that can't be reproduced.
    """
    number: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    unfit: set[tuple[str, Hashable]] = set()
    prefixes: Counter[str] = Counter()
    seen = set()
    for episode in episodes:
        number[f"{episode.protocol}/{episode.arm}"] += 1
        failed[f"{episode.protocol}/{episode.arm}"] += episode.failed
        prefix = (episode.protocol, episode.problem, episode.parent, episode.call)
        if (episode.protocol, episode.arm) == PARENTS:
            if episode.failed:
                prefixes["parents_failed"] += 1
                continue
            prefixes["parents"] += 1
            calls = record.fork_calls.get(episode.problem, [])
            if episode.sample < len(calls):
                missing = not can_fork(episode.transcript, calls[episode.sample])
                prefixes["without_call"] += missing
        elif episode.parent is not None:
            if not injected(episode.transcript):
                unfit.add((episode.arm, prefix))
            if prefix not in seen:
                seen.add(prefix)
                prefixes[episode.protocol] += 1
                prefixes["visible"] += episode.transcript.parent.visible  # type: ignore[union-attr]  # a fork has a parent
    return {
        "episodes": dict(number),
        "infrastructure_failures": {arm: n for arm, n in failed.items() if n},
        "parents": prefixes["parents"],
        "parents_failed": prefixes["parents_failed"],
        "prefixes": {name: prefixes[name] for name in ("fork", "natural")},
        "without_call": prefixes["without_call"],
        "not_reproducible": len(left_out),
        "not_eligible": dict(Counter(arm for arm, _ in sorted(unfit, key=str))),
        "visible": prefixes["visible"],
    }


def figures_of(arms: Mapping[tuple[str, str], Sequence[Transcript]]) -> list[CausalFigure]:
    """The figures of the transcripts that `selected` gives.

    Args:
        arms: The transcripts by protocol and arm.
    """
    figures: list[CausalFigure] = []
    by_rate = {float(arm): some for (protocol, arm), some in arms.items() if protocol == "dose"}
    if len(by_rate) > 1:
        figures += dose_figures(by_rate)
    if all(("frequency", arm) in arms for arm in FREQUENCY):
        text, tool, gone = (arms["frequency", arm] for arm in FREQUENCY)
        figures += frequency_figures(text, tool, gone)
    if cells := _cells(arms, "fork"):
        figures += fault_figures(cells)
        figures += contagion_figures(cells, implied_by_fault)
        figures += detection_figures(cells)
        for arm in (CONTROL, *(kind for kind in KINDS if ("fork", kind) in arms)):
            figures += outcome_curve(eligible(cells, arm), arm)
    if cells := _cells(arms, "natural"):
        figures += natural_figures(cells)
    return figures


def _cells(arms: Mapping[tuple[str, str], Sequence[Transcript]], protocol: str) -> Cells:
    """The continuations of a protocol, by prefix and arm."""
    transcripts = [t for (name, _), some in arms.items() if name == protocol for t in some]
    return by_prefix(read_continuations(transcripts))


def usage_of(record: RecoverRecord, episodes: Iterable[ArmRecord]) -> dict[str, Any]:
    """The tokens of each arm, and of the whole run with all lost requests.

    `written` counts the tokens that the model wrote, by the token ids of the transcripts, after the
    fork. `usage` is what an API counted, and `dollars` its price. A value is `None` where nobody
    counted.

    Args:
        record: The record of the folder.
        episodes: All episodes of the folder.
    """
    price = None if record.price is None else Price(**record.price)  # type: ignore[arg-type]  # `cached` alone may be `None`
    arms: dict[str, list[ArmRecord]] = defaultdict(list)
    for episode in episodes:
        arms[f"{episode.protocol}/{episode.arm}"].append(episode)
    made = {}
    for name, some in arms.items():
        written = [_written(episode.transcript) for episode in some]
        counted = [episode.usage for episode in some if episode.usage is not None]
        used = functools.reduce(Usage.__add__, counted) if counted else None
        made[name] = {
            "episodes": len(some),
            "written": None if None in written else sum(number or 0 for number in written),
            "usage": None if used is None else dataclasses.asdict(used),
            "dollars": None if used is None or price is None else price.of(used),
        }
    return {"arms": made, "all": record.usage, "dollars": record.cost}


def _written(transcript: Transcript) -> int | None:
    """The number of tokens that the model wrote, after the fork if there is one."""
    if transcript.parent is not None:
        return read_continuations([transcript])[0].tokens
    ids = [span.token_ids for span in transcript.spans if span.author == "model"]
    return None if None in ids else sum(len(some or ()) for some in ids)


def comparisons(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Paired tests between all models, two at a time: `comparisons.json`.

    Args:
        folders: The folders of the models in the benchmark.

    Returns:
        For each pair of models their numbers in `folders`, from 1, and a test for each kind of
        fault; see `retool_env.metrics.causal.comparison`. Pairs without a common prefix are left
        out.
    """
    forks = []
    for folder in folders if len(folders) > 1 else ():
        arms = selected(
            read_recover(folder), read_arms(folder, tokens=False), read_left_out(folder)
        )
        forks.append([t for (name, _), some in arms.items() if name == "fork" for t in some])
    made = []
    for (first, some), (second, others) in itertools.combinations(enumerate(forks, 1), 2):
        if rows := compare_models(some, others):
            tests = [dataclasses.asdict(row) for row in rows]
            made.append({"first": first, "second": second, "tests": tests})
    return made


def results(folder: str | Path) -> dict[str, Any]:
    """The content of `results.json`, computed from the other files of a folder.

    Args:
        folder: The folder of a model in the benchmark.

    Raises:
        DataError: A record is damaged.
    """
    record = read_recover(folder)
    left_out = read_left_out(folder)
    episodes = list(read_arms(folder, tokens=False))
    made = ("model", "counts", "usage", "figures")
    named = [name for name in RESULT_FIELDS if name not in made]
    values = record.to_json()
    return {
        "schema": SCHEMA,
        "model": {**values["model"], "title": record.model.title},
        **{name: values[name] for name in named},
        "counts": counts(record, episodes, left_out),
        "usage": usage_of(record, episodes),
        "figures": [
            figure.to_json() for figure in figures_of(selected(record, episodes, left_out))
        ],
    }
