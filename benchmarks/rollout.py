"""How well the rollout engine hides tools behind generation, and what it costs itself; side by side in one run.

    python -m benchmarks.rollout
    python -m benchmarks.rollout --model runs/models/smollm2 --episodes 64

- **tool**: rollouts that each call a 50 ms tool once, with turns that cost nothing: TRL's own tool loop, and the engine.
- **overlap**: a real model writes turns of drawn lengths, programs take drawn times. A loop with a barrier at each turn
  (all turns, then all programs at once, then all next turns) and the engine do the same episodes with the same policy. No
  loop can beat the longer of two: the generation without programs, and the slowest episode alone.
- **overhead**: what the engine itself takes for a turn and an episode, with thousands at once.
- **exactness**: of the overlap's episodes, those whose record differs from what the policy was given and gave; and tokens that
  the policy had to read a second time.

The figures go to `benchmarks/results/rollout.json`.
"""

import argparse
import asyncio
import gc
import itertools
import json
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.tiny import make_model, make_tokenizer
from benchmarks.chains import (
    CHAIN_RULES,
    Chain,
    ChainPolicy,
    ChainTool,
    ToolTimes,
    draw_chain,
    endless,
    make_problems,
)
from benchmarks.machine import circumstances, resident_mb
from retool_env.episode import Episode, Generation, GradeAnswer, Rules
from retool_env.grading import is_equivalent
from retool_env.problems import Problem
from retool_env.protocol import ANSWER_CLOSE, CODE_CLOSE, closing_tags
from retool_env.rollout import Policy, RolloutEngine
from retool_env.rollout.simulated import Habits
from retool_env.rollout.weights import Weights
from retool_env.sandbox import Execution, Limits, Outcome, Sandbox
from retool_env.transcript import Transcript

RESULTS = Path(__file__).parent / "results" / "rollout.json"

TOOL_SECONDS, TOOL_ROLLOUTS = 0.05, 128
AT_ONCE = 4096


async def barrier(
    policy: Policy, rules: Rules, sandbox: Sandbox, problems: Sequence[Problem]
) -> list[Transcript]:
    """Run episodes turn by turn: all write, then all programs run side by side, then all write again."""
    episodes = [Episode(problem, rules, policy.tokenizer) for problem in problems]
    stop = closing_tags(rules.interpreter)
    while live := [episode for episode in episodes if not episode.done]:
        prompts = [[*e.transcript.prompt_ids, *e.transcript.completion_ids] for e in live]
        turns = await asyncio.gather(
            *(
                policy.act(ids, stop, episode.token_budget or 0, seed)
                for seed, (ids, episode) in enumerate(zip(prompts, live, strict=True))
            )
        )
        needs = [e.act_ids(turn) for e, turn in zip(live, turns, strict=True)]

        async def meet(episode: Episode, need: Any) -> None:
            if isinstance(need, GradeAnswer):
                episode.graded(await asyncio.to_thread(is_equivalent, need.answer, need.gold))
            elif need is not None:
                episode.executed(await sandbox.run_async(need.program, need.limits))

        await asyncio.gather(*(meet(e, need) for e, need in zip(live, needs, strict=True)))
    return [episode.transcript for episode in episodes]


class Recorder:
    """A policy that notes what it was given and what it gave."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.tokenizer = policy.tokenizer
        self.context_length = policy.context_length
        self.weight_version = policy.weight_version
        self.turns: dict[tuple[int, ...], Generation] = {}
        """What was given, and what came back."""

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Passed on, and noted."""
        generation = await self.policy.act(token_ids, stop, budget, seed)
        self.turns[tuple(token_ids)] = generation
        return generation

    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """Passed on."""
        await self.policy.update_weights(version, weights)

    def differs(self, transcript: Transcript) -> bool:
        """Whether a transcript is not, id by id and log-prob by log-prob, what went in and out."""
        before: tuple[int, ...] = ()
        for span in transcript.spans:
            if span.author == "model":
                turn = self.turns.get(before)
                if turn is None or (turn.token_ids, turn.logprobs) != (
                    span.token_ids,
                    span.logprobs,
                ):
                    return True
            before += span.token_ids or ()
        return False


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of token ids that two sequences begin with alike."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def read_once(policy: ChainPolicy, transcripts: Sequence[Transcript]) -> int:
    """Tokens that the model has to read if it reads none twice.

    Each result, and each prompt but for what it begins with as another does; the tags that the benchmark wrote at a turn's end
    in the model's place; and the token before them, the last that was sampled, since nothing had followed it when it was.
    """
    tokens = 0
    before: list[int] = []
    # Of all before it, the neighbour in order shares most with a prompt.
    for prompt in sorted(transcript.prompt_ids for transcript in transcripts):
        tokens += len(prompt) - shared(before, prompt)
        before = prompt
    for transcript in transcripts:
        response = transcript.response
        for turn, result in enumerate(response[1::2]):
            tail = policy.tail(int(transcript.problem.id), turn)
            tokens += 1 + len(tail) + len(result.token_ids or ())
    return tokens


