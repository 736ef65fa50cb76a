"""The folder of a submission to the leaderboard: its card, and its checker.

A submission is the folder of a finished run. `check` computes the figures anew from the
transcripts, compares forks with their parents and results with the faults of their arm, and runs a
sample of the programs again.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from retool_env.errors import DataError
from retool_env.evaluation.identity import fingerprint
from retool_env.evaluation.recorded_rules import rules_of
from retool_env.evaluation.recover.figures import results
from retool_env.evaluation.recover.ordered import (
    faulty_call,
    follows,
    is_result,
    shows_arm,
    strange_call,
)
from retool_env.evaluation.recover.protocols import (
    CONTROL,
    PARENTS,
    PROTOCOLS,
    Design,
    injected,
    prefix_jobs,
)
from retool_env.evaluation.recover.records import (
    RESULTS,
    SIZES,
    ArmRecord,
    LeftOut,
    RecoverRecord,
    read_arms,
    read_left_out,
    read_recover,
)
from retool_env.evaluation.replay.programs import replay_programs
from retool_env.execution import Execution, Outcome, Sandbox
from retool_env.faults.kinds import MADE_IN_GUEST, show
from retool_env.faults.schedule import At, Schedule
from retool_env.files import read_text
from retool_env.grading import is_equivalent
from retool_env.problem import Problem
from retool_env.provenance import REVISION
from retool_env.rules import Rules
from retool_env.transcript import Transcript

CAN_NOT_SHOW = (
    "The check can't show that the named model wrote the turns, that the sampling was as recorded, "
    "or that no other run was thrown away. Programs that depend on time or chance may differ when "
    "they run again."
)
"""The limits of the check, for a reader."""

SAMPLE = 20
"""Number of episodes whose programs run again, among the parents and in each protocol."""

MOST_FAILED = 0.05
"""The largest share of episodes that an infrastructure failure may end."""

MOST_DIFFERING = 0.05
"""The largest share of programs that may give another result when they run again."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    """The name of the check."""
    right: bool
    """Whether the submission passed."""
    text: str
    """The reason, or the numbers."""

    def __str__(self) -> str:
        return f"{'ok  ' if self.right else 'FAIL'} {self.name}: {self.text}"


def check(
    folder: str | Path, sandbox: Sandbox | None, sample: int = SAMPLE, seed: int = 0
) -> list[Finding]:
    """Checks the folder of a submission.

    Args:
        folder: The folder.
        sandbox: Runs programs again; `None`: programs do not run.
        sample: Number of episodes whose programs run again, among the parents and in each protocol.
        seed: The seed of the choice of these episodes.

    Raises:
        DataError: A record is damaged, or the run is not finished and has no results.
    """
    record = read_recover(folder)
    episodes = list(read_arms(folder))
    findings = [
        _status(record),
        _suite(record, episodes),
        _whole(record),
        _complete(record, episodes, read_left_out(folder)),
        _left_out(record, episodes, read_left_out(folder)),
        _results(folder, record),
        _verdicts(episodes),
        _forks(episodes),
        _faults(record, episodes),
        _arms(record, episodes),
    ]
    if sandbox is not None:
        findings.append(_replays(record, episodes, sandbox, sample, seed))
    return findings


def _status(record: RecoverRecord) -> Finding:
    right = record.status == "finished" and record.revision == REVISION
    text = f"the run is {record.status}, of revision {record.revision} (here {REVISION})"
    return Finding("run", right, text)


def _suite(record: RecoverRecord, episodes: Sequence[ArmRecord]) -> Finding:
    """The suite is known, and gives the same problems, faults and calls of the forks."""
    if record.suite == "own":
        return Finding("suite", False, "the problems are not from a suite: not ranked")
    from retool_env.evaluation.recover.suite import load_suite

    suite = load_suite(record.suite, record.part, record.quick)
    if suite.hash != record.suite_hash:
        text = f"the hash is {record.suite_hash[:12]}, but here it is {suite.hash[:12]}"
        return Finding("suite", False, text)
    problems = list(suite.problems)[: record.problems]
    known = {problem.id: problem for problem in problems}
    strange = {e.problem for e in episodes if known.get(e.problem) != e.transcript.problem}
    calls = {p.id: [suite.fork_call(p.id, i) for i in range(record.k)] for p in problems}
    differing = [
        name
        for name, same in (
            ("number of problems", record.problems == len(suite.problems)),
            ("problems", not strange and record.fingerprint == fingerprint(problems)),
            ("calls of the forks", record.fork_calls == calls),
            ("kinds of faults", tuple(record.kinds) == tuple(suite.kinds)),
            ("rates", tuple(record.rates) == tuple(suite.rates)),
        )
        if not same
    ]
    text = f"differs in {', '.join(differing)}" if differing else f"{record.suite}, as it is here"
    return Finding("suite", not differing, text)


def _whole(record: RecoverRecord) -> Finding:
    """The run has the whole suite and all protocols."""
    lacking = [f"protocol {name}" for name in PROTOCOLS if name not in record.protocols]
    lacking += ["problems (--quick)"] * record.quick
    lacking += [f"episodes ({name} 0)" for name in SIZES if getattr(record, name) < 1]
    text = f"{record.problems} problems, k {record.k}, m {record.m}, samples {record.samples}"
    return Finding("whole", not lacking, f"it lacks {', '.join(lacking)}" if lacking else text)


def _left_out(
    record: RecoverRecord, episodes: Sequence[ArmRecord], left_out: Sequence[LeftOut]
) -> Finding:
    """Few episodes failed and, without sessions, few prefixes are left out."""
    failed = sum(episode.failed for episode in episodes)
    begun = {e.key[0:1] + e.key[2:5] for e in episodes if e.parent is not None}
    prefixes = len(begun | {(one.protocol, one.problem, one.parent, one.call) for one in left_out})
    few = rules_of(record).session or len(left_out) <= MOST_DIFFERING * prefixes
    right = failed <= MOST_FAILED * len(episodes) and few
    text = f"{failed} of {len(episodes)} episodes failed, "
    text += f"{len(left_out)} of {prefixes} prefixes are left out"
    return Finding("left out", right, f"{text} (at most {MOST_FAILED:.0%} of each)")


def _complete(
    record: RecoverRecord, episodes: Sequence[ArmRecord], left_out: Sequence[LeftOut]
) -> Finding:
    """All episodes of the design are on record, apart from prefixes that are left out."""
    design = _design(record)
    rules = rules_of(record)
    gone = {(one.protocol, one.problem, one.parent, one.call) for one in left_out}
    unfit = {episode.key[:-1] for episode in episodes if not injected(episode.transcript)}
    parents = _parents(episodes)
    keys = {episode.key for episode in episodes}
    jobs = [
        *design.whole_jobs(design.whole_arms(rules, rules)),
        *prefix_jobs(design, parents, first=True),
        *(job for job in prefix_jobs(design, parents, first=False) if job.key[:-1] not in unfit),
    ]
    missing = [job.key for job in jobs if job.key not in keys and job.prefix not in gone]
    text = f"{', '.join(record.protocols)}: {len(keys)} episodes, {len(missing)} are missing"
    return Finding("episodes", not missing, f"{text}, such as {missing[0]}" if missing else text)


def _design(record: RecoverRecord) -> Design:
    """The design of a run; its problems have ids only."""
    from retool_env.evaluation.recover.suite import load_suite

    suite = load_suite("v0" if record.suite == "own" else record.suite, "offline", True)
    return Design(
        tuple(record.protocols),
        [Problem(id=name, question="?", answer="?") for name in record.fork_calls],
        tuple(record.kinds),
        tuple(record.rates),
        lambda problem, parent: record.fork_calls[problem][parent],
        record.k,
        record.m,
        record.samples,
        suite.seed,
    )


def _results(folder: str | Path, record: RecoverRecord) -> Finding:
    """The figures, computed anew, equal the figures of `results.json`."""
    path = Path(folder) / RESULTS
    if record.status != "finished" and not path.exists():
        raise DataError(
            f"{folder} is {record.status} and has no {RESULTS}: finish it with `retool recover "
            f"--resume --out {folder}` and the options of its start, then check it"
        )
    try:
        theirs = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}") from None
    ours = json.loads(json.dumps(results(folder)))
    differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    if not differing:
        return Finding("figures", True, f"{len(ours['figures'])} figures are as computed here")
    return Finding("figures", False, f"{RESULTS} differs in {', '.join(differing)}")


def _verdicts(episodes: Sequence[ArmRecord]) -> Finding:
    """The answers stand in the last turn and, graded anew, have the recorded verdicts."""
    verdicts: dict[tuple[str, str], bool] = {}
    wrong = graded = 0
    for episode in episodes:
        transcript = episode.transcript
        if transcript.correct is None:
            continue
        verdict = False
        ended = transcript.turns[-1].content if transcript.turns else None
        if transcript.answer is not None and transcript.stop_reason == "answered":
            pair = (transcript.answer, transcript.problem.answer)
            if pair not in verdicts:
                verdicts[pair] = is_equivalent(*pair)
            verdict = verdicts[pair]
        graded += 1
        written = transcript.answer is None or transcript.answer == ended
        wrong += verdict != transcript.correct or not written
    return Finding("verdicts", not wrong, f"{graded} verdicts, {wrong} differ")


def _forks(episodes: Sequence[ArmRecord]) -> Finding:
    """Each fork begins with the spans of its parent, and is marked where reasoning is left out."""
    parents = _parents(episodes)
    forks = [episode for episode in episodes if episode.parent is not None]
    strange = [fork.key for fork in forks if not _continues(fork, parents)]
    text = f"{len(forks)} forks, {len(strange)} do not continue their parent as recorded"
    return Finding("forks", not strange, f"{text}, such as {strange[0]}" if strange else text)


def _continues(fork: ArmRecord, parents: Mapping[tuple[str, int], Transcript]) -> bool:
    transcript, parent = fork.transcript, parents.get((fork.problem, fork.parent or 0))
    named = transcript.parent
    if parent is None or named is None:
        return False
    if (named.sample, named.call, named.arm) != (fork.parent, fork.call, fork.arm):
        return False
    length = 2 * fork.call - (fork.arm == "drop")
    mine, theirs = transcript.spans[:length], parent.spans[:length]
    return mine == theirs and named.visible == any(span.apart for span in mine)


def _faults(record: RecoverRecord, episodes: Sequence[ArmRecord]) -> Finding:
    """The result at each fork is what the fault makes of the parent's result.

    The programs of control and fault run again at each fork, so a few results may differ.
    """
    rules = rules_of(record)
    parents = _parents(episodes)
    number: Counter[str] = Counter()
    differing: Counter[str] = Counter()
    for fork in episodes:
        parent = parents.get((fork.problem, fork.parent or 0))
        if fork.protocol == "fork" and parent is not None and _ran(fork.transcript, fork.call):
            number[fork.arm] += 1
            differing[fork.arm] += not _as_ordered(fork, parent, rules)
    wrong = [arm for arm, count in differing.items() if count > MOST_DIFFERING * number[arm]]
    text = f"{number.total()} results at forks, {differing.total()} are not the fault's"
    return Finding("faults", not wrong, f"{text}: {', '.join(wrong)}" if wrong else text)


def _ran(transcript: Transcript, call: int) -> bool:
    """Whether the call of a fork has a result that is not an infrastructure failure."""
    execution = transcript.spans[2 * call].execution if len(transcript.spans) > 2 * call else None
    return execution is not None and execution.outcome is not Outcome.INFRASTRUCTURE


def _as_ordered(fork: ArmRecord, parent: Transcript, rules: Rules) -> bool:
    """Whether the result at a fork follows from the parent's result and the fault of the arm."""
    shown = fork.transcript.spans[2 * fork.call].execution
    true = parent.spans[2 * fork.call].execution if _ran(parent, fork.call) else None
    if shown is None or true is None:
        return False
    if fork.arm == CONTROL:
        return shown.fault is None and _same(shown, true)
    call = faulty_call(fork.transcript, fork.call, fork.arm, rules)
    if shown.fault is None or shown.fault.kind != fork.arm:
        return False
    if len(true.stdout) > rules.output_characters:  # cut in the record: the rest is not known
        return True
    if fork.arm not in MADE_IN_GUEST:
        return is_result(call, shown, show(call, true))
    if not shown.fault.injected:
        return _same(shown, true)
    alone = fork.arm == "wrong_function" and not rules.session
    return follows(call, shown) and not (alone and call.seen(shown) == call.seen(true))


