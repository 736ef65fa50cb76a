"""A simulation of one step's rollouts on many GPUs: discrete events, so an hour takes seconds.

What is assumed is a `Load`; its episodes are drawn once (`draw_chains`), so that a `Step` can do the same with barriers and
without. What came of it is a `Course`.
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
    """An assumption, which is an option of the command line as well."""
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Load:
    """What is assumed.

    The speed is that of a 32B model in bf16 on one H200 (4.8 TB/s, of which 70 % are reached; 141 GB): its 65 GB of weights are
    read in 20 ms; a row's 4,500 tokens of keys and values, at 262 kB each, in another 0.36 ms, and it computes for 0.14
    ms; 64 billion operations a token at half of 990 TFLOP/s make 0.13 ms of prefill. The caches of 56 such episodes take 66 GB
    of the 76 beside the weights, and so many are in flight without a barrier; 48 of them are decoded at once, so that those
    whose programs run leave no row empty. That their sum fluctuates is left out.
    """

    problems: int = assumed(512, "problems of a step")
    rollouts: int = assumed(16, "rollouts of each")
    gpus: int = assumed(16, "GPUs, each with the whole model; a problem's rollouts stay on one")
    prompt_tokens: int = assumed(400, "tokens of a prompt")
    turn_tokens: float = assumed(2000.0, "tokens of a turn on average; their logarithm is normal")
    spread: float = assumed(0.8, "standard deviation of that logarithm")
    calls: float = assumed(3.0, "calls of an episode on average; their number is geometric")
    max_calls: int = assumed(8, "calls of an episode at most")
    result_tokens: int = assumed(100, "tokens of a call's result")
    max_tokens: int = assumed(16384, "tokens of a response at most, results included")
    token_seconds: float = assumed(0.020, "seconds of a decoding step with one row")
    row_seconds: float = assumed(0.0005, "seconds that each further row adds to a step")
    prefill_seconds: float = assumed(0.00013, "seconds to read a token; the GPU's rows wait")
    rows: int = assumed(48, "rows that a GPU decodes together at most")
    in_flight: int = assumed(56, "episodes in flight on a GPU without a barrier, their caches kept")
    tool_median: float = assumed(0.05, "seconds of its own that a program runs, median; log-normal")
    tool_p99: float = assumed(3.0, "the same, 99th percentile")
    tool_limit: float = assumed(5.0, "a program's time limit in seconds")
    workers: int = assumed(0, "programs that run at once at most; 0: no bound")
    deadline: float = assumed(0.0, "seconds; 0: when the share below is done without a barrier")
    deadline_share: float = assumed(0.95, "of the episodes that the deadline waits for")
    seed: int = assumed(0, "of the lengths and times")

    def __post_init__(self) -> None:
        for name in ("problems", "rollouts", "gpus", "rows", "in_flight", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.deadline_share <= 1 or self.deadline < 0:
            raise ValueError("deadline_share is above 0 and at most 1, a deadline not below 0")
        if not 0 < self.tool_median <= self.tool_p99:
            raise ValueError(
                "a program's median time is above 0, and not above its 99th percentile"
            )
        if self.max_calls < 0 or self.workers < 0:
            raise ValueError("max_calls and workers must not be negative")
        self.speed, self.habits, self.tools  # noqa: B018 (they check the rest)

    @property
    def speed(self) -> Speed:
        """Of one GPU."""
        return Speed(self.token_seconds, self.row_seconds, self.prefill_seconds, self.rows)

    @property
    def habits(self) -> Habits:
        """Of the model."""
        return Habits(self.turn_tokens, self.spread, self.calls)

    @property
    def tools(self) -> ToolTimes:
        """Of the programs, without the sandbox's part."""
        return ToolTimes(self.tool_median, self.tool_p99, self.tool_limit)


@dataclass(frozen=True)
class Course:
    """What came of a step's rollouts."""

    seconds: float
    """Until the last episode ended or was cut."""
    idle: float
    """Share of the GPUs' time in which they had no row to decode."""
    rows: float
    """Rows that a GPU decoded together, on average over the time."""
    tokens_per_second: float
    """That all GPUs wrote together, in finished episodes."""
    programs: int
    """That ran or, for want of workers, waited at once, at most."""
    programs_per_second: int
    """Begun within one second, at most."""
    cut: int
    """Episodes that the deadline cut, those not begun by then included."""
    ends: tuple[float, ...] = field(repr=False)
    """When each finished episode ended, in order."""
    busy: tuple[tuple[float, int], ...] = field(repr=False)
    """`(second, GPUs with a row to decode from then on)`."""


def draw_chains(load: Load, sandbox_seconds: float) -> list[Chain]:
    """The episodes, the rollouts of a problem one after the other.

    Args:
        load: What is assumed.
        sandbox_seconds: What the sandbox adds to each program.
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
    """A barrier's state."""

    gathered: list[int] = field(default_factory=list)
    """Who stands at it."""
    awaited: int = 0
    """How many it waits for."""

    def open(self) -> list[int]:
        """Let them all go, and wait for as many."""
        gathered, self.gathered = self.gathered, []
        self.awaited = len(gathered)
        return gathered


class Step:
    """The rollouts of one step, from their first prompt to the last end.

    Args:
        load: What is assumed.
        chains: The episodes, all rollouts of the first problem first.
        barrier: Among which episodes each turn waits until all turns are written, and each next one until all programs ran:
            those of a `"gpu"`, or `"all"`; `None`: each goes on by itself. All caches are taken as kept meanwhile, in
            favour of the barrier.
        deadline: Seconds after which what still runs is cut.
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
        self._expected = [
            math.inf
        ] * load.gpus  # when the next row of each is done, as things stand
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
        """Simulate it."""
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
            return  # the batch has changed since this event was foreseen, and another stands in its place
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
                for each in meeting.open():
                    self._call(now, each)
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
        """Account for the time since the last event, in which nothing changed."""
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
