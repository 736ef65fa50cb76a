"""The protocols of `retool recover`: which episodes run, and how each is run.

`dose` and `frequency` are whole episodes under rules of their own, all known beforehand. The
episodes of `dose` without faults are the parents of `fork` and `natural`, whose prefixes are known
when the parents have ended. `steps` gives the jobs in this order; each job has a key, so that a
resumed run does each job once.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from retool_env.episode import Episode, Generation
from retool_env.evaluation.recover.records import ArmKey
from retool_env.evaluation.run import run_episode
from retool_env.execution import Outcome
from retool_env.faults import KINDS, Faults
from retool_env.faults.schedule import At
from retool_env.problem import Problem
from retool_env.rollout.engine import RolloutEngine
from retool_env.rollout.fork import Fork, error_arms, has_program, shown_calls
from retool_env.rollout.policy import Policy, TextPolicy, Usage
from retool_env.rules import Rules
from retool_env.transcript import StopReason, Transcript

PROTOCOLS = ("dose", "fork", "natural", "frequency")
"""The names of the protocols."""

CONTROL = "control"
"""The arm of a fork with the true result."""

NATURAL = ("keep", "drop", "bare", "mended")
"""The arms at a failed call of the model's own."""

FREQUENCY = ("text", "tool", "gone")
"""The arms of the protocol `frequency`: a prompt without the tool; the tool works; every call is
answered with the text that the tool is gone."""

PARENTS = ("dose", "0")
"""Protocol and arm of the parents: whole episodes without faults."""


@dataclass(frozen=True)
class Design:
    """The episodes that a run of the benchmark asks for."""

    protocols: tuple[str, ...]
    """The protocols."""
    problems: Sequence[Problem]
    """The problems, in their order."""
    kinds: tuple[str, ...]
    """The kinds of faults."""
    rates: tuple[float, ...]
    """The rates of faults in the protocol `dose`; the first one is 0."""
    fork_call: Callable[[str, int], int]
    """A function from a problem's id and the number of a parent to the call of its fork, from 1."""
    k: int
    """Number of parents of a problem, and of its episodes at each rate."""
    m: int
    """Number of continuations in each arm of a prefix."""
    samples: int
    """Number of episodes of a problem in each arm of `frequency`."""
    seed: int = 0
    """The seed of the faults."""

    @property
    def forks(self) -> bool:
        """Whether a protocol continues parents."""
        return "fork" in self.protocols or "natural" in self.protocols

    def whole_arms(self, rules: Rules, text_rules: Rules) -> dict[tuple[str, str], Rules]:
        """The rules of each arm of whole episodes.

        Args:
            rules: The settings of the episodes, without faults.
            text_rules: The settings of episodes whose prompt does not offer the tool.
        """
        faults = Faults(kinds=self.kinds, seed=self.seed)
        arms: dict[tuple[str, str], Rules] = {}
        rates = self.rates if "dose" in self.protocols else self.rates[:1] if self.forks else ()
        for rate in rates:
            ordered = dataclasses.replace(faults, rate=rate) if rate else None
            arms["dose", f"{rate:g}"] = dataclasses.replace(rules, faults=ordered)
        if "frequency" in self.protocols:
            offered = with_room_for_results(rules)
            gone = dataclasses.replace(faults, rate=1.0, kinds=("gone",))
            arms["frequency", "text"] = text_rules
            arms["frequency", "tool"] = offered
            arms["frequency", "gone"] = dataclasses.replace(offered, faults=gone)
        return arms

    def whole_jobs(self, arms: Iterable[tuple[str, str]]) -> Iterator[Job]:
        """The jobs of all whole episodes, the parents first.

        Args:
            arms: Protocol and name of each arm.
        """
        for protocol, arm in arms:
            count = self.k if protocol == "dose" else self.samples
            for index, problem in enumerate(self.problems):
                for sample in range(count):
                    yield Job(protocol, arm, index, problem, sample)


@dataclass(frozen=True)
class Job:
    """One episode to run."""

    protocol: str
    """The protocol."""
    arm: str
    """The arm."""
    index: int
    """The index of the problem."""
    problem: Problem
    """The problem."""
    sample: int
    """The number of the episode in its arm, from 0."""
    parent: int | None = None
    """The number of the parent; `None` for a whole episode."""
    call: int = 0
    """The number of the call at which the parent is forked, from 1."""

    @property
    def key(self) -> ArmKey:
        """Names the episode in the records."""
        return self.protocol, self.arm, self.problem.id, self.parent, self.call, self.sample

    @property
    def prefix(self) -> tuple[str, str, int | None, int]:
        """Names the prefix: protocol, problem, parent and call."""
        return self.protocol, self.problem.id, self.parent, self.call


def with_room_for_results(rules: Rules) -> Rules:
    """Rules with as many tokens for the model's own text as without a tool.

    `Rules.max_tokens` also counts results of programs. The arms of `frequency` get room for the
    longest results, and the figures count an episode as cut once the model's own tokens exceed the
    budget (`retool_env.evaluation.recover.figures.within_budget`).
    """
    if rules.max_tokens is None or rules.max_calls is None:
        return rules
    # A token has a character at least, and a result some words around the output.
    room = rules.max_calls * (rules.output_characters + 200)
    return dataclasses.replace(rules, max_tokens=rules.max_tokens + room)


