"""Measures the overhead of the rollout engine: time per turn, memory per episode.

Thousands of episodes run at once. The policy returns fixed turns and the tool does nothing. Both
let all other episodes go on before they return, like a real policy and a real tool. So all episodes
are alive at once (this is checked), and each turn includes two switches between coroutines. Ids and
log-probs are new objects for each turn, as with a real sampler. The garbage collector runs, but
skips the objects that imports created.
"""

import asyncio
import gc
import statistics
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from agents.models.tiny import make_tokenizer
from benchmarks.parts.machine import resident_mb
from retool_env.episode import Generation
from retool_env.execution import Execution, Limits, Outcome
from retool_env.problem import Problem
from retool_env.protocol.tags import ANSWER_CLOSE, ANSWER_OPEN, CODE_CLOSE, CODE_OPEN
from retool_env.rollout import Policy, RolloutEngine
from retool_env.rollout.weights import Weights
from retool_env.rules import Rules
from retool_env.transcript import Transcript

LONG = 4000
"""The number of tokens of the first turn of a long episode."""
TURN = 64
"""The number of tokens of every other turn."""
RULES = Rules(prompt_template="{query}\n", max_tokens=10_000, max_characters=None, max_calls=None)


class InstantPolicy(Policy):
    """A policy without a model: it returns code blocks, and then an answer or an empty turn.

    It recognises the turn by the length of the context. So all episodes must have contexts of the
    same length at the same turn.

    Args:
        calls: The number of code blocks of an episode.
        answers: Whether the last turn is an answer, which is graded, or empty.
        first: The number of tokens of the first turn.
    """

    def __init__(self, calls: int, answers: bool, first: int = TURN) -> None:
        self.tokenizer: Any = make_tokenizer()
        self.context_length = 1_000_000
        self.calls = calls
        self._call = self._ids(f"{CODE_OPEN}\n```python\n1\n```\n{CODE_CLOSE}", TURN)
        self._first = self._ids(f"{CODE_OPEN}\n```python\n1\n```\n{CODE_CLOSE}", first)
        self._last = np.array([self.tokenizer.eos_token_id])
        self._end: Literal["tag", "eos"] = "eos"
        if answers:
            self._last, self._end = self._ids(f"{ANSWER_OPEN}1{ANSWER_CLOSE}", TURN), "tag"
        self._turn_of: dict[int, int] = {}
        self._inside = 0
        self.peak = 0
        """The maximum number of episodes that waited for a turn at once."""

    def _ids(self, tail: str, tokens: int) -> np.ndarray:
        ids = self.tokenizer.encode(tail, add_special_tokens=False)
        filler = self.tokenizer.encode("Compute ", add_special_tokens=False)
        return np.array([*filler * (tokens - len(ids)), *ids])

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Return the next turn, after all other coroutines that are ready.

        Args:
            token_ids: The context.
            stop: Ignored.
            budget: Ignored.
            seed: Ignored.
        """
        self._inside += 1
        self.peak = max(self.peak, self._inside)
        await asyncio.sleep(0)
        self._inside -= 1
        # Contexts only grow, so the first context of a new length begins a new turn.
        turn = self._turn_of.setdefault(len(token_ids), len(self._turn_of))
        ids = self._last if turn == self.calls else self._call if turn else self._first
        reason = self._end if turn == self.calls else "tag"
        return Generation(tuple(ids.tolist()), tuple(np.zeros(len(ids)).tolist()), reason)

    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """Do nothing: the policy has no weights."""


class WaitingTool:
    """A sandbox whose programs only wait.

    Args:
        seconds: The run time of each program.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def run_async(self, code: str, limits: Limits | None = None, **_: Any) -> Execution:
        """Wait. With 0 seconds, all other coroutines that are ready go first."""
        await asyncio.sleep(self.seconds)
        return Execution(Outcome.OK, "1\n")


class MeetingTool:
    """A sandbox whose programs end when all episodes run one; then it measures the memory.

    Args:
        episodes: The number of episodes.
    """

    def __init__(self, episodes: int) -> None:
        self.missing = episodes
        self.megabytes = 0.0
        self._met = asyncio.Event()

    async def run_async(self, code: str, limits: Limits | None = None, **_: Any) -> Execution:
        """Wait until all episodes run a program."""
        self.missing -= 1
        if not self.missing:
            gc.collect()
            self.megabytes = resident_mb()
            self._met.set()
        await self._met.wait()
        return Execution(Outcome.OK, "1\n")


