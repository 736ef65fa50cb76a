"""RolloutEngine: one coroutine for each episode, without a barrier between turns.

While the program of one episode runs, the other episodes generate. Token budgets shrink as an
episode grows. Groups are yielded as they complete. Every episode is accounted for: an episode that
fails for reasons of the infrastructure is tried again and then returned as failed, and episodes
that are cut or dropped are counted.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing, closing
from typing import Any

from retool_env.checkpoint_task import checkpoint_rules
from retool_env.episode import Episode, GradeAnswer, Need
from retool_env.errors import SettingsError
from retool_env.execution import Outcome, Sandbox
from retool_env.grading import is_equivalent_async
from retool_env.interpreter import Interpreter, check_sandbox
from retool_env.problem import Problem
from retool_env.rollout.admission import Admission
from retool_env.rollout.group import Group as Group
from retool_env.rollout.group import Rollout, checked_transcript, end_tasks, first_finished
from retool_env.rollout.policy import Policy, PolicyUnavailable, TextPolicy, as_policy
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
            capacity of the policy's cache. `None`: no bound.
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

        def cut() -> None:
            for rollout in itertools.chain(*rollouts):
                rollout.cut()

        async def run_group(index: int) -> tuple[int, Group]:
            group = await first_finished(rollouts[index], n, on_dropped)
            self.progress.dropped += begun - n
            for transcript in group:
                self.progress.finished(transcript)
            return index, group

        tasks = [asyncio.create_task(run_group(index)) for index in range(len(problems))]
        timer = None if deadline is None else asyncio.get_running_loop().call_later(deadline, cut)
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            if timer is not None:
                timer.cancel()
            await end_tasks(tasks)

    def _rollout(self, admission: Admission, problem: Problem, seed: Sequence[int]) -> Rollout:
        return Rollout(
            admission,
            functools.partial(self.begin, problem, seed[-1]),
            functools.partial(self.episode, problem, seed),
            functools.partial(self._most_tokens, problem),
        )

    def _admission(self) -> Admission:
        # Locks and events belong to one event loop, and each `run` has a loop of its own.
        loop = asyncio.get_running_loop()
        # Locks and events refer to their loop, so a dictionary of weak keys would keep every loop.
        for closed in [known for known in self._admissions if known.is_closed()]:
            del self._admissions[closed]
        if loop not in self._admissions:
            self._admissions[loop] = Admission(self.concurrency, self.tokens_in_flight)
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

    def begin(self, problem: Problem, rollout: int = 0) -> Episode:
        """Make the episode of a problem, before its first turn.

        Args:
            problem: The problem.
            rollout: The number of the rollout among the rollouts of its problem, on which the
                faults of the episode depend.
        """
        tokenizer = None if self._of_text else self.policy.tokenizer
        version = self.policy.weight_version
        schedule = self.rules.schedule(problem, rollout)
        return Episode(problem, self.rules, tokenizer, weight_version=version, schedule=schedule)

    async def episode(
        self,
        problem: Problem,
        seed: Sequence[int],
        on_begin: Callable[[Episode], None] = lambda episode: None,
        on_turn: Callable[[Any], None] = lambda generation: None,
    ) -> Transcript:
        """Run one episode to its end, and again from its beginning if the infrastructure fails.

        Args:
            problem: The problem of the episode.
            seed: The numbers from which the seed of each turn derives. All attempts use the same
                numbers. The last one is the number of the rollout among the rollouts of its
                problem, on which the faults depend.
            on_begin: Called with the episode at the beginning of each attempt.
            on_turn: Called with each generation of the policy, also in failed attempts.

        Raises:
            ValueError: If the transcript breaks an invariant (see `check_transcript`).
        """
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(_RETRY_SECONDS * attempt)
                self.progress.retried += 1
            episode = self.begin(problem, seed[-1])
            on_begin(episode)
            with closing(Interpreter(self.sandbox)) as interpreter:
                await self._drive(episode, seed, interpreter, on_turn)
            if episode.transcript.stop_reason is not StopReason.INFRASTRUCTURE:
                break
        return checked_transcript(episode)

    async def _drive(
        self,
        episode: Episode,
        seed: Sequence[int],
        interpreter: Interpreter,
        on_turn: Callable[[Any], None],
    ) -> None:
        """Run an episode to its end, or to a failure of the infrastructure."""
        progress = self.progress
        turn = 0
        while not episode.done:
            began = progress.begin("generating")
            try:
                asked = self._ask(episode, _mixed((*seed, turn)))
                if asked is None:
                    break
                generation = await asked
            except PolicyUnavailable as error:
                _log.warning("%s: the policy failed: %s", episode.transcript.problem.id, error)
                episode.cut(StopReason.INFRASTRUCTURE)
                break
            finally:
                progress.end("generating", began)
            on_turn(generation)
            need = self._take(episode, generation)
            if isinstance(need, GradeAnswer):
                began = progress.begin("grading")
                try:
                    right = await is_equivalent_async(need.answer, need.gold)
                finally:
                    progress.end("grading", began)
                episode.graded(right)
            elif need is not None:
                began = progress.begin("executing")
                try:
                    execution = await interpreter.run_async(need)
                finally:
                    seconds = progress.end("executing", began)
                if execution.outcome is Outcome.INFRASTRUCTURE:
                    problem = episode.transcript.problem
                    _log.warning("%s: the sandbox failed: %s", problem.id, execution.error)
                episode.executed(execution, seconds)
            turn += 1

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
        if self.tokens_in_flight is None:
            return 0
        most = self._prompt_size(problem) + (self.rules.max_tokens or 0)
        return min(most, self.policy.context_length)

    def _prompt_size(self, problem: Problem) -> int:
        # A separate episode: the clock of the real one must not run while it waits for room.
        return len(self.begin(problem).transcript.prompt_ids)

    # `_ask`, `_take` and `Interpreter.run_async` are not coroutines: the garbage collector visits
    # every object that lives while an episode waits, for thousands of episodes again and again.
    def _ask(self, episode: Episode, seed: int) -> Awaitable[Any] | None:
        """Ask the policy for the next turn. `None`: the episode has no room left and was cut."""
        if self._of_text:
            return self.policy.write(episode.transcript, episode.stop, seed)
        ids = episode.token_ids
        budget = min(episode.token_budget or 0, self.policy.context_length - len(ids))
        if budget < 1:
            episode.cut(StopReason.TOKEN_BUDGET)
            return None
        return self.policy.act(ids, episode.stop, budget, seed)

    def _take(self, episode: Episode, generation: Any) -> Need | None:
        """Add the policy's turn to the episode."""
        if self._of_text:
            self.progress.tokens += len(generation.text)
            exhausted = generation.stop_reason == "length"
            return episode.act(generation.text, exhausted, generation.seconds, form=generation.form)
        self.progress.tokens += len(generation.token_ids)
        return episode.act_ids(generation)


def _mixed(numbers: Sequence[int]) -> int:
    """Hash several numbers to a seed of 64 bits."""
    text = ",".join(map(str, numbers))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


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
