"""How long the rollouts of a large step take, and what they need: with a barrier each turn, without, and with a deadline.

    python -m benchmarks.capacity
    python -m benchmarks.capacity --gpus 8 --calls 6

A simulation of discrete events, so an hour on 16 GPUs takes seconds here. What a program costs in the sandbox is the
measured figure of `benchmarks/results/sandbox.json`; all else is assumed, printed with the result, and can be set. The
figures go to `benchmarks/results/capacity.json`, a picture of the busy GPUs to `benchmarks/results/capacity.png`.
"""

import argparse
import heapq
import itertools
import json
import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chains import Chain, ToolTimes, Turn, draw_chain
from benchmarks.machine import circumstances
from retool_env.rollout.simulated import Batch, Habits, Speed

RESULTS = Path(__file__).parent / "results"


def assumed(default: float, meaning: str) -> Any:
    """An assumption, which is an option of the command line as well."""
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Load:
    """What is assumed.

    The speed is that of a 32B model in bf16 on one H200 (4.8 TB/s, of which 70 % are reached; 141 GB): its 65 GB of weights are
    read in 20 ms; a row's 4,500 tokens of keys and values, at 262 kB each, in another 0.36 ms, and it computes for 0.14
    ms; 64 billion operations a token at half of 990 TFLOP/s make 0.13 ms of prefill; 48 such rows fit beside the weights.
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
    in_flight: int = assumed(56, "episodes in flight on a GPU without a barrier")
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
    """That ran or, for want of workers, waited at once, at most: the workers needed so that none waits."""
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


class Step:
    """The rollouts of one step, from their first prompt to the last end.

    Args:
        load: What is assumed.
        chains: The episodes, all rollouts of the first problem first.
        barrier: Whether each turn waits until all episodes' turns are written, and each next one until all programs ran.
            All caches are taken as kept meanwhile, in favour of the barrier.
        deadline: Seconds after which what still runs is cut.
    """

    def __init__(
        self, load: Load, chains: Sequence[Chain], barrier: bool, deadline: float = math.inf
    ) -> None:
        self._load = load
        self._chains = chains
        self._barrier = barrier
        self._deadline = deadline
        self._turn = [0] * len(chains)
        self._gpus = [Batch(load.speed) for _ in range(load.gpus)]
        self._expected = [
            math.inf
        ] * load.gpus  # when the next row of each is done, as things stand
        self._unbegun: list[deque[int]] = [deque() for _ in self._gpus]
        for episode in range(len(chains)):
            self._unbegun[self._gpu(episode)].append(episode)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._gathered: list[int] = []  # who stands at the barrier
        self._awaited = 0  # whom the barrier waits for
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
            self._gathered = list(range(len(self._chains)))
            self._next_turns(0.0)
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
            self._written(now, episode)  # type: ignore[arg-type]

    def _written(self, now: float, episode: int) -> None:
        ended = self._chains[episode][self._turn[episode]].tool_seconds is None
        if ended:
            self._ends.append(now)
            self._tokens += sum(turn.tokens for turn in self._chains[episode])
        if self._barrier:
            self._awaited -= 1
            if not ended:
                self._gathered.append(episode)
            if not self._awaited:
                self._awaited, gathered = len(self._gathered), self._gathered
                self._gathered = []
                for each in gathered:
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
            self._at(now + seconds, lambda now, episode=episode: self._ran(now, episode))

    def _ran(self, now: float, episode: int) -> None:
        self._running -= 1
        self._start_programs(now)
        self._turn[episode] += 1
        if not self._barrier:
            self._write(now, episode)
            return
        self._awaited -= 1
        self._gathered.append(episode)
        if not self._awaited:
            self._next_turns(now)

    def _next_turns(self, now: float) -> None:
        self._awaited, gathered = len(self._gathered), self._gathered
        self._gathered = []
        for episode in gathered:
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


def compare(load: Load, chains: Sequence[Chain]) -> dict[str, Course]:
    """The same episodes with a barrier, without, and without but with a deadline."""
    free = Step(load, chains, barrier=False).run()
    last = math.ceil(load.deadline_share * len(chains)) - 1
    return {
        "barrier each turn": Step(load, chains, barrier=True).run(),
        "no barrier": free,
        "no barrier, deadline": Step(
            load, chains, barrier=False, deadline=load.deadline or free.ends[last]
        ).run(),
    }


@dataclass(frozen=True)
class Measured:
    """What the sandbox costs, from the file that `benchmarks.sandbox` wrote."""

    seconds: float
    """Added to each program: a small `sympy.solve`, median."""
    processor_seconds: float
    """Of processors, for each program, when saturated with the same."""
    source: str
    """Which measurement it is."""

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """Read the file.

        Raises:
            ValueError: If it is missing, or another kind of file.
        """
        try:
            report = json.loads(path.read_text())
            processors = int(report["device"].split()[0])
            return cls(
                report["latency"]["sympy.solve, 20 ms pauses"]["the pool"]["p50_ms"] / 1000,
                processors / report["programs_per_second"]["sympy.solve, 64 at once"],
                f"{path.name}, {report['date'][:10]}, {report['device']}",
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no result of `python -m benchmarks.sandbox` ({error!r}): run that first"
            ) from error


def table(courses: dict[str, Course], measured: Measured, episodes: int) -> str:
    """The figures as text."""
    rows = {
        "step time, minutes": [f"{c.seconds / 60:.1f}" for c in courses.values()],
        "GPUs' time without a row": [f"{c.idle:.1%}" for c in courses.values()],
        "rows of a GPU, on average": [f"{c.rows:.1f}" for c in courses.values()],
        "tokens a second, all GPUs": [f"{c.tokens_per_second:,.0f}" for c in courses.values()],
        "sandbox workers, so that no program waits": [f"{c.programs}" for c in courses.values()],
        "programs begun in a second, at most": [
            f"{c.programs_per_second}" for c in courses.values()
        ],
        "processors for the sandbox's own cost then": [
            f"{processors(c, measured)}" for c in courses.values()
        ],
        "episodes cut": [f"{c.cut} ({c.cut / episodes:.1%})" for c in courses.values()],
    }
    lines = [f"{'':<44}" + "".join(f"{name:>22}" for name in courses)]
    lines += [f"{name:<44}" + "".join(f"{cell:>22}" for cell in row) for name, row in rows.items()]
    return "\n".join(lines)


def processors(course: Course, measured: Measured) -> int:
    """Processors that the sandbox itself takes in the busiest second; what programs compute comes on top."""
    return math.ceil(course.programs_per_second * measured.processor_seconds)


def draw(courses: dict[str, Course], gpus: int, path: Path) -> None:
    """Draw the busy GPUs over time, a panel each.

    Args:
        courses: What came of the step, by the name to show.
        gpus: How many there are.
        path: Of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(courses), 1, figsize=(8, 1.6 * len(courses)), sharex=True, squeeze=False
    )
    for axis, (name, course) in zip(axes[:, 0], courses.items(), strict=True):
        seconds, busy = zip(*course.busy, (course.seconds, 0), strict=True)
        minutes = [second / 60 for second in seconds]
        axis.fill_between(minutes, busy, step="post", color="C0", alpha=0.6, linewidth=0)
        cut = f", {course.cut} episodes cut" if course.cut else ""
        title = f"{name}: {course.seconds / 60:.0f} minutes, {course.idle:.0%} idle{cut}"
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_ylabel("busy GPUs", fontsize=8)
        axis.set_ylim(0, gpus * 1.05)
    axes[-1, 0].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Runs the simulation; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for each in fields(Load):
        name, default = "--" + each.name.replace("_", "-"), each.default
        meaning = f"{each.metadata['help']} ({default})"
        parser.add_argument(name, type=type(default), default=default, help=meaning, metavar="N")
    parser.add_argument("--sandbox", type=Path, default=RESULTS / "sandbox.json", help="measured")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the figures")
    parser.add_argument("--no-picture", action="store_true", help="needs no matplotlib")
    options = vars(parser.parse_args(arguments))
    out, sandbox, no_picture = (options.pop(name) for name in ("out", "sandbox", "no_picture"))
    try:
        load, measured = Load(**options), Measured.read(sandbox)
    except ValueError as error:
        parser.error(str(error))
    chains = draw_chains(load, measured.seconds)
    courses = compare(load, chains)
    report = {
        **circumstances(),
        "simulated": True,
        "assumptions": asdict(load),
        "measured": asdict(measured),
        "courses": {
            name: {
                **{key: v for key, v in asdict(course).items() if key not in ("ends", "busy")},
                "processors": processors(course, measured),
            }
            for name, course in courses.items()
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "capacity.json").write_text(json.dumps(report, indent=2) + "\n")
    print("A simulation. Measured:")
    print(
        f"{measured.seconds:>12.4g}  seconds that the sandbox adds to a program ({measured.source})"
    )
    print(f"{measured.processor_seconds:>12.4g}  seconds of a processor for that")
    print("Assumed:")
    for each in fields(Load):
        print(f"{getattr(load, each.name):>12}  {each.metadata['help']}")
    print(
        "        also: every cache is kept until its episode ends; the update of the weights comes on top\n"
    )
    print(table(courses, measured, len(chains)))
    if not no_picture:
        draw(courses, load.gpus, out / "capacity.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
