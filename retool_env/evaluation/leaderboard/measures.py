"""The figures of a leaderboard, computed from the transcripts of one run.

Nothing is read from `results.json`, which a submitter could have written by hand. A figure on which
the run says nothing has no value and a reason. Kinds of faults are joined to families; each prefix
has the same weight, with the mean over the continuations of all eligible kinds of the family.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from retool_env.evaluation.records import EpisodeRecord, EvalRecord
from retool_env.evaluation.recover.figures import selected
from retool_env.evaluation.recover.protocols import CONTROL, FREQUENCY, PARENTS
from retool_env.evaluation.recover.records import ArmRecord, LeftOut, RecoverRecord
from retool_env.evaluation.rows import price_of
from retool_env.faults import KINDS, Kind
from retool_env.metrics.causal.continuation import (
    Cells,
    Continuation,
    by_prefix,
    mean_value,
    read_continuations,
)
from retool_env.metrics.causal.detection import notices
from retool_env.metrics.causal.effects import joined
from retool_env.metrics.causal.episodes import Episodes, compared, failure_bounds, mean, right
from retool_env.metrics.causal.figure import arm_difference, arm_ratio, arm_share, causal
from retool_env.metrics.causal.frequency import frequency_figures
from retool_env.metrics.causal.intervals import share
from retool_env.metrics.estimators import ClusterMean
from retool_env.metrics.figure import Figure, mean_of
from retool_env.metrics.scored_episode import ScoredEpisode
from retool_env.metrics.tool_use import funnel
from retool_env.transcript import Transcript

RANKED = ("accuracy", "uplift", "faults")
"""The figures by which models can be ranked; more is better in each."""

SPLITS = ("seen", "held_out")
"""The kinds of faults that training may use, and the other kinds."""

FAMILIES = ("explicit", "explicit_persistent", "silent", "silent_persistent", "placebo")
"""The families of faults. The placebos are the control: they change nothing of a result."""

_NO_KIND = "the run has no kind of this family"

_USE = {
    "use/attempted": "attempted",
    "use/well_formed": "well_formed",
    "use/ran": "ran",
    "use/missed/written_output": "invented",
}
"""The figures of the use of the tool by their key in an evaluation."""


@dataclass
class Measures:
    """The figures of one run."""

    figures: dict[str, Figure] = field(default_factory=dict)
    """The figures by key."""
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    """The value of each problem, by the keys of `RANKED`: the pairs of the tests."""
    visible: int = 0
    """Number of prefixes of which an API takes only the visible messages back."""
    prefixes: int = 0
    """Number of all prefixes."""


def family_of(kind: Kind) -> str:
    """The name of a kind's family, one of `FAMILIES`."""
    persistent = kind.persistent and kind.sort != "placebo"
    return f"{kind.sort}_persistent" if persistent else kind.sort


def measure_eval(record: EvalRecord, episodes: Sequence[EpisodeRecord]) -> Measures:
    """The figures of an evaluation, which has neither faults nor an arm without the tool.

    Args:
        record: The record of the evaluation.
        episodes: The episodes of the evaluation.
    """
    made = Measures()
    _add_whole(made, record, episodes)
    reason = "`retool eval` runs no faults and no arm without the tool"
    for key in [*_of_forks(), "uplift"]:
        _lack(made, key, reason)
    return made


def measure_recover(
    record: RecoverRecord, episodes: Sequence[ArmRecord], left_out: Sequence[LeftOut]
) -> Measures:
    """The figures of a run of `retool recover`.

    Args:
        record: The record of the run.
        episodes: All episodes of the run.
        left_out: The prefixes that can't be reproduced.
    """
    made = Measures()
    parents = [one for one in episodes if (one.protocol, one.arm) == PARENTS]
    _add_whole(made, record, parents)
    arms = selected(record, episodes, left_out)
    _add_uplift(made, arms)
    forks = [t for (protocol, _), some in arms.items() if protocol == "fork" for t in some]
    cells = by_prefix(read_continuations(forks))
    _add_forks(made, cells, record.kinds)
    made.prefixes = len(cells)
    made.visible = sum(any(o.visible for row in c.values() for o in row) for c in cells.values())
    return made


def _lack(made: Measures, key: str, reason: str) -> None:
    nothing = ClusterMean(0, 0, None, None, None)
    made.figures[key] = causal(key, nothing, "", reason=reason)


def _add_whole(made: Measures, record: EvalRecord, episodes: Sequence[EpisodeRecord]) -> None:
    """Accuracy, use of the tool, tokens and dollars of whole episodes without faults."""
    arm = Episodes.of(episode.transcript for episode in episodes)
    made.values["accuracy"] = {p: mean(some, right) for p, some in arm.by_problem.items()}
    made.figures["accuracy"] = causal(
        "accuracy",
        share((p, mean(some, right), len(some)) for p, some in arm.by_problem.items()),
        "Mean over problems of the share of right episodes, without faults.",
        count=arm.count,
        failed=arm.failed,
        **failure_bounds(arm),
    )
    scored = [episode for episode in episodes if episode.transcript.scored]
    tool = [ScoredEpisode(e.transcript) for e in scored if e.transcript.interpreter]
    for figure in funnel(tool):
        if figure.key in _USE:
            key = _USE[figure.key]
            made.figures[key] = dataclasses.replace(figure, key=key)
    tokens = [(e.problem, n) for e in scored if (n := _tokens(e)) is not None]
    words = "Mean number of tokens that the model writes in an episode without faults."
    made.figures["tokens"] = mean_of("tokens", tokens, words)
    if not tokens:
        _lack(made, "tokens", "nobody counted the tokens")
    dollars = [(e.problem, cost) for e in scored if (cost := _dollars(record, e)) is not None]
    words = "Mean cost in dollars of an episode without faults, by the price of the run."
    made.figures["dollars"] = mean_of("dollars", dollars, words)
    if not dollars:
        _lack(made, "dollars", "the run has no price, or nobody counted the tokens")