def _arms(record: RecoverRecord, episodes: Sequence[ArmRecord]) -> Finding:
    """The results of each episode follow from its arm's faults, and the arm `text` has no call."""
    rules, design, parents = rules_of(record), _design(record), _parents(episodes)
    whole = design.whole_arms(rules, rules)
    number: Counter[str] = Counter()
    strange: Counter[str] = Counter()
    for episode in episodes:
        transcript, arm = episode.transcript, (episode.protocol, episode.arm)
        schedule: Schedule | None = None
        if arm in whole:
            schedule = whole[arm].schedule(transcript.problem, episode.sample)
        elif episode.protocol == "fork" and episode.arm != CONTROL:
            schedule = At(episode.call, episode.arm)
        number["/".join(arm)] += 1
        if arm == ("frequency", "text"):
            wrong = transcript.interpreter or any(span.execution for span in transcript.spans)
        else:
            wrong = not transcript.interpreter or strange_call(transcript, rules, schedule) > 0
        parent = parents.get((episode.problem, episode.parent or 0))
        if episode.protocol == "natural" and parent is not None and transcript.parent is not None:
            wrong = wrong or not shows_arm(transcript, parent)
        strange["/".join(arm)] += wrong
    differing = [f"{arm} ({count} of {number[arm]})" for arm, count in strange.items() if count]
    text = f"{number.total()} episodes, {strange.total()} do not follow from their arm's faults"
    return Finding("arms", not differing, f"{text}: {', '.join(differing)}" if differing else text)


