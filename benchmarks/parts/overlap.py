"""Measures how well loops overlap tool time with generation, on the same episodes and sampling.

- **engine**: this project's engine, one coroutine per episode.
- **TRL's loop**: the tool loop of `GRPOTrainer` (`benchmarks.parts.trl_loop`). It generates all
  turns, runs all programs one after the other, and generates all next turns.
- **our barrier loop**: like TRL's loop, but the programs of a turn run side by side. It shows the
  best possible time of a loop with a barrier.
- **one-shot generation**: the same tokens without a loop. Each episode is one request, which reads
  the prompt and all results, and samples all turns at once.

The reference is the longer of two times: one-shot generation, and the slowest episode alone.
"""

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.parts.chains import (
    CHAIN_RULES,
    Chain,
    ChainPolicy,
    ChainTool,
    TurnRequest,
    make_problems,
)
from benchmarks.parts.exactness import Recorder, must_read
from benchmarks.parts.results import ratios
from benchmarks.parts.trl_loop import trl_chains
from retool_env.episode import Episode, GradeAnswer
from retool_env.execution import Sandbox
from retool_env.grading import is_equivalent_async
from retool_env.problem import Problem
from retool_env.rollout import Policy, RolloutEngine
from retool_env.rollout.transformers.batching import BLOCK
from retool_env.rules import Rules
from retool_env.transcript import Transcript

ENGINE, TRL, BARRIER = "engine", "TRL's loop", "our barrier loop"
SLOWEST, ONE_SHOT = "slowest episode alone", "one-shot generation"


async def barrier(
    policy: Policy, rules: Rules, sandbox: Sandbox, problems: Sequence[Problem]
) -> list[Transcript]:
    """Run episodes with barriers: generate all turns, run all programs side by side, and repeat.

    Args:
        policy: The policy.
        rules: The rules of the episodes.
        sandbox: The sandbox of the programs.
        problems: The problems, one episode each.
    """
    episodes = [Episode(problem, rules, policy.tokenizer) for problem in problems]
    while live := [episode for episode in episodes if not episode.done]:
        prompts = [[*e.transcript.prompt_ids, *e.transcript.completion_ids] for e in live]
        turns = await asyncio.gather(
            *(
                policy.act(ids, episode.stop, episode.token_budget or 0, seed)
                for seed, (ids, episode) in enumerate(zip(prompts, live, strict=True))
            )
        )
        needs = [e.act_ids(turn) for e, turn in zip(live, turns, strict=True)]

        async def meet(episode: Episode, need: Any) -> None:
            if isinstance(need, GradeAnswer):
                episode.graded(await is_equivalent_async(need.answer, need.gold))
            elif need is not None:
                episode.executed(await sandbox.run_async(need.program, need.limits))

        await asyncio.gather(*(meet(e, need) for e, need in zip(live, needs, strict=True)))
    return [episode.transcript for episode in episodes]


async def one_shot(policy: Policy, requests: Sequence[TurnRequest]) -> None:
    """Sample each episode as one request, which reads the prompt and all results first.

    Args:
        policy: The model.
        requests: All requests of a loop.

    Raises:
        RuntimeError: If the model ended an episode by itself.
    """
    combined = []
    for number in sorted({request.number for request in requests}):
        turns = sorted((a for a in requests if a.number == number), key=_turn)
        read = list(turns[0].context)
        for last, turn in itertools.pairwise(turns):
            read += turn.context[len(last.context) + len(last.sampled) :]
        combined.append((read, sum(len(turn.sampled) for turn in turns)))
    written = await asyncio.gather(
        *(policy.act(ids, (), tokens, n) for n, (ids, tokens) in enumerate(combined))
    )
    if [len(w.token_ids) for w in written] != [tokens for _, tokens in combined]:
        raise RuntimeError("the model ended an episode early")


@dataclass(frozen=True)
class Measurement:
    """One timed run of a loop."""

    seconds: float
    """The wall-clock time of the run."""
    requests: Sequence[TurnRequest] = ()
    """All requests to the policy."""
    read: int | None = None
    """The number of context tokens that the model read; `None`: not counted."""
    differ: int = 0
    """The number of episodes whose record differs from the policy's inputs and outputs."""
    generating: float | None = None
    """Seconds that all episodes together waited for the policy; `None`: not counted."""
    executing: float | None = None
    """Seconds that all episodes together waited for programs; `None`: not counted."""


Runs = dict[tuple[float | None, str], list[Measurement]]
"""The measurements by the factor of tool times and the name of the loop."""


