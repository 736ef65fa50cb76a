"""What the rollout engine itself takes, with thousands of episodes at once: time of a turn, memory of an episode.

The policy writes canned turns and the tool does nothing, but both let all other episodes go on before they return, as real ones
do: so all episodes are alive at once, which is checked, and each turn pays for its two switches between them. Every turn's
ids and log-probs are new objects, as those of a sampler are. Garbage is collected throughout, but not looked for in what was
imported before.
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
"""Tokens of the first turn of episodes that are called long."""
TURN = 64
"""Tokens of every other turn."""
RULES = Rules(prompt_template="{query}\n", max_tokens=10_000, max_characters=None, max_calls=None)


class InstantPolicy(Policy):
    """Writes a code block, so many times an episode, and then an answer or nothing.

    All episodes' contexts must be as long as each other's at the same turn: that is what it knows the turn by.

    Args:
        calls: Code blocks an episode.
        answers: Whether it ends with an answer, which is graded, or with an empty turn.
        first: Tokens of the first turn.
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
        """Episodes that had asked for a turn and not been given it, at most."""

    def _ids(self, tail: str, tokens: int) -> np.ndarray:
        ids = self.tokenizer.encode(tail, add_special_tokens=False)
        filler = self.tokenizer.encode("Compute ", add_special_tokens=False)
        return np.array([*filler * (tokens - len(ids)), *ids])

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """The next turn, after all others that are due."""
        self._inside += 1
        self.peak = max(self.peak, self._inside)
        await asyncio.sleep(0)
        self._inside -= 1
        # Contexts only grow, so each length is met first by who comes first to its turn.
        turn = self._turn_of.setdefault(len(token_ids), len(self._turn_of))
        ids = self._last if turn == self.calls else self._call if turn else self._first
        reason = self._end if turn == self.calls else "tag"
        return Generation(tuple(ids.tolist()), tuple(np.zeros(len(ids)).tolist()), reason)

    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """It has none."""


class WaitingTool:
    """A sandbox whose programs take so many seconds, and do nothing."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def run_async(self, code: str, limits: Limits | None = None, **_: Any) -> Execution:
        """Wait; for 0 seconds, until all others that are due have gone on."""
        await asyncio.sleep(self.seconds)
        return Execution(Outcome.OK, "1\n")


class MeetingTool:
    """A sandbox whose programs end when all episodes have one running; it then looks at this process's memory."""

    def __init__(self, episodes: int) -> None:
        self.missing = episodes
        self.megabytes = 0.0
        self._met = asyncio.Event()

    async def run_async(self, code: str, limits: Limits | None = None, **_: Any) -> Execution:
        """Wait for the others."""
        self.missing -= 1
        if not self.missing:
            gc.collect()
            self.megabytes = resident_mb()
            self._met.set()
        await self._met.wait()
        return Execution(Outcome.OK, "1\n")


def run(episodes: int, policy: InstantPolicy, tool: Any) -> tuple[float, float, Transcript]:
    """Run so many episodes at once.

    Returns:
        Seconds, on the clock and of the processor, and one of the transcripts.

    Raises:
        RuntimeError: If they were not all alive at once, or one made other calls than it should.
    """
    problems = [Problem(f"{i:06}", f"{i:06}?", "1") for i in range(episodes)]
    engine = RolloutEngine(policy, RULES, tool, concurrency=episodes)
    began, used = time.perf_counter(), time.process_time()
    groups = engine.run(problems)
    seconds = time.perf_counter() - began, time.process_time() - used
    if policy.peak != episodes:
        raise RuntimeError(f"of {episodes} episodes, {policy.peak} were alive at once")
    if any(engine.progress.calls.keys() - {policy.calls}):
        raise RuntimeError(f"an episode did not make {policy.calls} calls")
    return *seconds, groups[0][0]


def overhead(episodes: int, rounds: int) -> dict[str, Any]:
    """What the engine takes with so many episodes at once, short ones and long ones.

    Returns:
        `short` and, of an eighth as many episodes, `long`: each what `_of_length` finds.
    """
    run(64, InstantPolicy(2, True), WaitingTool(0.0))  # warms up
    # As `python -m agents` does: what was imported is not gone through again and again.
    gc.collect()
    gc.freeze()
    try:
        # Memory first: what was freed would be used again, and not be seen.
        long = _eighth(episodes)
        memory = {"short": _memory(episodes, TURN), "long": _memory(long, LONG)}
        return {
            "short": {**_times(episodes, TURN, rounds), **memory["short"]},
            "long": {**_times(long, LONG, rounds), **memory["long"]},
            "turn_tokens": TURN,
        }
    finally:
        gc.unfreeze()


def _eighth(episodes: int) -> int:
    return max(1, episodes // 8)


def _times(episodes: int, first: int, rounds: int) -> dict[str, Any]:
    """Microseconds, medians over rounds.

    Returns:
        On the clock (`_wall`) and of the processor: `turn_us`, a turn that ends in a call with all its parts (context, the
        turn's new objects, parsing, record, the tool's coroutine, two switches) but no model; `episode_us`, beginning
        and ending an episode with a first turn, where it is not the last; `grading_us`, what an answer's grading adds.
    """

    def each(calls: int, answers: bool) -> tuple[np.ndarray, Transcript]:
        runs = [
            run(episodes, InstantPolicy(calls, answers, first), WaitingTool(0.0))
            for _ in range(rounds)
        ]
        seconds = [statistics.median(values) for values in zip(*(r[:2] for r in runs), strict=True)]
        return 1e6 * np.array(seconds) / episodes, runs[0][2]

    (one, _), (five, transcript), (graded, _) = each(1, False), each(5, False), each(1, True)
    found: dict[str, Any] = {
        "episodes": episodes,
        "context_tokens": len(transcript.prompt_ids) + len(transcript.completion_ids),
    }
    for name, value in (("turn", (five - one) / 4), ("episode", one), ("grading", graded - one)):
        found[f"{name}_us_wall"], found[f"{name}_us"] = (round(float(v), 1) for v in value)
    return found


def _memory(episodes: int, first: int) -> dict[str, float]:
    """Resident memory of an episode whose first program runs: all that it has (its tasks, its record, its ids and log-probs)."""
    gc.collect()
    before = resident_mb()
    meeting = MeetingTool(episodes)
    policy = InstantPolicy(1, False, first)
    transcript = run(episodes, policy, meeting)[2]
    tokens = len(transcript.prompt_ids) + first
    kilobytes = 1024 * (meeting.megabytes - before) / episodes
    return {"memory_kb": round(kilobytes, 1), "memory_tokens": tokens}
