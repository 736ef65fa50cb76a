"""How well loops hide tools behind generation: the same episodes, the same policy, the same sampling, and four ways to run them.

- **engine**: ours, one coroutine an episode.
- **TRL's loop**: `GRPOTrainer`'s own (`benchmarks.parts.trl_loop`): all turns, then all programs, one after the other, then all next
  turns.
- **our barrier loop**: as TRL's, but a turn's programs run side by side; it stands for what a loop with a barrier could do.
- **one-shot generation**: the same tokens through the policy without any loop: each episode is one request, which reads prompt
  and results at once and writes all turns at a stretch. Its time, or that of the slowest episode alone where that is longer, is
  what the others are compared with, and called the reference.
"""

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.parts.chains import CHAIN_RULES, Asked, Chain, ChainPolicy, ChainTool, make_problems
from benchmarks.parts.exactness import Recorder, must_read
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
    """Run episodes turn by turn: all write, then all programs run side by side, then all write again."""
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


async def one_shot(policy: Policy, asked: Sequence[Asked]) -> None:
    """Give the policy each episode as one request: it reads what the episode was given, and writes as many tokens as that did.

    Args:
        policy: The model.
        asked: The episodes' turns, as a loop asked for them.
    """
    numbers = sorted({each.number for each in asked})
    requests = []
    for number in numbers:
        turns = sorted((a for a in asked if a.number == number), key=lambda each: each.turn)
        read = list(turns[0].context)
        for last, turn in itertools.pairwise(turns):
            read += turn.context[len(last.context) + len(last.sampled) :]
        requests.append((read, sum(len(turn.sampled) for turn in turns)))
    written = await asyncio.gather(
        *(policy.act(ids, (), tokens, n) for n, (ids, tokens) in enumerate(requests))
    )
    if [len(w.token_ids) for w in written] != [tokens for _, tokens in requests]:
        raise RuntimeError("the model ended an episode by itself")


@dataclass(frozen=True)
class Ran:
    """One measurement."""

    seconds: float
    asked: Sequence[Asked] = ()
    """The turns that the policy was asked for."""
    read: int | None = None
    """Tokens of contexts that the model computed, where the policy counts them."""
    differ: int = 0
    """Episodes whose record is not what the policy was given and gave."""
    generating: float | None = None
    """Seconds that episodes waited for the policy, summed over all, where the loop counts them."""
    executing: float | None = None
    """The same, for programs."""


def run_engine(policy: Policy, chains: Sequence[Chain], scale: float, only: int | None) -> Ran:
    """The engine's run of all chains, or of one.

    Raises:
        RuntimeError: If an episode did not come to its end.
    """
    recorder = Recorder(chained := ChainPolicy(policy, chains))
    tool: Any = ChainTool(chains, scale)
    problems = make_problems(chains)
    engine = RolloutEngine(recorder, CHAIN_RULES, tool, concurrency=len(chains))
    began = time.perf_counter()
    groups = engine.run(problems if only is None else [problems[only]])
    seconds = time.perf_counter() - began
    transcripts = _to_the_end([group[0] for group in groups])
    progress = engine.progress
    return Ran(
        seconds,
        chained.asked,
        differ=recorder.differing(transcripts),
        generating=progress.generation_seconds,
        executing=progress.tool_seconds,
    )


def run_barrier(policy: Policy, chains: Sequence[Chain], scale: float) -> Ran:
    """Our barrier loop's.

    Raises:
        RuntimeError: If an episode did not come to its end.
    """
    recorder = Recorder(chained := ChainPolicy(policy, chains))
    tool: Any = ChainTool(chains, scale)
    problems = make_problems(chains)
    began = time.perf_counter()
    transcripts = asyncio.run(barrier(recorder, CHAIN_RULES, tool, problems))
    seconds = time.perf_counter() - began
    return Ran(seconds, chained.asked, differ=recorder.differing(_to_the_end(transcripts)))