def run_engine(
    policy: Policy, chains: Sequence[Chain], scale: float, only: int | None
) -> Measurement:
    """Time the engine.

    Args:
        policy: The model.
        chains: The episodes.
        scale: The factor of all tool times.
        only: The number of the only chain to run; `None`: all chains.

    Raises:
        RuntimeError: If an episode ended early.
    """
    recorder = Recorder(chained := ChainPolicy(policy, chains))
    tool: Any = ChainTool(chains, scale)
    problems = make_problems(chains)
    engine = RolloutEngine(recorder, CHAIN_RULES, tool, concurrency=len(chains))
    began = time.perf_counter()
    groups = engine.run(problems if only is None else [problems[only]])
    return Measurement(
        time.perf_counter() - began,
        chained.requests,
        differ=recorder.differing(_complete([group[0] for group in groups])),
        generating=engine.progress.generation_seconds,
        executing=engine.progress.tool_seconds,
    )


def run_barrier(policy: Policy, chains: Sequence[Chain], scale: float) -> Measurement:
    """Time our barrier loop.

    Args:
        policy: The model.
        chains: The episodes.
        scale: The factor of all tool times.

    Raises:
        RuntimeError: If an episode ended early.
    """
    recorder = Recorder(chained := ChainPolicy(policy, chains))
    tool: Any = ChainTool(chains, scale)
    problems = make_problems(chains)
    began = time.perf_counter()
    transcripts = asyncio.run(barrier(recorder, CHAIN_RULES, tool, problems))
    seconds = time.perf_counter() - began
    return Measurement(seconds, chained.requests, differ=recorder.differing(_complete(transcripts)))


def run_trl(policy: Policy, chains: Sequence[Chain], scale: float) -> Measurement:
    """Time TRL's loop.

    Args:
        policy: The model.
        chains: The episodes.
        scale: The factor of all tool times.
    """
    chained = ChainPolicy(policy, chains)
    rollouts = trl_chains(chained, make_problems(chains), ChainTool(chains, scale))
    last = {turn.number: turn for turn in sorted(chained.requests, key=_turn)}
    seen = [
        [*last[n].context, *last[n].sampled, *chained.tail(n, last[n].turn)]
        for n in range(len(chains))
    ]
    differ = sum(row != ids for row, ids in zip(rollouts.rows, seen, strict=True))
    return Measurement(rollouts.seconds, chained.requests, differ=differ)


def _complete(transcripts: list[Transcript]) -> list[Transcript]:
    if not all(transcript.correct for transcript in transcripts):
        raise RuntimeError("an episode ended before the answer of its chain")
    return transcripts


def overlap(
    policy: Any, chains: Sequence[Chain], scales: Sequence[float], rounds: int
) -> dict[str, Any]:
    """Time the same episodes with each loop.

    Args:
        policy: A model that does not end a turn by itself (see `endless`).
        chains: The episodes.
        scales: Factors of the tool times; each loop is measured with each factor.
        rounds: The number of measurements, each with another loop first. Medians count.

    Raises:
        RuntimeError: If two loops had different prompts, results or lengths.
    """
    run_engine(policy, chains[:8], 0.0, None)  # warms up
    per_token = run_engine(policy, chains, 0.0, 0).seconds / sum(t.tokens for t in chains[0])
    loops: dict[tuple[float | None, str], Callable[[], Measurement]] = {}
    for scale in scales:
        slowest = max(range(len(chains)), key=lambda n: chain_seconds(chains[n], per_token, scale))
        loops |= {
            (scale, SLOWEST): partial(run_engine, policy, chains, scale, slowest),
            (scale, ENGINE): partial(run_engine, policy, chains, scale, None),
            (scale, BARRIER): partial(run_barrier, policy, chains, scale),
            (scale, TRL): partial(run_trl, policy, chains, scale),
        }
    runs: Runs = {key: [] for key in (*loops, (None, ONE_SHOT))}
    # Last in the first round, because it repeats the requests of a run of the engine.
    loops[None, ONE_SHOT] = lambda: _one_shot(policy, runs[scales[0], ENGINE][0].requests)
    keys = list(loops)
    for number in range(rounds):
        first = number * len(keys) // rounds
        for key in keys[first:] + keys[:first]:
            # New weights empty the cache, which holds blocks of the last run.
            asyncio.run(policy.update_weights(policy.weight_version + 1))
            read = policy.prefilled_tokens
            run = loops[key]()
            if read is not None:
                run = replace(run, read=policy.prefilled_tokens - read)
            runs[key].append(run)
            print(
                f"round {number + 1} of {rounds}: {key[1]}, tools x {key[0]}: {run.seconds:.1f} s",
                file=sys.stderr,
                flush=True,
            )
    by_loop = {
        name: [run for key, several in runs.items() if key[1] == name for run in several]
        for name in (ENGINE, BARRIER, TRL)
    }
    first_run = runs[scales[0], ENGINE][0]
    check_same(first_run, list(itertools.chain(*by_loop.values())))
    return {
        "work": _work(first_run, chains, policy),
        "settings": [_setting(scale, runs, chains) for scale in scales],
        "exactness": {name: _exactness(several) for name, several in by_loop.items()},
        "read": _reading(by_loop, first_run),
    }


def _one_shot(policy: Policy, requests: Sequence[TurnRequest]) -> Measurement:
    began = time.perf_counter()
    asyncio.run(one_shot(policy, requests))
    return Measurement(time.perf_counter() - began)