def _tokens(episode: EpisodeRecord) -> int | None:
    ids = [span.token_ids for span in episode.transcript.spans if span.author == "model"]
    if ids and None not in ids:
        return sum(len(some or ()) for some in ids)
    usage = episode.usage
    return None if usage is None or usage.uncounted else usage.completion_tokens


def _dollars(record: EvalRecord, episode: EpisodeRecord) -> float | None:
    price, usage = price_of(record), episode.usage
    return None if price is None or usage is None or usage.uncounted else price.of(usage)


def _add_uplift(made: Measures, arms: Mapping[tuple[str, str], Sequence[Transcript]]) -> None:
    if not all(("frequency", arm) in arms for arm in FREQUENCY):
        _lack(made, "uplift", "the protocol frequency was not run")
        return
    text, tool, gone = (arms["frequency", arm] for arm in FREQUENCY)
    gain = next(f for f in frequency_figures(text, tool, gone) if f.key == "frequency/gain")
    made.figures["uplift"] = dataclasses.replace(gain, key="uplift")
    made.values["uplift"] = {
        str(pair.problem): pair.first - pair.second
        for pair in compared(Episodes.of(tool), Episodes.of(text))
    }


def _of_forks() -> list[str]:
    """The keys of the figures that need forks."""
    ratios = [f"recovery/{family}/{split}" for split in SPLITS for family in FAMILIES]
    return ["faults", "effect", *ratios, *(f"detection/{split}" for split in SPLITS)]


def _add_forks(made: Measures, cells: Cells, kinds: Sequence[str]) -> None:
    """The fault effect, and for each family the recovery ratio, and the detection."""
    if not cells:
        for key in _of_forks():
            _lack(made, key, "no episode was forked")
        return
    known = [KINDS[name] for name in kinds]
    faults = [kind.name for kind in known if kind.sort != "placebo"]
    chosen = _joined(cells, "faults", faults)
    made.figures["faults"] = arm_share(
        "faults",
        chosen,
        "faults",
        _right,
        "Accuracy after a fault: mean over prefixes of the share of right continuations after a "
        "fault of any kind, placebos apart.",
    )
    made.figures["effect"] = arm_difference(
        "effect",
        chosen,
        ("faults", CONTROL),
        _right,
        "Fault effect: accuracy after a fault of any kind, placebos apart, minus accuracy after "
        "the true result, on the same prefixes.",
    )
    made.values["faults"] = _by_problem(chosen, "faults")
    for split in SPLITS:
        some = [kind for kind in known if kind.seen == (split == "seen")]
        for family in FAMILIES:
            names = [kind.name for kind in some if family_of(kind) == family]
            _add_ratio(made, cells, family, split, names)
        silent = [kind.name for kind in some if kind.sort == "silent"]
        _add_detection(made, cells, split, silent)


def _add_detection(made: Measures, cells: Cells, split: str, names: list[str]) -> None:
    key = f"detection/{split}"
    if not names:
        _lack(made, key, _NO_KIND)
        return
    made.figures[key] = arm_difference(
        key,
        _joined(cells, "silent", names),
        ("silent", CONTROL),
        notices,
        "Share of continuations that notice a silently false result, minus the share after the "
        "true result. A lower bound, by rules on English text.",
    )


def _add_ratio(made: Measures, cells: Cells, family: str, split: str, names: list[str]) -> None:
    key = f"recovery/{family}/{split}"
    if not names:
        _lack(made, key, _NO_KIND)
        return
    chosen = _joined(cells, family, names)
    made.figures[key] = ratio = arm_ratio(
        key,
        chosen,
        (family, CONTROL),
        _right,
        f"Recovery ratio: accuracy after a fault ({', '.join(names)}) divided by accuracy after "
        "the true result, over all prefixes.",
    )
    if chosen and ratio.mean is None:
        reason = "no continuation of the true result is right"
        made.figures[key] = dataclasses.replace(ratio, shown=False, reason=reason)


def _joined(cells: Cells, name: str, kinds: Sequence[str]) -> Cells:
    """The prefixes at which one of the kinds took place, with all of them as one arm."""
    made = joined(cells, name, tuple(kinds))
    return {prefix: arms for prefix, arms in made.items() if name in arms and CONTROL in arms}


def _by_problem(cells: Cells, arm: str) -> dict[str, float]:
    """The mean over the prefixes of each problem of the share of right continuations."""
    values: dict[str, list[float]] = defaultdict(list)
    for prefix, arms in cells.items():
        if found := mean_value(arms[arm], _right):
            values[prefix[0]].append(found[0])
    return {problem: sum(some) / len(some) for problem, some in values.items()}


def _right(one: Continuation) -> float:
    return one.right