def run(episodes: int, policy: InstantPolicy, tool: Any) -> tuple[float, float, Transcript]:
    """Run episodes at once, and time them.

    Args:
        episodes: The number of episodes.
        policy: The policy.
        tool: The sandbox.

    Returns:
        Wall-clock seconds, processor seconds, and one of the transcripts.

    Raises:
        RuntimeError: If not all episodes were alive at once, or one made a wrong number of calls.
    """
    problems = [Problem(f"{i:06}", f"{i:06}?", "1") for i in range(episodes)]
    engine = RolloutEngine(policy, RULES, tool, concurrency=episodes)
    began, used = time.perf_counter(), time.process_time()
    groups = engine.run(problems)
    seconds = time.perf_counter() - began, time.process_time() - used
    if policy.peak != episodes:
        raise RuntimeError(f"only {policy.peak} of {episodes} episodes were alive at once")
    if any(engine.progress.calls.keys() - {policy.calls}):
        raise RuntimeError(f"an episode did not make {policy.calls} calls")
    return *seconds, groups[0][0]


def overhead(episodes: int, rounds: int) -> dict[str, Any]:
    """Measure the engine's overhead with short and with long episodes.

    Args:
        episodes: The number of short episodes at once; long episodes are an eighth as many.
        rounds: The number of measurements; medians count.

    Returns:
        `short` and `long`: times (see `_times`) and memory per episode. `turn_tokens`: tokens of a
        turn.
    """
    run(64, InstantPolicy(2, True), WaitingTool(0.0))  # warms up
    # As in `python -m agents`: the collector need not visit imported objects again and again.
    gc.collect()
    gc.freeze()
    try:
        # Memory first: memory that another run has freed would be reused, and not be measured.
        long = max(1, episodes // 8)
        memory = {"short": _memory(episodes, TURN), "long": _memory(long, LONG)}
        return {
            "short": {**_times(episodes, TURN, rounds), **memory["short"]},
            "long": {**_times(long, LONG, rounds), **memory["long"]},
            "turn_tokens": TURN,
        }
    finally:
        gc.unfreeze()


def _times(episodes: int, first: int, rounds: int) -> dict[str, Any]:
    """Microseconds of processor time, and of wall-clock time (`_wall`); medians over rounds.

    Returns:
        `turn_us`: a turn that ends in a call, with all its parts (context, new objects, parsing,
        record, the tool's coroutine, two switches) but no model. `episode_us`: an episode with one
        call, from begin to end. `grading_us`: the additional time to grade an answer.
    """

    def measure(calls: int, answers: bool) -> tuple[np.ndarray, Transcript]:
        runs = [
            run(episodes, InstantPolicy(calls, answers, first), WaitingTool(0.0))
            for _ in range(rounds)
        ]
        seconds = [statistics.median(values) for values in zip(*(r[:2] for r in runs), strict=True)]
        return 1e6 * np.array(seconds) / episodes, runs[0][2]

    (one, _), (five, transcript) = measure(1, False), measure(5, False)
    graded, _ = measure(1, True)
    times: dict[str, Any] = {
        "episodes": episodes,
        "context_tokens": len(transcript.prompt_ids) + len(transcript.completion_ids),
    }
    for name, value in (("turn", (five - one) / 4), ("episode", one), ("grading", graded - one)):
        times[f"{name}_us_wall"], times[f"{name}_us"] = (round(float(v), 1) for v in value)
    return times


def _memory(episodes: int, first: int) -> dict[str, float]:
    """Resident memory of an episode while its first program runs, in kilobytes.

    It includes the episode's tasks, record, token ids and log-probs.
    """
    gc.collect()
    before = resident_mb()
    meeting = MeetingTool(episodes)
    policy = InstantPolicy(1, False, first)
    transcript = run(episodes, policy, meeting)[2]
    tokens = len(transcript.prompt_ids) + first
    kilobytes = 1024 * (meeting.megabytes - before) / episodes
    return {"memory_kb": round(kilobytes, 1), "memory_tokens": tokens}
