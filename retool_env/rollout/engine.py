"""RolloutEngine: one coroutine an episode, no barrier between turns.

While one episode's program runs, the others generate. Budgets shrink as an episode grows. Finished groups are yielded
as they complete. Every episode is accounted for: what failed for reasons of the infrastructure is tried again, and
then handed over as failed; what is cut or dropped is counted.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import math
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Sequence,
)
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
from retool_env.rollout.policy import Policy, PolicyUnavailable, TextPolicy, as_policy
from retool_env.rollout.progress import Progress
from retool_env.rules import Rules
from retool_env.servers.background import BackgroundLoop
from retool_env.transcript import StopReason, Transcript, check_transcript

Group = list[Transcript]
"""All rollouts of one problem."""

_RETRY_SECONDS = 0.5

_log = logging.getLogger(__name__)


class RolloutEngine:
    """Runs episodes of a policy.

    Args:
        policy: The model. A class that inherits neither `Policy` nor `TextPolicy` gets the defaults of the one whose
            method it has, `act` or `write`.
        rules: The episodes' settings; `None` for those of the checkpoint that the policy was loaded from (`retool.json`), and
            that is said. With a policy of token ids `max_tokens` must be set; with one of text neither it nor
            `tokens_in_flight` can be.
        sandbox: Where programs run; `None` only where the interpreter is off.
        concurrency: Episodes in flight at once, of all that runs in one event loop.
        tokens_in_flight: Tokens that these may grow to, all together: what the policy's cache holds. `None`: no bound.
        attempts: How often an episode is tried that fails for reasons of the infrastructure, the first time included.
        progress: Where counts are kept; by default its own, `engine.progress`.

    Raises:
        SettingsError: If a number is out of range, a limit on tokens does not suit the policy, an interpreter has no
            sandbox, or there are no rules and the policy's checkpoint has none, or wrong ones.
        SandboxUnavailable: If the rules ask for sessions, and the sandbox has none.
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
                "this policy gives text without token ids: set max_characters, neither max_tokens nor tokens_in_flight"
            )
        if not self._of_text and rules.max_tokens is None:
            raise SettingsError("rollouts need a token budget: set max_tokens")
        check_sandbox(rules, sandbox)
        for name, number in (
            ("concurrency", concurrency),
            ("tokens_in_flight", tokens_in_flight),
            ("attempts", attempts),
        ):
            if number is not None and number < 1:
                raise SettingsError(f"{name} must be at least 1, not {number}")
        self.policy: Any = policy
        self.rules = rules
        self.sandbox = sandbox
        self.concurrency = concurrency
        self.tokens_in_flight = tokens_in_flight
        self.attempts = attempts
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

        Closing this, or cancelling who iterates, ends all that runs. It is closed at once under `contextlib.aclosing`, and
        otherwise as soon as the event loop sees that nobody holds it.

        Args:
            problems: One group each.
            n: Rollouts a problem.
            seed: One number or several. Every turn's seed derives from it, the problem's index, the rollout's number and the turn's.
            deadline: Seconds after which what still runs is cut where it is (`StopReason.CANCELLED`), and what failed is not
                tried again. An answer that has been given is graded.
            oversample: Rollouts begun for each that is kept. A group is complete with its first `n` that did not fail; the
                rest is dropped. Short episodes finish first, so that what is kept is shorter than what the policy writes.
            on_dropped: Called with the transcript of each dropped rollout that had begun, before its group is yielded. What still
                runs is cut where it is; an answer that has been given is graded first.

        Raises:
            SettingsError: If a number is out of range, or a prompt fills the model's context.
        """
        if n < 1 or oversample < 1 or (deadline is not None and not deadline > 0):
            raise SettingsError(
                f"n and oversample must be at least 1, and a deadline above 0: {n}, {oversample}, {deadline}"
            )
        root = (seed,) if isinstance(seed, int) else tuple(seed)
        self.check_prompts(problems)  # now, not after hours
        admission = self._admission()
        self.progress.expect(n * len(problems))
        begun = math.ceil(n * oversample - 1e-9)  # 50 * 1.1 is a little more than 55
        rollouts = [
            [_Rollout(self, admission, problem, (*root, index, number)) for number in range(begun)]
            for index, problem in enumerate(problems)
        ]

        def cut() -> None:
            for rollout in (each for group in rollouts for each in group):
                rollout.cut()

        async def group(index: int) -> tuple[int, Group]:
            return index, await self._group(rollouts[index], n, on_dropped)

        tasks = [asyncio.create_task(group(index)) for index in range(len(problems))]
        timer = None if deadline is None else asyncio.get_running_loop().call_later(deadline, cut)
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            if timer is not None:
                timer.cancel()
            await _end(tasks)

    async def _group(
        self,
        rollouts: list[_Rollout],
        n: int,
        on_dropped: Callable[[Transcript], None] | None,
    ) -> Group:
        """The first `n` to finish, in order; those that were cut, or failed, only where there are not so many others."""
        tasks = {asyncio.create_task(rollout.run()): i for i, rollout in enumerate(rollouts)}
        found: list[tuple[int, int, Transcript]] = []
        pending = set(tasks)
        try:
            while pending and sum(rank == 0 for rank, _, _ in found) < n:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    transcript = task.result()
                    found.append((_rank(transcript), tasks[task], transcript))
            found.sort(key=lambda each: each[:2])
            kept = found[:n]
            if on_dropped is not None:
                for task in pending:
                    rollouts[tasks[task]].cut()
                await asyncio.gather(*pending)
                numbers = {number for _, number, _ in kept}
                for task, number in tasks.items():
                    if number not in numbers and rollouts[number].begun:
                        on_dropped(task.result())
        finally:
            await _end(tasks)
        self.progress.dropped += len(rollouts) - n
        group = [transcript for _, _, transcript in sorted(kept, key=lambda each: each[1])]
        for transcript in group:
            self.progress.finished(transcript)
        return group

    def _admission(self) -> Admission:
        # What waits in an event loop can't be woken from another, and each `run` has its own.
        loop = asyncio.get_running_loop()
        # What has waited in a loop holds it, so that no weak key would let go of it.
        for closed in [each for each in self._admissions if each.is_closed()]:
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
            problems: One group each.
            n: Rollouts a problem.
            seed: See `groups`.
            on_group: Called with each group as it completes.
            deadline: See `groups`.
            oversample: See `groups`.

        Returns:
            The groups in the problems' order.
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

    def begin(self, problem: Problem) -> Episode:
        """An episode of a problem, before its first turn."""
        tokenizer = None if self._of_text else self.policy.tokenizer
        version = self.policy.weight_version
        return Episode(problem, self.rules, tokenizer, weight_version=version)

    async def episode(
        self,
        problem: Problem,
        seed: Sequence[int],
        on_begin: Callable[[Episode], None] = lambda episode: None,
        on_turn: Callable[[Any], None] = lambda generation: None,
    ) -> Transcript:
        """Run one episode to its end, and again from its beginning if the infrastructure fails.

        Args:
            problem: Its problem.
            seed: Of its sampling: the same at each attempt.
            on_begin: Called with the episode at the beginning of each attempt.
            on_turn: Called with each generation of the policy, those of a failed attempt included.

        Raises:
            ValueError: If the transcript breaks an invariant (see `check_transcript`).
        """
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(_RETRY_SECONDS * attempt)
                self.progress.retried += 1
            episode = self.begin(problem)
            on_begin(episode)
            with closing(Interpreter(self.sandbox)) as interpreter:
                await self._drive(episode, seed, interpreter, on_turn)
            if episode.transcript.stop_reason is not StopReason.INFRASTRUCTURE:
                break
        return _record(episode)

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
        """Check that each prompt leaves room to answer; a policy of text does not tell.

        Raises:
            SettingsError: A prompt fills the model's context.
        """
        for problem in problems if not self._of_text else ():
            size, context = (
                len(self.begin(problem).transcript.prompt_ids),
                self.policy.context_length,
            )
            if size >= context:
                raise SettingsError(
                    f"the prompt of {problem.id} has {size} tokens and leaves no room to answer in a "
                    f"context of {context}: take a shorter prompt_template, or leave such problems out"
                )

    # Neither is a coroutine, nor is `Interpreter.run_async`: what is alive while an episode waits is what the garbage collector
    # goes through, of thousands of episodes again and again.
    def _ask(self, episode: Episode, seed: int) -> Awaitable[Any] | None:
        """What the policy writes next; `None`, and the episode cut, if there is no room."""
        if self._of_text:
            return self.policy.write(episode.transcript, episode.stop, seed)
        ids = episode.token_ids
        budget = min(episode.token_budget or 0, self.policy.context_length - len(ids))
        if budget < 1:
            episode.cut(StopReason.TOKEN_BUDGET)
            return None
        return self.policy.act(ids, episode.stop, budget, seed)

    def _take(self, episode: Episode, generation: Any) -> Need | None:
        """The episode's turn with it."""
        if self._of_text:
            self.progress.tokens += len(generation.text)
            exhausted = generation.stop_reason == "length"
            return episode.act(generation.text, exhausted, generation.seconds, form=generation.form)
        self.progress.tokens += len(generation.token_ids)
        return episode.act_ids(generation)