def check_same(reference: Measurement, runs: Sequence[Measurement]) -> None:
    """Check that runs had the same episodes as a reference run.

    Raises:
        RuntimeError: If a run had other prompts or results, or sampled other lengths.
    """
    for run in runs:
        if _inputs(run.requests) != _inputs(reference.requests):
            raise RuntimeError("two loops ran different episodes, so their times can't be compared")


def _inputs(requests: Sequence[TurnRequest]) -> dict[tuple[int, int], tuple[Any, int]]:
    """By chain and turn: the context since the last sampled token, and the sampled length."""
    inputs = {}
    end: dict[int, int] = {}
    for turn in sorted(requests, key=_turn):
        behind = turn.context[end.get(turn.number, 0) :]
        inputs[turn.number, turn.turn] = behind, len(turn.sampled)
        end[turn.number] = len(turn.context) + len(turn.sampled)
    return inputs


def _work(run: Measurement, chains: Sequence[Chain], policy: Any) -> dict[str, Any]:
    ends = {a.number: len(a.context) + len(a.sampled) for a in sorted(run.requests, key=_turn)}
    return {
        "episodes": len(chains),
        "calls": sum(len(chain) - 1 for chain in chains),
        "sampled_tokens": sum(turn.tokens for chain in chains for turn in chain),
        "longest_context": max(ends.values()),
        "all_contexts": sum(ends.values()),
        "cache_tokens": policy.cache_tokens,
    }


def _turn(request: TurnRequest) -> int:
    return request.turn


def _setting(scale: float, runs: Runs, chains: Sequence[Chain]) -> dict[str, Any]:
    seconds = {
        name: [run.seconds for run in runs[None if name == ONE_SHOT else scale, name]]
        for name in (ONE_SHOT, SLOWEST, ENGINE, BARRIER, TRL)
    }
    reference = [max(pair) for pair in zip(seconds[ONE_SHOT], seconds[SLOWEST], strict=True)]
    median = {name: statistics.median(times) for name, times in seconds.items()}
    programs = {
        TRL: scale * sum(turn.tool_seconds or 0.0 for chain in chains for turn in chain),
        BARRIER: scale * barrier_tool_seconds(chains),
    }
    engine = runs[scale, ENGINE]
    return {
        "tool_scale": scale,
        "seconds": {name: round(time_, 3) for name, time_ in median.items()},
        "rounds": {name: [round(t, 3) for t in times] for name, times in seconds.items()},
        "reference_s": round(statistics.median(reference), 3),
        "engine_over": {
            "reference": ratios(seconds[ENGINE], reference),
            BARRIER: ratios(seconds[ENGINE], seconds[BARRIER]),
            TRL: ratios(seconds[ENGINE], seconds[TRL]),
        },
        "programs_s": {name: round(sum_, 3) for name, sum_ in programs.items()},
        "programs_at_least_generation": {
            name: sum_ >= median[ONE_SHOT] for name, sum_ in programs.items()
        },
        "engine_episode_seconds": {
            "generating": round(statistics.median(r.generating or 0.0 for r in engine), 1),
            "executing": round(statistics.median(r.executing or 0.0 for r in engine), 1),
        },
    }


def _exactness(runs: Sequence[Measurement]) -> dict[str, int]:
    episodes = sum(len({turn.number for turn in run.requests}) for run in runs)
    return {"episodes": episodes, "differ": sum(run.differ for run in runs)}


def _reading(by_loop: dict[str, list[Measurement]], first_run: Measurement) -> dict[str, Any]:
    """The mean number of tokens that a run read twice; uncounted loops are absent."""
    must = must_read(first_run.requests, BLOCK)
    ways = {}
    for name, runs in by_loop.items():
        if read := [run.read for run in runs if run.read is not None]:
            mean = round(statistics.mean(read), 1)
            again = round(mean - must["once"], 1)
            beyond = round(again - must["incomplete_blocks"], 1)
            ways[name] = {"read": mean, "again": again, "beyond_incomplete_blocks": beyond}
    return {"block": BLOCK, "turns": len(first_run.requests), **must, "ways": ways}


def chain_seconds(chain: Chain, seconds_per_token: float, scale: float) -> float:
    """The time of an episode that runs alone, in seconds.

    Args:
        chain: The episode.
        seconds_per_token: The time to sample a token.
        scale: The factor of all tool times.
    """
    tools = scale * sum(turn.tool_seconds or 0.0 for turn in chain)
    return tools + seconds_per_token * sum(turn.tokens for turn in chain)


def barrier_tool_seconds(chains: Sequence[Chain]) -> float:
    """The tool time of a barrier loop in seconds: the sum of the longest program of each turn."""
    turns = range(max(len(chain) for chain in chains))
    return sum(max((c[t].tool_seconds or 0.0) for c in chains if t < len(c)) for t in turns)