def _same(one: Execution, other: Execution) -> bool:
    return (one.outcome, one.stdout) == (other.outcome, other.stdout)


def _parents(episodes: Sequence[ArmRecord]) -> dict[tuple[str, int], Transcript]:
    """The parents by the problem's id and the number of the sample."""
    return {
        (episode.problem, episode.sample): episode.transcript
        for episode in episodes
        if (episode.protocol, episode.arm) == PARENTS
    }


def _replays(
    record: RecoverRecord,
    episodes: Sequence[ArmRecord],
    sandbox: Sandbox,
    sample: int,
    seed: int,
) -> Finding:
    """Programs of some episodes, run again, give the recorded results.

    As many episodes are chosen among the parents as among all others of each protocol.
    """
    rules = rules_of(record)
    groups: dict[str, list[Transcript]] = {}
    for episode in episodes:
        if episode.transcript.calls:
            parent = (episode.protocol, episode.arm) == PARENTS
            name = "parents" if parent else episode.protocol
            groups.setdefault(name, []).append(episode.transcript)
    wrong, number, ran, different = [], 0, 0, 0
    for name, transcripts in groups.items():
        chosen = random.Random(seed).sample(transcripts, min(sample, len(transcripts)))
        again = [one for each in chosen for one in replay_programs(each, rules, sandbox)]
        differing = sum(one.verdict == "differs" for one in again)
        wrong += [name] * (differing > MOST_DIFFERING * len(again))
        number, ran, different = number + len(chosen), ran + len(again), different + differing
    text = f"{ran} programs of {number} episodes ran again, {different} differ"
    return Finding("programs", not wrong, f"{text}: {', '.join(wrong)}" if wrong else text)


