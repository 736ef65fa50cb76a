"""Simulates the rollouts of one training step on many GPUs, with discrete events.

An hour on the GPUs takes seconds here. `Load` holds the assumptions. `draw_chains` draws the
episodes once, so that `Step` can run the same episodes with and without barriers. `Course` holds
the result.
"""

import functools
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from benchmarks.parts.chains import Chain, ToolTimes, Turn, draw_chain
from retool_env.rollout.simulated import Batch, Habits, Speed


def assumed(default: float, meaning: str) -> Any:
    """A field of `Load`, with a help text for the command line.

    Args:
        default: The default value.
        meaning: The help text.
    """
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Load:
    """The assumptions of a simulation.

    The default speed models a 32B model in bf16 on one H200 (141 GB; 70 % of 4.8 TB/s):

    - A decoding step reads 65 GB of weights in 20 ms.
    - A row adds 0.5 ms: 0.36 ms to read 4,500 tokens of keys and values (262 kB each), and 0.14 ms
      to compute.
    - Prefill takes 0.13 ms per token: 64 billion operations at half of 990 TFLOP/s.
    - The caches of 56 such episodes take 66 of the 76 GB beside the weights. So 56 episodes are in
      flight without a barrier. Of these, 48 are decoded at once, so that episodes with a running
      program leave no row empty. Fluctuations of the caches' sizes are ignored.

    Raises:
        ValueError: If a value is out of its range.
    """

    problems: int = assumed(512, "problems of a step")
    rollouts: int = assumed(16, "rollouts per problem")
    gpus: int = assumed(16, "GPUs, each with the whole model; a problem's rollouts stay on one GPU")
    prompt_tokens: int = assumed(400, "tokens of a prompt")
    turn_tokens: float = assumed(2000.0, "mean tokens of a turn; log-normal")
    spread: float = assumed(0.8, "standard deviation of the logarithm of a turn's tokens")
    calls: float = assumed(3.0, "mean calls of an episode; geometric")
    max_calls: int = assumed(8, "maximum calls of an episode")
    result_tokens: int = assumed(100, "tokens of a call's result")
    max_tokens: int = assumed(16384, "maximum tokens of a response, results included")
    token_seconds: float = assumed(0.020, "seconds of a decoding step with one row")
    row_seconds: float = assumed(0.0005, "seconds that each further row adds to a decoding step")
    prefill_seconds: float = assumed(0.00013, "seconds of prefill per token; the GPU's rows wait")
    rows: int = assumed(48, "maximum rows that a GPU decodes together")
    in_flight: int = assumed(56, "episodes in flight on a GPU without a barrier, with their caches")
    tool_median: float = assumed(0.05, "median run time of a program in seconds; log-normal")
    tool_p99: float = assumed(3.0, "99th percentile of the run time in seconds")
    tool_limit: float = assumed(5.0, "a program's time limit in seconds")
    workers: int = assumed(0, "maximum programs at once; 0: no limit")
    deadline: float = assumed(
        0.0, "deadline in seconds; 0: when the share below has ended without it"
    )
    deadline_share: float = assumed(0.95, "share of the episodes that the deadline waits for")
    seed: int = assumed(0, "seed of the lengths and times")

    def __post_init__(self) -> None:
        for name in ("problems", "rollouts", "gpus", "rows", "in_flight", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.deadline_share <= 1 or self.deadline < 0:
            raise ValueError("deadline_share must be above 0 and at most 1, deadline not below 0")
        if self.max_calls < 0 or self.workers < 0:
            raise ValueError("max_calls and workers must not be negative")
        self.speed, self.habits, self.tools  # noqa: B018 (these check the rest)

    @property
    def speed(self) -> Speed:
        """The speed of one GPU."""
        return Speed(self.token_seconds, self.row_seconds, self.prefill_seconds, self.rows)

    @property
    def habits(self) -> Habits:
        """The distribution of turn lengths and numbers of calls."""
        return Habits(self.turn_tokens, self.spread, self.calls)

    @property
    def tools(self) -> ToolTimes:
        """The distribution of run times, without the sandbox's overhead."""
        return ToolTimes(self.tool_median, self.tool_p99, self.tool_limit)


@dataclass(frozen=True)
class Course:
    """The result of the simulation of one step."""

    seconds: float
    """The time until the last episode ended or was cut."""
    idle: float
    """The share of the GPUs' time without a row to decode."""
    rows: float
    """The mean number of rows that a GPU decoded together, over time."""
    tokens_per_second: float
    """The rate of tokens of finished episodes, all GPUs together."""
    programs: int
    """The maximum number of programs at once, running or waiting for a worker."""
    programs_per_second: int
    """The maximum number of programs that began within one second."""
    cut: int
    """The number of episodes that the deadline cut, including episodes that had not begun."""
    ends: tuple[float, ...] = field(repr=False)
    """The end times of finished episodes in seconds, in order."""
    busy: tuple[tuple[float, int], ...] = field(repr=False)
    """Pairs `(second, GPUs with a row to decode from then on)`."""


def draw_chains(load: Load, sandbox_seconds: float) -> list[Chain]:
    """Draw the episodes. The rollouts of a problem are adjacent.

    Args:
        load: The assumptions.
        sandbox_seconds: The overhead of the sandbox, added to each program.
    """
    chance = np.random.default_rng(load.seed)
    budgets = (load.max_calls, load.max_tokens, load.result_tokens)

    def chain() -> Chain:
        turns = draw_chain(chance, load.habits, load.tools, *budgets)
        return tuple(
            Turn(t.tokens, None if t.tool_seconds is None else t.tool_seconds + sandbox_seconds)
            for t in turns
        )

    return [chain() for _ in range(load.problems * load.rollouts)]


Barrier = Literal["all", "gpu"] | None


@dataclass
class _Meeting:
    """The state of a barrier."""

    gathered: list[int] = field(default_factory=list)
    """The episodes that have arrived."""
    awaited: int = 0
    """The number of episodes that are still awaited."""

    def open(self) -> list[int]:
        """Release all episodes, and wait for the same number again."""
        gathered, self.gathered = self.gathered, []
        self.awaited = len(gathered)
        return gathered


class Step:
    """The simulation of the rollouts of one step.

    At a barrier, programs start when all turns are written, and turns start when all programs have
    ended. In favour of the barrier, all caches are kept meanwhile.

    Args:
        load: The assumptions.
        chains: The episodes; the rollouts of a problem are adjacent.
        barrier: The episodes that wait for each other: the episodes of one GPU (`"gpu"`) or all
            episodes (`"all"`). `None`: no barrier.
        deadline: The time in seconds after which running episodes are cut; by default, never.
    """

    def __init__(
        self, load: Load, chains: Sequence[Chain], barrier: Barrier, deadline: float = math.inf
    ) -> None:
        self._load = load
        self._chains = chains
        self._barrier = barrier
        self._deadline = deadline
        self._turn = [0] * len(chains)
        self._gpus: list[Batch[int]] = [Batch(load.speed) for _ in range(load.gpus)]
        # The time at which the next row of each GPU ends, as far as is known now.
        self._expected = [math.inf] * load.gpus
        self._unbegun: list[deque[int]] = [deque() for _ in self._gpus]
        for episode in range(len(chains)):
            self._unbegun[self._gpu(episode)].append(episode)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._meetings = [_Meeting() for _ in range(load.gpus if barrier == "gpu" else 1)]
        self._running, self._queue = 0, deque[int]()
        self._most = 0
        self._begun: list[float] = []
        self._ends: list[float] = []
        self._tokens = 0
        self._busy: list[tuple[float, int]] = [(0.0, 0)]
        self._busy_seconds, self._row_seconds, self._last = 0.0, 0.0, 0.0

    def run(self) -> Course:
        """Run the simulation."""
        if self._barrier:
            for episode in range(len(self._chains)):
                self._meeting(episode).gathered.append(episode)
            for meeting in self._meetings:
                self._next_turns(0.0, meeting)
        else:
            for queue in self._unbegun:
                for _ in range(min(self._load.in_flight, len(queue))):
                    self._write(0.0, queue.popleft())
        while len(self._ends) < len(self._chains):
            now, _, happen = heapq.heappop(self._events)
            self._note(min(now, self._deadline))
            if now > self._deadline:
                return self._course(self._deadline)
            happen(now)
        self._note(self._ends[-1])
        return self._course(self._ends[-1])

    def _gpu(self, episode: int) -> int:
        return episode // self._load.rollouts % self._load.gpus

    def _meeting(self, episode: int) -> _Meeting:
        return self._meetings[self._gpu(episode) if self._barrier == "gpu" else 0]

    def _at(self, when: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), happen))

    def _write(self, now: float, episode: int) -> None:
        turn = self._turn[episode]
        prefill = self._load.result_tokens if turn else self._load.prompt_tokens
        gpu = self._gpu(episode)
        self._gpus[gpu].add(now, episode, self._chains[episode][turn].tokens, prefill)
        self._watch(gpu)

    def _watch(self, gpu: int) -> None:
        self._expected[gpu] = end = self._gpus[gpu].next_end
        if end < math.inf:
            self._at(end, lambda now: self._look(now, gpu))

    def _look(self, now: float, gpu: int) -> None:
        if now != self._expected[gpu]:
            return  # the batch has changed since, and a newer event replaces this one
        done = self._gpus[gpu].done(now)
        self._watch(gpu)
        for episode in done:
            self._written(now, episode)

    def _written(self, now: float, episode: int) -> None:
        ended = self._chains[episode][self._turn[episode]].tool_seconds is None
        if ended:
            self._ends.append(now)
            self._tokens += sum(turn.tokens for turn in self._chains[episode])
        if self._barrier:
            meeting = self._meeting(episode)
            meeting.awaited -= 1
            if not ended:
                meeting.gathered.append(episode)
            if not meeting.awaited:
                for caller in meeting.open():
                    self._call(now, caller)
        elif not ended:
            self._call(now, episode)
        elif queue := self._unbegun[self._gpu(episode)]:
            self._write(now, queue.popleft())

    def _call(self, now: float, episode: int) -> None:
        self._queue.append(episode)
        self._most = max(self._most, self._running + len(self._queue))
        self._start_programs(now)

    def _start_programs(self, now: float) -> None:
        while self._queue and not (self._load.workers and self._running >= self._load.workers):
            episode = self._queue.popleft()
            self._running += 1
            self._begun.append(now)
            seconds = self._chains[episode][self._turn[episode]].tool_seconds or 0.0
            self._at(now + seconds, functools.partial(self._ran, episode=episode))

    def _ran(self, now: float, episode: int) -> None:
        self._running -= 1
        self._start_programs(now)
        self._turn[episode] += 1
        if not self._barrier:
            self._write(now, episode)
            return
        meeting = self._meeting(episode)
        meeting.awaited -= 1
        meeting.gathered.append(episode)
        if not meeting.awaited:
            self._next_turns(now, meeting)

    def _next_turns(self, now: float, meeting: _Meeting) -> None:
        for episode in meeting.open():
            self._write(now, episode)

    def _note(self, now: float) -> None:
        """Add the time since the last event to the sums; nothing changed in between."""
        passed, self._last = now - self._last, now
        busy = sum(gpu.rows > 0 for gpu in self._gpus)
        self._busy_seconds += busy * passed
        self._row_seconds += sum(gpu.rows for gpu in self._gpus) * passed
        if passed and busy != self._busy[-1][1]:
            self._busy.append((now - passed, busy))

    def _course(self, seconds: float) -> Course:
        capacity = seconds * self._load.gpus
        begun = np.bincount(np.asarray(self._begun, dtype=int)) if self._begun else [0]
        return Course(
            seconds=seconds,
            idle=1 - self._busy_seconds / capacity,
            rows=self._row_seconds / capacity,
            tokens_per_second=self._tokens / seconds,
            programs=self._most,
            programs_per_second=int(max(begun)),
            cut=len(self._chains) - len(self._ends),
            ends=tuple(self._ends),
            busy=tuple(self._busy),
        )
