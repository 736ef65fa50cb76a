"""RolloutEngine: one coroutine an episode, no barrier between turns.

While one episode's program runs, the others generate. Budgets shrink as an episode grows. Finished groups are yielded
as they complete.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np

from retool_env.episode import Episode, GradeAnswer, Rules
from retool_env.grading import is_equivalent
from retool_env.interpreter import Interpreter, check_sandbox
from retool_env.problems import Problem
from retool_env.protocol import closing_tags
from retool_env.rollout.policy import Policy
from retool_env.sandbox import Sandbox
from retool_env.transcript import StopReason, Transcript, check_transcript

Group = list[Transcript]
"""All rollouts of one problem."""


class RolloutEngine:
    """Runs episodes of a policy.

    Args:
        policy: The model.
        rules: The episodes' settings; `max_tokens` must be set.
        sandbox: Where programs run; `None` only where the interpreter is off.
        concurrency: Episodes in flight at once.

    Raises:
        ValueError: If `max_tokens` is not set, or an interpreter has no sandbox.
        SandboxUnavailable: If the rules ask for sessions, and the sandbox has none.
    """

    def __init__(
        self, policy: Policy, rules: Rules, sandbox: Sandbox | None, concurrency: int = 256
    ) -> None:
        if rules.max_tokens is None:
            raise ValueError("rollouts need a token budget: set max_tokens")
        check_sandbox(rules, sandbox)
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        self.policy = policy
        self.rules = rules
        self.sandbox = sandbox
        self.concurrency = concurrency

    async def groups(
        self, problems: Sequence[Problem], n: int = 1, seed: int | Sequence[int] = 0
    ) -> AsyncIterator[tuple[int, Group]]:
        """Yield `(index of the problem, its n transcripts)` as groups complete.

        Args:
            problems: One group each.
            n: Rollouts a problem.
            seed: One number or several. Every turn's seed derives from it, the problem's index, the rollout's number and the turn's.
        """
        root = (seed,) if isinstance(seed, int) else tuple(seed)
        slots = asyncio.Semaphore(self.concurrency)

        async def group(index: int) -> tuple[int, Group]:
            async def one(number: int) -> Transcript:
                async with slots:
                    return await self.episode(problems[index], (*root, index, number))

            return index, await _all([one(number) for number in range(n)])

        tasks = [asyncio.create_task(group(index)) for index in range(len(problems))]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def run(
        self,
        problems: Sequence[Problem],
        n: int = 1,
        seed: int | Sequence[int] = 0,
        on_group: Callable[[int, Group], None] | None = None,
    ) -> list[Group]:
        """Run all episodes and wait for them.

        Args:
            problems: One group each.
            n: Rollouts a problem.
            seed: See `groups`.
            on_group: Called with each group as it completes.

        Returns:
            The groups in the problems' order.
        """
        results: list[Group] = [[] for _ in problems]

        async def collect() -> None:
            async for index, group in self.groups(problems, n, seed):
                results[index] = group
                if on_group is not None:
                    on_group(index, group)

        run_blocking(collect())
        return results

    async def episode(self, problem: Problem, seed: Sequence[int]) -> Transcript:
        """Run one episode to its end.

        Raises:
            ValueError: If the prompt fills the model's context, or the transcript breaks an invariant (see
                `check_transcript`).
        """
        with closing(Interpreter(self.sandbox)) as interpreter:
            return await self._episode(problem, seed, interpreter)

    async def _episode(
        self, problem: Problem, seed: Sequence[int], interpreter: Interpreter
    ) -> Transcript:
        policy, tokenizer = self.policy, self.policy.tokenizer
        episode = Episode(problem, self.rules, tokenizer)
        stop = closing_tags(self.rules.interpreter)
        version = policy.weight_version
        turn = 0
        while not episode.done:
            transcript = episode.transcript
            ids = [*transcript.prompt_ids, *transcript.completion_ids]
            budget = min(episode.token_budget or 0, policy.context_length - len(ids))
            if budget < 1 and turn == 0:
                raise ValueError(
                    f"the prompt of {problem.id} has {len(ids)} tokens and leaves no room to answer in a context of "
                    f"{policy.context_length}: take a shorter prompt_template, or leave such problems out"
                )
            if budget < 1:
                episode.cut(StopReason.TOKEN_BUDGET)
                break
            entropy = np.random.SeedSequence((*seed, turn))
            turn_seed = int(entropy.generate_state(1, np.uint64)[0])
            generation = await policy.act(ids, stop, budget, turn_seed)
            need = episode.act_ids(generation)
            if isinstance(need, GradeAnswer):
                episode.graded(await asyncio.to_thread(is_equivalent, need.answer, need.gold))
            elif need is not None:
                started = time.monotonic()
                execution = await interpreter.run_async(need)
                episode.executed(execution, time.monotonic() - started)
            turn += 1
        transcript = dataclasses.replace(episode.transcript, weight_version=version)
        check_transcript(transcript)
        return transcript


async def _all(episodes: list[Coroutine[None, None, Transcript]]) -> list[Transcript]:
    """All results in order; the first error cancels the rest and is raised as it is."""
    tasks = [asyncio.create_task(episode) for episode in episodes]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run_blocking[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where a loop runs already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