def with_turn_cap[P: Policy](policy: P, tokens: int) -> P:
    """The same policy, whose turns have at most so many tokens.

    A turn as long as the whole budget of the model's own tokens counts as cut in any case, so an
    arm with room for results need not sample it any further.

    Args:
        policy: The policy. It stays as it is, and is shared.
        tokens: The most tokens of a turn.
    """
    capped = copy.copy(policy)

    async def act(
        token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        return await policy.act(token_ids, stop, min(budget, tokens), seed)

    capped.act = act  # type: ignore[method-assign]  # of this copy alone
    return capped


def first_failed(transcript: Transcript) -> int:
    """The number of the first failed call whose result the model saw, from 1; 0 without one."""
    for call in shown_calls(transcript):
        execution = transcript.spans[2 * call].execution
        if execution is not None and execution.outcome is not Outcome.OK:
            return call
    return 0


def can_fork(transcript: Transcript, call: int) -> bool:
    """Whether a parent has a call of this number with a program whose result the model saw."""
    failed = transcript.stop_reason is StopReason.INFRASTRUCTURE
    return not failed and call in shown_calls(transcript) and has_program(transcript, call)


def prefix_jobs(
    design: Design, parents: Mapping[tuple[str, int], Transcript], first: bool
) -> Iterator[Job]:
    """The jobs of all prefixes, of `fork` and of `natural`.

    Args:
        design: The design.
        parents: The parents, by the problem's id and the number of the sample.
        first: Whether the first continuation of each arm is wanted, or all others. The first one
            tells whether the call is eligible for the fault of the arm.
    """
    numbers = range(1) if first else range(1, design.m)
    for index, problem in enumerate(design.problems):
        for parent in range(design.k):
            if (transcript := parents.get((problem.id, parent))) is None:
                continue
            for protocol, call, arms in _prefixes(design, transcript, parent):
                for arm in arms:
                    for sample in numbers:
                        yield Job(protocol, arm, index, problem, sample, parent, call)


def _prefixes(
    design: Design, transcript: Transcript, parent: int
) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Protocol, call and arms of the prefixes of one parent."""
    call = design.fork_call(transcript.problem.id, parent)
    if "fork" in design.protocols and can_fork(transcript, call):
        yield "fork", call, (CONTROL, *design.kinds)
    scored = transcript.stop_reason is not StopReason.INFRASTRUCTURE
    if "natural" in design.protocols and scored and (call := first_failed(transcript)):
        yield "natural", call, tuple(fork.arm for fork in error_arms(transcript, call, parent))


def injected(transcript: Transcript) -> bool:
    """Whether the fault of a fork's arm took place.

    A fork without a fault in its arm counts, and so does a fork whose sandbox failed at the call:
    whether this call is eligible is not known.
    """
    parent = transcript.parent
    if parent is None or parent.arm not in KINDS or len(transcript.spans) <= 2 * parent.call:
        return True
    execution = transcript.spans[2 * parent.call].execution
    return execution is not None and execution.fault is not None and execution.fault.injected


def fork_of(job: Job, parent: Transcript) -> Fork:
    """The state from which the episode of a job goes on.

    Args:
        job: The job of a prefix.
        parent: The parent.
    """
    sample = job.parent or 0
    if job.protocol == "natural":
        arms = {fork.arm: fork for fork in error_arms(parent, job.call, sample)}
        return arms[job.arm]
    schedule = None if job.arm == CONTROL else At(job.call, job.arm)
    # The control arm's result leaves this budget: the arms differ by the result alone.
    return Fork(
        parent, job.call, job.arm, schedule=schedule, sample=sample, equal_budget=bool(schedule)
    )


async def run_job(
    engine: RolloutEngine,
    job: Job,
    seed: int,
    parent: Transcript | None,
    on_begin: Callable[[Episode], None],
) -> tuple[Transcript, Usage | None]:
    """Runs the episode of a job.

    The seeds of whole episodes leave out the arm: the episodes of one sample differ by the rules of
    their arms alone.

    Args:
        engine: The engine with the rules of the job's arm.
        job: The job.
        seed: The seed of all sampling.
        parent: The parent; `None` for a whole episode.
        on_begin: Called with the episode at the beginning of each attempt.

    Returns:
        The transcript, and the tokens that an API counted for its turns.

    Raises:
        NotReproducible: The programs of the prefix gave other results than before.
        SettingsError: The request to an API differs from the parent's own next request.
    """
    if parent is None:
        numbers: tuple[int, ...] = (seed, job.index, job.sample)
        return await run_episode(engine, job.problem, numbers, on_begin=on_begin)
    fork = fork_of(job, parent)
    if isinstance(engine.policy, TextPolicy):
        begun = engine.begin(job.problem, fork)
        fork.check_request(engine.policy.digests(begun.transcript, begun.stop))
    numbers = (seed, *fork.seeds, job.sample)
    return await run_episode(engine, job.problem, numbers, fork=fork, on_begin=on_begin)
