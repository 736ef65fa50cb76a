"""Measures how well the rollout engine overlaps tool time with generation, and its overhead.

    python -m benchmarks.rollout
    python -m benchmarks.rollout --model runs/models/smollm2 --turn-tokens 24 --tool-scale 1 2

- **tool time** (`benchmarks.parts.tool_time`): each rollout calls a 50 ms tool once; generation
  takes no time.
- **overlap** (`benchmarks.parts.overlap`): a real model samples turns of drawn lengths, and
  programs take drawn times. TRL's loop, our barrier loop and the engine run the same episodes with
  the same policy and sampling, once with short and once with long programs.
- **reading** (`benchmarks.parts.exactness`): tokens that the policy had to read twice.
- **exactness** (`benchmarks.parts.exactness`): episodes whose record differs from the policy's
  inputs and outputs, in the overlap and in naturally sampled episodes.
- **overhead** (`benchmarks.parts.overhead`): the engine's own time per turn and per episode, with
  thousands of episodes at once.

The figures go to `benchmarks/results/rollout.json`; with `--model`, to `rollout_<model's
name>.json`.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts.chains import ToolTimes, draw_chain, endless, make_chat_model, speak_of_tools
from benchmarks.parts.exactness import make_natural_model, natural
from benchmarks.parts.overhead import overhead
from benchmarks.parts.overlap import BARRIER, ENGINE, ONE_SHOT, SLOWEST, TRL, overlap
from benchmarks.parts.results import RESULTS, write_results
from benchmarks.parts.tool_time import tool_time
from retool_env.rollout.simulated import Habits
from retool_env.rollout.transformers.policy import TransformersPolicy, load_policy

TOOL_SECONDS, TOOL_ROLLOUTS = 0.05, 128


def load(path: str | None, rows: int) -> tuple[TransformersPolicy, dict[str, Any]]:
    """Load the policy, and sample naturally with it and with the tiny model.

    Args:
        path: The folder of a checkpoint; `None`: the tiny model.
        rows: The maximum number of rows in a batch.

    Returns:
        A policy whose model does not end a turn by itself, and the figures of natural sampling.
    """
    tiny, tokenizer = make_natural_model(0)
    sampled = {"tiny": natural(TransformersPolicy(tiny, tokenizer), problems=16, n=8)}
    if path is None:
        model, tokenizer = make_chat_model(0)
        model.config.max_position_embeddings = 16_384
        policy = TransformersPolicy(model, tokenizer, max_batch=rows)
    else:
        policy = load_policy(path, max_batch=rows)
        sampled[Path(path).name] = natural(policy, problems=2, n=4)
        speak_of_tools(policy.tokenizer)
    endless(policy.model, policy.tokenizer)
    return policy, sampled


def table(report: dict[str, Any]) -> str:
    """The figures as text."""
    settings, of_overlap = report["settings"], report["overlap"]
    lines = [f"{TOOL_ROLLOUTS} rollouts that call a {1000 * TOOL_SECONDS:.0f} ms tool once"]
    for name, row in report["tool_time"].items():
        lines.append(f"{row['wall_s']:>10.3f} s  {name}; {row['without_tool_s']:.3f} s with 0 ms")
    work = of_overlap["work"]
    lines += [
        "",
        f"{work['episodes']} episodes, {work['calls']} calls, {work['sampled_tokens']} tokens of "
        f"{settings['model'] or 'the tiny model'}, {settings['rounds']} rounds: medians, ranges",
    ]
    columns = of_overlap["settings"]
    heads = [
        f"{1000 * c['tool_scale'] * settings['tool_median']:.0f} ms, 1 % > "
        f"{c['tool_scale'] * settings['tool_p99']:.2g} s"
        for c in columns
    ]
    lines.append(_row("programs, median", heads))
    for name in (ONE_SHOT, SLOWEST, ENGINE, BARRIER, TRL):
        lines.append(_row(f"{name}, s", [f"{c['seconds'][name]:.2f}" for c in columns]))
    for name in ("reference", BARRIER, TRL):
        ratios = [c["engine_over"][name] for c in columns]
        cells = [f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for r in ratios]
        lines.append(_row(f"engine / {name}", cells))
    for name in (BARRIER, TRL):
        longer = [("no", "yes")[c["programs_at_least_generation"][name]] for c in columns]
        cells = [f"{c['programs_s'][name]:.1f}, {s}" for c, s in zip(columns, longer, strict=True)]
        lines.append(_row(f"programs' s in {name}; >= one-shot generation?", cells))
    waits = [c["engine_episode_seconds"] for c in columns]
    cells = [f"{wait['generating']:.0f}, {wait['executing']:.0f}" for wait in waits]
    lines.append(_row("engine: episodes' s generating, executing", cells))
    lines.append("  the reference is the longer of one-shot generation and the slowest episode")
    parts = [lines, _reading(of_overlap), _exactness(report), _overhead(report["overhead"])]
    return "\n\n".join("\n".join(part) for part in parts)


def _row(name: str, cells: list[str]) -> str:
    return f"  {name:<58}" + "".join(f"{cell:>24}" for cell in cells)


def _reading(of_overlap: dict[str, Any]) -> list[str]:
    read, work = of_overlap["read"], of_overlap["work"]
    lines = [
        f"Tokens read in a run: {read['once']} at least ({read['turns']} turns); all contexts are "
        f"{work['all_contexts']}, the cache {work['cache_tokens']}, in blocks of {read['block']}",
        f"{read['incomplete_blocks']:>10}  again, for the incomplete blocks, at most "
        f"{read['block'] - 1} a turn",
    ]
    for name, row in read["ways"].items():
        lines.append(f"{row['beyond_incomplete_blocks']:>10g}  again beyond these: {name}")
    lines.append(f"{read['without_cache']:>10}  again without a cache, as in TRL's own generation")
    return lines


def _exactness(report: dict[str, Any]) -> list[str]:
    lines = ["Episodes whose record differs from the policy's inputs and outputs"]
    for name, row in report["overlap"]["exactness"].items():
        lines.append(f"{row['differ']:>10}  of {row['episodes']}, chains, {name}")
    for name, row in report["natural"].items():
        lines.append(
            f"{row['differ']:>10}  of {row['episodes']}, natural sampling, {name}: turns with a "
            f"tag {row['tag']}, surplus {row['surplus']}, an end token {row['eos']}, others "
            f"{row['other']}; encoding again would change {row['encoding_again']} episodes"
        )
    return lines


def _overhead(cost: dict[str, Any]) -> list[str]:
    columns = [cost["short"], cost["long"]]
    heads = [f"{c['context_tokens']} tokens, {c['episodes']}" for c in columns]
    lines = ["The engine's overhead (processor us; wall-clock us)", _row("context, at once", heads)]
    for name, meaning in (
        ("turn", f"a turn of {cost['turn_tokens']} tokens with a call"),
        ("episode", "an episode with one call, from begin to end"),
        ("grading", "grading its answer"),
    ):
        cells = [f"{c[f'{name}_us']:.0f}; {c[f'{name}_us_wall']:.0f}" for c in columns]
        lines.append(_row(meaning, cells))
    cells = [f"{c['memory_kb']:.1f} ({c['memory_tokens']} tokens)" for c in columns]
    lines.append(_row("KB an episode: tasks, record, ids and log-probs", cells))
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 if a record differs from the policy's outputs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint (a new tiny model)")
    parser.add_argument("--episodes", type=int, default=128, help="episodes of the overlap (128)")
    parser.add_argument("--turn-tokens", type=float, default=64.0, help="mean turn length (64)")
    parser.add_argument("--calls", type=float, default=2.0, help="mean calls of an episode (2)")
    parser.add_argument("--tool-median", type=float, default=0.05, help="median tool time (0.05 s)")
    parser.add_argument("--tool-p99", type=float, default=3.0, help="99th percentile (3 s)")
    parser.add_argument(
        "--tool-scale", type=float, nargs="+", default=[0.1, 1.0], help="factors (0.1 1)"
    )
    parser.add_argument("--at-once", type=int, default=4096, help="overhead: episodes (4096)")
    parser.add_argument("--rounds", type=int, default=3, help="repeats of a measurement (3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of lengths and times (0)")
    parser.add_argument("--out", type=Path, help="the JSON file of the figures")
    options = parser.parse_args(arguments)
    if min(options.episodes, options.at_once, options.rounds) < 1 or min(options.tool_scale) < 0:
        parser.error(
            "--episodes, --at-once and --rounds must be at least 1, --tool-scale not negative"
        )
    try:
        habits = Habits(options.turn_tokens, calls=options.calls)
        times = ToolTimes(options.tool_median, options.tool_p99, limit=30.0)
    except ValueError as error:
        parser.error(str(error))
    name = f"rollout_{Path(options.model).name}.json" if options.model else "rollout.json"
    out = options.out or RESULTS / name
    logging.getLogger("transformers").setLevel(logging.ERROR)
    chance = np.random.default_rng(options.seed)
    chains = [draw_chain(chance, habits, times, 8, 3000, 16) for _ in range(options.episodes)]

    cost = overhead(options.at_once, options.rounds)  # first: later parts keep memory
    waited = tool_time(TOOL_ROLLOUTS, TOOL_SECONDS)
    policy, sampled = load(options.model, options.episodes)
    report: dict[str, Any] = {
        "settings": {
            **{name: value for name, value in vars(options).items() if name != "out"},
            "spread": habits.spread,
            "tool_limit": times.limit,
            "tool_rollouts": TOOL_ROLLOUTS,
            "tool_s": TOOL_SECONDS,
        },
        "tool_time": waited,
        "overlap": overlap(policy, chains, options.tool_scale, options.rounds),
        "natural": sampled,
        "overhead": cost,
    }
    write_results(out, report)
    print(table(report))
    loops = report["overlap"]["exactness"]
    return 1 if loops[ENGINE]["differ"] or any(row["differ"] for row in sampled.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