def write_card(folder: str | Path) -> None:
    """Writes the files of a data set on the Hub: `README.md`, its card, and `eval.yaml`.

    Args:
        folder: The folder of a run with its results.
    """
    folder = Path(folder)
    record = read_recover(folder)
    task = {"id": f"recover_{record.suite}", "config": "default", "split": "test"}
    benchmark = {
        "name": f"ReTool-Recover {record.suite}",
        "description": "Use of a code interpreter, and recovery from its faults.",
        "evaluation_framework": "retool-env",
        "tasks": [task],
    }
    text = yaml.safe_dump(benchmark, sort_keys=False, allow_unicode=True, width=1000)
    (folder / "eval.yaml").write_text(text, encoding="utf-8")
    files = [{"split": "test", "path": "episodes.jsonl"}]
    head = {
        "pretty_name": f"ReTool-Recover {record.suite}: {record.model.title}",
        "tags": ["benchmark", "tool-use", "code-interpreter"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000)
    card = _CARD.format(front=front, title=record.model.title, record=record, limits=CAN_NOT_SHOW)
    (folder / "README.md").write_text(card, encoding="utf-8")


_CARD = """---
{front}---

# {title} in ReTool-Recover {record.suite}

`retool recover` ran {record.problems} problems of the suite {record.suite}
(`{record.suite_hash}`) at revision {record.revision} of retool-env, with {record.k} parents for
each problem, {record.m} continuations in each arm and {record.samples} episodes in each arm of the
frequency protocol. The run is {record.status}.

| file | content |
|---|---|
| `recover.json` | the model, the suite, the design and the settings |
| `episodes.jsonl` | one line for each episode, with its protocol, arm and whole transcript |
| `left_out.jsonl` | the prefixes that could not be reproduced |
| `results.json` | the figures, with intervals, and the counts |
| `page.html` | the pictures |

Check the folder with `retool recover --check FOLDER`. {limits}
"""