class _Rollout:
    """One of a group's rollouts.

    Args:
        engine: What runs it.
        admission: What lets it in.
        problem: Its problem.
        seed: Of its sampling.
    """

    def __init__(
        self, engine: RolloutEngine, admission: Admission, problem: Problem, seed: Sequence[int]
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._problem = problem
        self._seed = seed
        self._episode: Episode | None = None
        self._task: asyncio.Task[Any] | None = None
        self._late = False

    async def run(self) -> Transcript:
        """Runs it to its end, or until it is cut."""
        self._task = asyncio.current_task()
        try:
            if self._late:
                raise asyncio.CancelledError
            room = await self._admission.enter(self._size)
            try:
                return await self._engine.episode(self._problem, self._seed, self._on_begin)
            finally:
                self._admission.leave(room)
        except asyncio.CancelledError:
            if not self._late:
                raise
            episode = self._episode or self._engine.begin(self._problem)
            episode.cut(StopReason.CANCELLED)
            return _record(episode)

    @property
    def begun(self) -> bool:
        """Whether its episode has begun."""
        return self._episode is not None

    def cut(self) -> None:
        """Ends it where it is; an answer that has been given is graded."""
        self._late = True
        answered = self._episode is not None and isinstance(self._episode.need, GradeAnswer)
        if self._task is not None and not answered:
            self._task.cancel()

    def _on_begin(self, episode: Episode) -> None:
        self._episode = episode

    def _size(self) -> int:
        """The most tokens that it may grow to."""
        engine = self._engine
        if engine.tokens_in_flight is None:
            return 0
        # One of its own, since the episode's clock must not run while it waits for room.
        prompt = engine.begin(self._problem).transcript.prompt_ids
        return min(len(prompt) + (engine.rules.max_tokens or 0), engine.policy.context_length)


def _record(episode: Episode) -> Transcript:
    transcript = episode.transcript
    sampled = [span.weight_version for span in transcript.spans if span.author == "model"]
    if sampled and sampled[0] is not None:
        transcript = dataclasses.replace(transcript, weight_version=sampled[0])
    check_transcript(transcript)
    return transcript


def _mixed(numbers: Sequence[int]) -> int:
    """A seed of 64 bits from several numbers."""
    text = ",".join(map(str, numbers))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _rank(transcript: Transcript) -> int:
    reasons = (StopReason.CANCELLED, StopReason.INFRASTRUCTURE)
    reason = transcript.stop_reason
    return 0 if reason not in reasons else 1 + reasons.index(reason)


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks, and waits for that."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def run_blocking[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where a loop runs already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    loop = BackgroundLoop("rollouts")
    try:
        return loop.run_blocking(coroutine)
    finally:
        loop.close()
