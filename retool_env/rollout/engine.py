"""RolloutEngine: one coroutine for each episode, without a barrier between turns.

While the program of one episode runs, the other episodes generate. Token budgets shrink as an
episode grows. Groups are yielded as they complete. Every episode is accounted for: an episode that
fails for reasons of the infrastructure is tried again and then returned as failed, and episodes
that are cut or dropped are counted.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing, closing
from typing import Any

from retool_env.checkpoint_task import checkpoint_rules
from retool_env.episode import Episode
from retool_env.errors import NotReproducible, SettingsError
from retool_env.execution import Execution, Sandbox
from retool_env.faults.schedule import At, Schedule
from retool_env.interpreter import Interpreter, check_kind, check_sandbox
from retool_env.problem import Problem
from retool_env.rollout.admission import Admission
from retool_env.rollout.drive import drive
from retool_env.rollout.fork import Fork
from retool_env.rollout.group import Group as Group
from retool_env.rollout.group import Rollout, as_completed, checked_transcript, first_finished
from retool_env.rollout.policy import Policy, TextPolicy, as_policy
from retool_env.rollout.progress import Progress
from retool_env.rules import Rules
from retool_env.servers.background import BackgroundLoop
from retool_env.transcript import StopReason, Transcript

_RETRY_SECONDS = 0.5

_log = logging.getLogger(__name__)


class RolloutEngine:
    """Runs the episodes of a policy.

    Args:
        policy: The model. A class that inherits neither `Policy` nor `TextPolicy` gets the defaults
            of `Policy` if it has `act`, and of `TextPolicy` if it has `write`.
        rules: The settings of the episodes. `None`: the rules in the checkpoint of the policy
            (`retool.json`), which are printed. A policy of token ids needs `max_tokens`; a policy
            of text takes neither `max_tokens` nor `tokens_in_flight`.
        sandbox: The sandbox in which programs run. It may be `None` only if the rules turn the
            interpreter off.
        concurrency: The most episodes in flight at once, over all runs in one event loop.
        tokens_in_flight: The most tokens to which all episodes in flight may grow together: the
            capacity of the policy's cache. `None`: no bound but the policy's own (`Policy.admits`).
        attempts: The number of attempts at an episode that fails for reasons of the infrastructure,
            including the first attempt.
        progress: The counters to update. `None`: new counters, `engine.progress`.

    Raises:
        SettingsError: If a number is out of range, a limit on tokens does not suit the policy, an
            interpreter has no sandbox, or the rules are missing and the policy's checkpoint has no
            valid rules.
        SandboxUnavailable: If the rules ask for sessions and the sandbox does not support them.
    """

    def __init__(
        self,
        policy: Policy | TextPolicy,
        rules: Rules | None,
        sandbox: Sandbox | None,
        concurrency: int = 256,
        tokens_in_flight: int | None = None,
        attempts: int = 2,
        progress: Progress | None = None,
    ) -> None:
        policy = as_policy(policy)
        rules = checkpoint_rules(policy.checkpoint) if rules is None else rules
        self._of_text = isinstance(policy, TextPolicy)
        if self._of_text and (rules.max_tokens, tokens_in_flight) != (None, None):
            raise SettingsError(
                "this policy returns text without token ids: set max_characters, and leave out "
                "max_tokens and tokens_in_flight"
            )
        if not self._of_text and rules.max_tokens is None:
            raise SettingsError("the rules have no token budget for rollouts: set max_tokens")
        check_sandbox(rules, sandbox)
        self.policy: Any = policy
        self.rules = rules
        self.sandbox = sandbox
        self.concurrency = concurrency
        self.tokens_in_flight = tokens_in_flight
        self.attempts = attempts
        for name in ("concurrency", "tokens_in_flight", "attempts"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise SettingsError(f"{name} must be at least 1, not {number}")
        self.progress = Progress() if progress is None else progress
        if self._of_text:
            self.progress.unit = "characters"
        self._admissions: dict[asyncio.AbstractEventLoop, Admission] = {}

    async def groups(
        self,
        problems: Sequence[Problem],
        n: int = 1,
        seed: int | Sequence[int] = 0,
        deadline: float | None = None,
        oversample: float = 1.0,
        on_dropped: Callable[[Transcript], None] | None = None,
    ) -> AsyncGenerator[tuple[int, Group]]:
        """Yield `(index of the problem, its n transcripts)` as groups complete.

        Closing this generator, or cancelling the task that iterates over it, ends all running
        episodes. `contextlib.aclosing` closes it at once; otherwise the event loop closes it when
        the last reference is gone.

        Args:
            problems: The problems. Each gives one group.
            n: The number of rollouts for each problem.
            seed: The root seed, one number or several. The seed of a turn derives from it and the
                numbers of the problem, the rollout and the turn.
            deadline: The seconds after which running episodes are cut (`StopReason.CANCELLED`) and
                failed episodes are not tried again. An answer that has been given is graded.
                `None`: no deadline.
            oversample: The number of rollouts begun for each rollout that is kept. A group is
                complete when its first `n` rollouts have finished without a failure; the rest is
                dropped. Short episodes finish first, so kept rollouts are shorter than the policy's
                average.
            on_dropped: Called with the transcript of each dropped rollout that had begun, before
                its group is yielded. Running rollouts are cut; an answer that has been given is
                graded first. `None`: dropped rollouts are discarded.

        Raises:
            SettingsError: If a number is out of range, or a prompt fills the model's context.
        """
        if n < 1 or oversample < 1 or (deadline is not None and not deadline > 0):
            raise SettingsError(
                "n and oversample must be at least 1, and a deadline above 0: "
                f"{n}, {oversample}, {deadline}"
            )
        root = (seed,) if isinstance(seed, int) else tuple(seed)
        self.check_prompts(problems)  # at once, not hours later
        admission = self._admission()
        self.progress.expect(n * len(problems))
        begun = math.ceil(n * oversample - 1e-9)  # 50 * 1.1 is a little more than 55
        rollouts = [
            [self._rollout(admission, problem, (*root, index, i)) for i in range(begun)]
            for index, problem in enumerate(problems)
        ]

        async def run_group(index: int) -> tuple[int, Group]:
            group = await first_finished(rollouts[index], n, on_dropped)
            self.progress.dropped += begun - n
            for transcript in group:
                self.progress.finished(transcript)
            return index, group

        async with aclosing(as_completed(rollouts, run_group, deadline)) as groups:
            async for group in groups:
                yield group

    async def forks(
        self,
        forks: Sequence[Fork],
        n: int = 1,
        seed: int | Sequence[int] = 0,
        deadline: float | None = None,
    ) -> AsyncGenerator[tuple[int, Group | NotReproducible]]:
        """Yield `(index of the fork, its n transcripts)` as the groups of forks complete.

        The episodes of a fork go on from the same tokens (`retool_env.rollout.fork`). A fork whose
        programs do not give the recorded results yields the reason in place of its transcripts.
        Closing works as in `groups`.

        Args:
            forks: The forks.
            n: The number of episodes for each fork.
            seed: The root seed, one number or several. The seed of a turn derives from it, from
                the fork's problem, sample, call and arm, and from the numbers of the episode and
                the turn. It does not depend on the order of `forks`.
            deadline: See `groups`.

        Raises:
            SettingsError: If a number is out of range, the rules have faults, the prompt of a
                parent is not the prompt of these rules, or a request to an API would differ from
                the request of the parent.
        """
        if n < 1 or (deadline is not None and not deadline > 0):
            raise SettingsError(f"n must be at least 1, and a deadline above 0: {n}, {deadline}")
        root = (seed,) if isinstance(seed, int) else tuple(seed)
        for fork in forks:  # at once, not hours later
            self.check_fork(fork)
        admission = self._admission()
        self.progress.expect(n * len(forks))
        rollouts = [
            [
                self._rollout(admission, fork.transcript.problem, (*root, *fork.seeds, i), fork)
                for i in range(n)
            ]
            for fork in forks
        ]

        async def run_fork(index: int) -> tuple[int, Group | NotReproducible]:
            try:
                group = await first_finished(rollouts[index], n, None)
            except NotReproducible as reason:
                self.progress.expect(-n)
                return index, reason
            for transcript in group:
                self.progress.finished(transcript)
            return index, group

        async with aclosing(as_completed(rollouts, run_fork, deadline)) as groups:
            async for group in groups:
                yield group

    def fork(
        self,
        transcript: Transcript,
        call: int,
        result: Execution | None = None,
        n: int = 1,
        seed: int | Sequence[int] = 0,
        arm: str = "control",
        schedule: Schedule | None = None,
        sample: int = 0,
    ) -> Group:
        """Go on from a call of a finished episode `n` times, and wait for the episodes.

        Args:
            transcript: The parent.
            call: The number of the call, from 1.
            result: The result to show. `None`: the recorded result, or the result under `schedule`.
            n: The number of episodes.
            seed: See `forks`.
            arm: The name of the arm.
            schedule: The faults of this call and of later calls. `None`: no faults.
            sample: The number of the parent among the episodes of its problem.

        Returns:
            The transcripts; each names its parent.

        Raises:
            NotReproducible: If a program that runs anew does not give the recorded result.
            SettingsError: If no fork can go on from this call; see `forks`.
        """
        fork = Fork(transcript, call, arm, result, schedule, sample)

        async def collect() -> Group:
            async with aclosing(self.forks([fork], n, seed)) as groups:
                _, group = await anext(groups)
            if isinstance(group, NotReproducible):
                raise group
            return group

        return run_blocking(collect())

    def check_fork(self, fork: Fork) -> None:
        """Check that the rules suit a fork, and that its request to an API repeats its parent's.

        Raises:
            SettingsError: If the rules have faults, the prompt of the parent is not the prompt of
                these rules, or a part of the request differs.
            SandboxUnavailable: If the sandbox can't make the fault of the fork.
        """
        if self.rules.faults is not None:
            raise SettingsError(
                "forks need rules without faults: the fault of a fork is its schedule or result"
            )
        if isinstance(fork.schedule, At):
            check_kind(self.sandbox, fork.schedule.kind)
        episode = self.begin(fork.transcript.problem, fork)
        if self._of_text:
            fork.check_request(self.policy.digests(episode.transcript, episode.stop))

    def _rollout(
        self,
        admission: Admission,
        problem: Problem,
        seed: Sequence[int],
        fork: Fork | None = None,
    ) -> Rollout:
        return Rollout(
            admission,
            functools.partial(self.begin, problem, fork, seed[-1]),
            functools.partial(self.episode, problem, seed, fork=fork),
            functools.partial(self._most_tokens, problem),
        )

    def _admission(self) -> Admission:
        # Locks and events belong to one event loop, and each `run` has a loop of its own.
        loop = asyncio.get_running_loop()
        # Locks and events refer to their loop, so a dictionary of weak keys would keep every loop.
        for closed in [known for known in self._admissions if known.is_closed()]:
            del self._admissions[closed]
        if loop not in self._admissions:
            admits = None if self._of_text else self.policy.admits
            self._admissions[loop] = Admission(self.concurrency, self.tokens_in_flight, admits)
        return self._admissions[loop]

    def run(
        self,
        problems: Sequence[Problem],
        n: int = 1,
        seed: int | Sequence[int] = 0,
        on_group: Callable[[int, Group], None] | None = None,
        deadline: float | None = None,
        oversample: float = 1.0,
    ) -> list[Group]:
        """Run all episodes and wait for them.

        Args:
            problems: The problems. Each gives one group.
            n: The number of rollouts for each problem.
            seed: See `groups`.
            on_group: Called with the index of the problem and its group as each group completes.
            deadline: See `groups`.
            oversample: See `groups`.

        Returns:
            The groups in the order of the problems.
        """
        results: list[Group] = [[] for _ in problems]

        async def collect() -> None:
            async with aclosing(self.groups(problems, n, seed, deadline, oversample)) as groups:
                async for index, group in groups:
                    results[index] = group
                    if on_group is not None:
                        on_group(index, group)

        run_blocking(collect())
        return results

    def begin(self, problem: Problem, fork: Fork | None = None, rollout: int = 0) -> Episode:
        """Make the episode of a problem, before its first turn.

        Args:
            problem: The problem.
            fork: The fork to whose state the episode is brought. `None`: the prompt alone.
            rollout: The number of the rollout among the rollouts of its problem, on which the
                faults of the episode depend. A fork has its own schedule.
        """
        if fork is None:
            return self._new(problem, self.rules.schedule(problem, rollout))
        return fork.begin(self._new(problem, fork.schedule))

    def _new(self, problem: Problem, schedule: Schedule | None) -> Episode:
        tokenizer = None if self._of_text else self.policy.tokenizer
        version = self.policy.weight_version
        return Episode(problem, self.rules, tokenizer, weight_version=version, schedule=schedule)

    async def episode(
        self,
        problem: Problem,
        seed: Sequence[int],
        on_begin: Callable[[Episode], None] = lambda episode: None,
        on_turn: Callable[[Any], None] = lambda generation: None,
        fork: Fork | None = None,
    ) -> Transcript:
        """Run one episode to its end, and again from its beginning if the infrastructure fails.

        Args:
            problem: The problem of the episode.
            seed: The numbers from which the seed of each turn derives. All attempts use the same
                numbers. The last one is the number of the rollout among the rollouts of its
                problem, on which the faults depend.
            on_begin: Called with the episode at the beginning of each attempt.
            on_turn: Called with each generation of the policy, also in failed attempts.
            fork: The fork from which each attempt goes on. `None`: the attempts begin with the
                prompt.

        Raises:
            NotReproducible: If the fork's programs do not give the recorded results.
            ValueError: If the transcript breaks an invariant (see `check_transcript`).
        """
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(_RETRY_SECONDS * attempt)
                self.progress.retried += 1
            with closing(Interpreter(self.sandbox)) as interpreter:
                if fork is None:
                    episode = self.begin(problem, rollout=seed[-1])
                else:
                    episode = self._new(problem, fork.schedule)
                    await self._prepare(episode, fork, interpreter)
                on_begin(episode)
                await drive(episode, self.policy, interpreter, seed, self.progress, on_turn)
            if episode.transcript.stop_reason is not StopReason.INFRASTRUCTURE:
                break
        return checked_transcript(episode)

    async def _prepare(self, episode: Episode, fork: Fork, interpreter: Interpreter) -> None:
        """Bring a new episode to the state of a fork; programs may run anew."""
        began = self.progress.begin("executing")
        try:
            await fork.prepare(episode, interpreter)
        finally:
            self.progress.end("executing", began)

    def check_prompts(self, problems: Iterable[Problem]) -> None:
        """Check that each prompt leaves room to answer. With a policy of text nothing is checked.

        Raises:
            SettingsError: If a prompt fills the model's context.
        """
        for problem in problems if not self._of_text else ():
            size, context = self._prompt_size(problem), self.policy.context_length
            if size >= context:
                raise SettingsError(
                    f"the prompt of {problem.id} has {size} tokens and leaves no room to answer in "
                    f"a context of {context}: take a shorter prompt_template, or leave such "
                    "problems out"
                )

    def _most_tokens(self, problem: Problem) -> int:
        """Compute the most tokens to which the episode of a problem may grow; 0 if unbounded."""
        if self.tokens_in_flight is None and (self._of_text or self.policy.admits is None):
            return 0
        most = self._prompt_size(problem) + (self.rules.max_tokens or 0)
        return min(most, self.policy.context_length)

    def _prompt_size(self, problem: Problem) -> int:
        # A separate episode: the clock of the real one must not run while it waits for room.
        return len(self.begin(problem).transcript.prompt_ids)


def run_blocking[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end. This also works where an event loop runs already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    loop = BackgroundLoop("rollouts")
    try:
        return loop.run_blocking(coroutine)
    finally:
        loop.close()