def run_trl(policy: Policy, chains: Sequence[Chain], scale: float) -> Ran:
    """TRL's."""
    chained = ChainPolicy(policy, chains)
    rollouts = trl_chains(chained, make_problems(chains), ChainTool(chains, scale))
    last = {turn.number: turn for turn in sorted(chained.asked, key=lambda each: each.turn)}
    seen = [
        [*last[n].context, *last[n].sampled, *chained.tail(n, last[n].turn)]
        for n in range(len(chains))
    ]
    differ = sum(row != ids for row, ids in zip(rollouts.rows, seen, strict=True))
    return Ran(rollouts.seconds, chained.asked, differ=differ)


def _to_the_end(transcripts: list[Transcript]) -> list[Transcript]:
    if not all(transcript.correct for transcript in transcripts):
        raise RuntimeError("an episode did not come to its end")
    return transcripts


def overlap(
    policy: Any, chains: Sequence[Chain], scales: Sequence[float], rounds: int
) -> dict[str, Any]:
    """Time the same episodes with each loop.

    Args:
        policy: A model that ends no turn by itself.
        chains: The episodes.
        scales: Of the programs' times: all is measured with each.
        rounds: How often all is measured, each time beginning elsewhere in the order. Medians count.

    Raises:
        RuntimeError: If two loops did not do the same episodes: other prompts, results, or lengths.
    """
    run_engine(policy, chains[:8], 0.0, None)  # warms up
    per_token = run_engine(policy, chains, 0.0, 0).seconds / sum(t.tokens for t in chains[0])
    ways: dict[tuple[float | None, str], Callable[[], Ran]] = {}
    for scale in scales:
        slowest = max(range(len(chains)), key=lambda n: chain_seconds(chains[n], per_token, scale))
        ways |= {
            (scale, SLOWEST): partial(run_engine, policy, chains, scale, slowest),
            (scale, ENGINE): partial(run_engine, policy, chains, scale, None),
            (scale, BARRIER): partial(run_barrier, policy, chains, scale),
            (scale, TRL): partial(run_trl, policy, chains, scale),
        }
    found: dict[tuple[float | None, str], list[Ran]] = {key: [] for key in ways}
    found[None, ONE_SHOT] = []
    # Last in the first round, since it needs to know what an engine's run was given.
    ways[None, ONE_SHOT] = lambda: _one_shot(policy, found[scales[0], ENGINE][0].asked)
    keys = list(ways)
    for number in range(rounds):
        first = number * len(keys) // rounds
        for key in keys[first:] + keys[:first]:
            # Drops what the last run left in the cache.
            asyncio.run(policy.update_weights(policy.weight_version + 1))
            read = policy.prefilled_tokens
            ran = ways[key]()
            if read is not None:
                ran = Ran(**{**vars(ran), "read": policy.prefilled_tokens - read})
            found[key].append(ran)
            print(
                f"round {number + 1} of {rounds}: {key[1]}, tools x {key[0]}: {ran.seconds:.1f} s",
                file=sys.stderr,
                flush=True,
            )
    whole = {key: runs for key, runs in found.items() if key[1] in (ENGINE, BARRIER, TRL)}
    first_run = found[scales[0], ENGINE][0]
    check_same(first_run, [ran for runs in whole.values() for ran in runs])
    return {
        "work": _work(first_run, chains, policy),
        "settings": [_setting(scale, found, chains) for scale in scales],
        "exactness": {
            name: _exactness([ran for key, runs in whole.items() if key[1] == name for ran in runs])
            for name in (ENGINE, BARRIER, TRL)
        },
        "read": _reading(whole, first_run),
    }


def _one_shot(policy: Policy, asked: Sequence[Asked]) -> Ran:
    began = time.perf_counter()
    asyncio.run(one_shot(policy, asked))
    return Ran(time.perf_counter() - began)


def check_same(reference: Ran, runs: Sequence[Ran]) -> None:
    """Check that runs did the episodes that another did.

    Raises:
        RuntimeError: If one was given other prompts or results, or sampled other lengths.
    """
    for ran in runs:
        if _given(ran.asked) != _given(reference.asked):
            raise RuntimeError("two loops did not do the same episodes")


def _given(asked: Sequence[Asked]) -> dict[tuple[int, int], tuple[Any, int]]:
    """What stands before each turn that the model did not sample itself, and how much it then sampled."""
    found = {}
    end: dict[int, int] = {}
    for turn in sorted(asked, key=lambda each: each.turn):
        behind = turn.context[end.get(turn.number, 0) :]
        found[turn.number, turn.turn] = behind, len(turn.sampled)
        end[turn.number] = len(turn.context) + len(turn.sampled)
    return found