def overlap(policy: Policy, chains: Sequence[Chain], rounds: int) -> dict[str, Any]:
    """Time the same episodes with the engine and with a barrier, and what neither can beat.

    Args:
        policy: A model that ends no turn by itself.
        chains: The episodes.
        rounds: How often all is measured; the medians count.

    Returns:
        `seconds` of each way, by name; `exactness`: what became of the engine's episodes.
    """
    problems = make_problems(chains)
    exact = {"episodes": 0, "differ": 0, "read": 0, "read_once": 0}
    version = 0

    def run(how: str, scale: float, numbers: Sequence[int]) -> float:
        nonlocal version
        version += 1
        asyncio.run(policy.update_weights(version))  # drops what the last run left in the cache
        recorder = Recorder(chained := ChainPolicy(policy, chains))
        tool: Any = ChainTool(chains, scale)
        chosen = [problems[number] for number in numbers]
        read = getattr(policy, "prefilled_tokens", 0)
        began = time.perf_counter()
        if how == "barrier":
            transcripts = asyncio.run(barrier(recorder, CHAIN_RULES, tool, chosen))
        else:
            engine = RolloutEngine(recorder, CHAIN_RULES, tool, concurrency=len(chains))
            transcripts = [group[0] for group in engine.run(chosen)]
        seconds = time.perf_counter() - began
        if not all(transcript.correct for transcript in transcripts):
            raise RuntimeError("an episode did not come to its end")
        if how == "engine" and scale and len(chosen) == len(chains):
            exact["episodes"] += len(transcripts)
            exact["differ"] += sum(recorder.differs(transcript) for transcript in transcripts)
            exact["read"] += getattr(policy, "prefilled_tokens", 0) - read
            exact["read_once"] += read_once(chained, transcripts)
        return seconds

    everyone = range(len(chains))
    run("engine", 0.0, everyone[:8])  # warms up
    alone = run("engine", 0.0, everyone[:1]) / sum(turn.tokens for turn in chains[0])
    longest = max(everyone, key=lambda number: _chain_seconds(chains[number], alone))
    ways = {
        "generation alone": ("engine", 0.0, everyone),
        "slowest episode alone": ("engine", 1.0, [longest]),
        "engine": ("engine", 1.0, everyone),
        "barrier each turn": ("barrier", 1.0, everyone),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            seconds[name].append(run(*way))
        print(f"overlap, round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    if not hasattr(policy, "prefilled_tokens"):
        exact.pop("read"), exact.pop("read_once")
    return {
        "seconds": {name: round(statistics.median(each), 3) for name, each in seconds.items()},
        "rounds": {name: [round(each, 3) for each in all_] for name, all_ in seconds.items()},
        "exactness": exact,
    }


def _chain_seconds(chain: Chain, seconds_per_token: float) -> float:
    return sum(turn.tokens * seconds_per_token + (turn.tool_seconds or 0.0) for turn in chain)


def barrier_tool_seconds(chains: Sequence[Chain]) -> float:
    """Seconds in which a barrier's programs run: at each turn, those of the longest."""
    turns = range(max(len(chain) for chain in chains))
    return sum(max((c[t].tool_seconds or 0.0) for c in chains if t < len(c)) for t in turns)


class InstantPolicy:
    """Writes a code block at once, so many times an episode, and then an answer or nothing.

    Args:
        calls: Code blocks an episode.
        answers: Whether it ends with an answer, which is graded, or with an empty turn.
    """

    def __init__(self, calls: int, answers: bool) -> None:
        self.tokenizer = make_tokenizer()
        self.context_length = 1_000_000
        self.weight_version = 0
        self.calls = calls
        self._call = self._turn(f"{'.' * 28}<code>\n```python\n1\n```\n{CODE_CLOSE}", "tag")
        self._last = self._turn(f"{'.' * 28}<answer>1{ANSWER_CLOSE}", "tag")
        if not answers:
            self._last = Generation((self.tokenizer.eos_token_id,), (0.0,), "eos")
        self._close = self._call.token_ids[-1]

    def _turn(self, text: str, reason: Any) -> Generation:
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return Generation(ids, (0.0,) * len(ids), reason)

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """The next turn."""
        return self._call if token_ids.count(self._close) < self.calls else self._last

    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """It has none."""


class WaitingTool:
    """A sandbox whose programs take so many seconds, and do nothing."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def run_async(self, code: str, limits: Limits | None = None, **_: Any) -> Execution:
        """Wait."""
        if self.seconds:
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


OVERHEAD_RULES = Rules(prompt_template="{query}\n", max_tokens=10_000, max_calls=None)


def _instant(episodes: int, calls: int, answers: bool, tool: Any) -> tuple[float, float]:
    """Seconds of so many episodes at once, whose turns cost nothing: on the clock, and of the processor."""
    problems = [Problem(str(i), f"{i}?", "1") for i in range(episodes)]
    policy = InstantPolicy(calls, answers)
    engine = RolloutEngine(policy, OVERHEAD_RULES, tool, concurrency=episodes)
    began, used = time.perf_counter(), time.process_time()
    groups = engine.run(problems)
    seconds = time.perf_counter() - began, time.process_time() - used
    if any(len(group[0].calls) != calls for group in groups):
        raise RuntimeError("an episode did not make its calls")
    return seconds


def overhead(episodes: int, rounds: int) -> dict[str, float]:
    """What the engine takes with so many episodes at once: microseconds and kilobytes.

    Returns:
        In microseconds of the processor, which hang less on what else runs than those of the clock: `turn_us`, of a turn that
        ends in a call, all its parts (prompt, parsing, record, tool's coroutine) but no model; `episode_us`, of beginning
        and ending an episode; `grading_us`, what an answer's grading adds to that. And `episode_kb`: resident memory of
        an episode whose first program runs.
    """
    _instant(64, 2, True, WaitingTool(0.0))  # warms up
    gc.collect()
    before = resident_mb()
    meeting = MeetingTool(episodes)  # first, since memory that was freed would be used again
    _instant(episodes, 1, False, meeting)

    def per_episode(calls: int, answers: bool) -> float:
        each = [_instant(episodes, calls, answers, WaitingTool(0.0))[1] for _ in range(rounds)]
        return 1e6 * statistics.median(each) / episodes

    none, four, graded = per_episode(0, False), per_episode(4, False), per_episode(0, True)
    return {
        "turn_us": round((four - none) / 4, 1),
        "episode_us": round(none, 1),
        "grading_us": round(graded - none, 1),
        "episode_kb": round(1024 * (meeting.megabytes - before) / episodes, 1),
    }


def tools(rollouts: int, seconds: float) -> dict[str, dict[str, float]]:
    """Seconds of rollouts that call a tool once, with the tool as stated and with one that takes no time."""
    from benchmarks.trl_loop import trl_tool_loop

    def both(run: Any) -> dict[str, float]:
        whole, without = run(seconds), run(0.0)
        return {"wall_s": round(whole, 3), "without_tool_s": round(without, 3)}

    return {
        "TRL, plain tool": both(lambda each: trl_tool_loop(rollouts, each, False)),
        "TRL, coroutine": both(lambda each: trl_tool_loop(rollouts, each, True)),
        "engine": both(lambda each: _instant(rollouts, 1, False, WaitingTool(each))[0]),
    }


def load(path: str | None, rows: int) -> Any:
    """A policy whose model ends no turn by itself: the tiny one, or a checkpoint's."""
    from retool_env.rollout.transformers import TransformersPolicy, load_policy

    if path is None:
        model, tokenizer = make_model(0)
        model.config.max_position_embeddings = 4096
        policy = TransformersPolicy(model, tokenizer, max_batch=rows)
    else:
        policy = load_policy(path, max_batch=rows)
    endless(policy.model, policy.tokenizer)
    return policy


def report_overlap(found: dict[str, Any]) -> str:
    """The overlap as text."""
    seconds = found["seconds"]
    ideal = max(seconds["generation alone"], seconds["slowest episode alone"])
    lines = [f"{each:>9.2f}  s: {name}" for name, each in seconds.items()]
    lines.append(
        f"{seconds['engine'] / ideal:>9.2f}  x the ideal, which is the longer of the first two"
    )
    lines.append(f"{seconds['engine'] / seconds['barrier each turn']:>9.2f}  x the barrier's time")
    lines.append(f"{found['barrier_tool_s']:>9.2f}  s of the barrier's time are its programs'")
    exact = found["exactness"]
    lines.append(
        f"{exact['differ']:>9}  of {exact['episodes']} episodes differ from what the policy saw"
    )
    if "read" in exact:
        again = exact["read"] - exact["read_once"]
        lines.append(
            f"{again:>9}  tokens read a second time, beside {exact['read_once']} read once"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status: 1 if a record differs from what the policy saw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint; by default a tiny model, made on the spot")
    parser.add_argument("--episodes", type=int, default=128, help="of the overlap (128)")
    parser.add_argument("--turn-tokens", type=float, default=64.0, help="mean length (64)")
    parser.add_argument("--calls", type=float, default=2.0, help="mean number an episode (2)")
    parser.add_argument("--tool-median", type=float, default=0.05, help="seconds (0.05)")
    parser.add_argument("--tool-p99", type=float, default=3.0, help="seconds (3)")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help=f"of the overhead ({AT_ONCE})")
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement (3)")
    parser.add_argument("--seed", type=int, default=0, help="of lengths and times")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the figures go")
    options = parser.parse_args(arguments)
    if min(options.episodes, options.at_once, options.rounds) < 1:
        parser.error("--episodes, --at-once and --rounds must be at least 1")
    try:
        habits = Habits(options.turn_tokens, calls=options.calls)
        times = ToolTimes(options.tool_median, options.tool_p99, limit=30.0)
    except ValueError as error:
        parser.error(str(error))
    logging.getLogger("transformers").setLevel(logging.ERROR)
    chance = np.random.default_rng(options.seed)
    chains = [draw_chain(chance, habits, times, 8, 3000, 16) for _ in range(options.episodes)]

    cost = overhead(options.at_once, options.rounds)  # first: the rest leaves memory behind
    waited = tools(TOOL_ROLLOUTS, TOOL_SECONDS)
    found = overlap(load(options.model, options.episodes), chains, options.rounds)
    found["barrier_tool_s"] = round(barrier_tool_seconds(chains), 3)
    report = {
        **circumstances(),
        "settings": {
            **{name: value for name, value in vars(options).items() if name != "out"},
            "spread": habits.spread,
            "tool_rollouts": TOOL_ROLLOUTS,
            "tool_s": TOOL_SECONDS,
        },
        "tool": waited,
        "overlap": found,
        "overhead": cost,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{TOOL_ROLLOUTS} rollouts that call a {1000 * TOOL_SECONDS:.0f} ms tool once:")
    for name, row in waited.items():
        print(
            f"{row['wall_s']:>9.3f}  s: {name} ({row['without_tool_s']:.3f} s with a tool of 0 ms)"
        )
    tokens = sum(turn.tokens for chain in chains for turn in chain)
    calls = sum(len(chain) - 1 for chain in chains)
    print(f"{len(chains)} episodes, {tokens} tokens, {calls} calls, median of {options.rounds}:")
    print(report_overlap(found))
    print(f"The engine itself, {options.at_once} episodes at once:")
    print(f"{cost['turn_us']:>9.1f}  us of the processor for a turn with a call")
    print(f"{cost['episode_us']:>9.1f}  us for beginning and ending an episode")
    print(f"{cost['grading_us']:>9.1f}  us for grading its answer")
    print(f"{cost['episode_kb']:>9.1f}  KB an episode in flight")
    return 1 if found["exactness"]["differ"] else 0


if __name__ == "__main__":
    sys.exit(main())