def _work(ran: Ran, chains: Sequence[Chain], policy: Any) -> dict[str, Any]:
    ends = {a.number: len(a.context) + len(a.sampled) for a in sorted(ran.asked, key=_turn)}
    return {
        "episodes": len(chains),
        "calls": sum(len(chain) - 1 for chain in chains),
        "sampled_tokens": sum(turn.tokens for chain in chains for turn in chain),
        "longest_context": max(ends.values()),
        "all_contexts": sum(ends.values()),
        "cache_tokens": policy.cache_tokens,
    }


def _turn(asked: Asked) -> int:
    return asked.turn


def _setting(
    scale: float, found: dict[tuple[float | None, str], list[Ran]], chains: Sequence[Chain]
) -> dict[str, Any]:
    seconds = {
        name: [ran.seconds for ran in found[None if name == ONE_SHOT else scale, name]]
        for name in (ONE_SHOT, SLOWEST, ENGINE, BARRIER, TRL)
    }
    reference = [max(pair) for pair in zip(seconds[ONE_SHOT], seconds[SLOWEST], strict=True)]
    median = {name: statistics.median(each) for name, each in seconds.items()}
    programs = {
        TRL: scale * sum(turn.tool_seconds or 0.0 for chain in chains for turn in chain),
        BARRIER: scale * barrier_tool_seconds(chains),
    }
    engine = found[scale, ENGINE]
    return {
        "tool_scale": scale,
        "seconds": {name: round(each, 3) for name, each in median.items()},
        "rounds": {name: [round(each, 3) for each in all_] for name, all_ in seconds.items()},
        "reference_s": round(statistics.median(reference), 3),
        "engine_over": {
            "reference": ratio(seconds[ENGINE], reference),
            BARRIER: ratio(seconds[ENGINE], seconds[BARRIER]),
            TRL: ratio(seconds[ENGINE], seconds[TRL]),
        },
        "programs_s": {name: round(each, 3) for name, each in programs.items()},
        "programs_at_least_generation": {
            name: each >= median[ONE_SHOT] for name, each in programs.items()
        },
        "engine_episode_seconds": {
            "generating": round(statistics.median(r.generating or 0.0 for r in engine), 1),
            "executing": round(statistics.median(r.executing or 0.0 for r in engine), 1),
        },
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The ratios of seconds, round by round: their median and their bounds."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    found = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {name: round(value, 3) for name, value in found.items()}


def _exactness(runs: Sequence[Ran]) -> dict[str, int]:
    episodes = sum(len({turn.number for turn in ran.asked}) for ran in runs)
    return {"episodes": episodes, "differ": sum(ran.differ for ran in runs)}


def _reading(whole: dict[tuple[float | None, str], list[Ran]], ran: Ran) -> dict[str, Any]:
    """Tokens that the model read a second time, of a run on average; nothing where the policy does not count."""
    must = must_read(ran.asked, BLOCK)
    ways = {}
    for name in (ENGINE, BARRIER, TRL):
        runs = [ran for key, each in whole.items() if key[1] == name for ran in each]
        read = [ran.read for ran in runs if ran.read is not None]
        if read:
            mean = round(statistics.mean(read), 1)
            again = round(mean - must["once"], 1)
            beyond = round(again - must["incomplete_blocks"], 1)
            ways[name] = {"read": mean, "again": again, "beyond_incomplete_blocks": beyond}
    return {"block": BLOCK, "turns": len(ran.asked), **must, "ways": ways}


def chain_seconds(chain: Chain, seconds_per_token: float, scale: float) -> float:
    """Seconds of an episode that is alone."""
    tools = scale * sum(turn.tool_seconds or 0.0 for turn in chain)
    return tools + seconds_per_token * sum(turn.tokens for turn in chain)


def barrier_tool_seconds(chains: Sequence[Chain]) -> float:
    """Seconds in which a barrier's programs run, if side by side: at each turn, those of the longest."""
    turns = range(max(len(chain) for chain in chains))
    return sum(max((c[t].tool_seconds or 0.0) for c in chains if t < len(c)) for t in turns)
