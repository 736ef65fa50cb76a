"""Routing turns to several vLLM servers: this package's router against other ways.

    vllm serve MODEL --port 8000 …
    vllm serve MODEL --port 8001 …
    vllm-router --worker-urls http://127.0.0.1:8000 http://127.0.0.1:8001 --port 8100
    python -m benchmarks.routing --metrics http://127.0.0.1:8000,http://127.0.0.1:8001 \
        --way ours=http://127.0.0.1:8000,http://127.0.0.1:8001 --way router=http://127.0.0.1:8100

Groups of episodes with several turns run at once: all prompts share a template, a group shares a
problem, and each turn is followed by a tool's output. The ways take turns, and each time all tokens
are new, so that no cache holds them. A way is measured by the seconds of all episodes, and by the
share of their tokens that the servers found in their caches. The servers run the same model, with a
context of 2,048 tokens at least. The figures go to `benchmarks/results/routing.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from benchmarks.parts.results import RESULTS, write_results
from retool_env.rollout.policy import Policy, PolicyUnavailable
from retool_env.rollout.vllm.server import VLLMServerPolicy
from retool_env.servers.address import split_urls

TEMPLATE, PROBLEM, TURNS, SAMPLED, RESULT = 256, 128, 6, 24, 160
"""Tokens of the template and of a problem; turns of an episode; tokens of a turn and of a result.
"""
_CACHE = re.compile(r"^vllm:prefix_cache_(queries|hits)_total\{[^}]*\} (\S+)$", re.MULTILINE)


def cached(urls: Sequence[str]) -> tuple[float, float]:
    """The tokens that servers looked up in their caches so far, and the tokens that they found.

    Args:
        urls: The addresses of the servers.
    """
    sums = {"queries": 0.0, "hits": 0.0}
    for url in urls:
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
            for name, value in _CACHE.findall(answer.read().decode()):
                sums[name] += float(value)
    return sums["queries"], sums["hits"]


async def episodes(policy: Policy, problems: int, rollouts: int, size: int, seed: int) -> None:
    """Run all episodes at once.

    Args:
        policy: The policy that samples.
        problems: The number of problems.
        rollouts: The number of episodes of each problem.
        size: The number of token ids to draw from.
        seed: The seed of all tokens.
    """
    rng = np.random.default_rng(seed)

    def some(count: int) -> list[int]:
        return rng.integers(size, size=count).tolist()

    template = some(TEMPLATE)
    prompts = [prompt for _ in range(problems) for prompt in [template + some(PROBLEM)] * rollouts]
    results = [[some(RESULT) for _ in range(TURNS)] for _ in prompts]

    async def episode(number: int) -> None:
        token_ids = list(prompts[number])
        for turn, result in enumerate(results[number]):
            one = seed * 1_000_003 + number * TURNS + turn
            said = await policy.act(token_ids, (), SAMPLED, one)
            token_ids += [*said.token_ids, *result]

    await asyncio.gather(*map(episode, range(len(prompts))))


def measure(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Run all ways by turns, and return the seconds and the cached share of each round, by way.

    Args:
        options: The options of the command line.

    Raises:
        OSError: If the metrics of a server, or the tokenizer, can't be read.
        ValueError: If a URL is invalid, or the servers report no figures of their caches.
        PolicyUnavailable: If a way can't be reached.
    """
    servers = split_urls(options.metrics, "a server", "http://host:8000")
    tokenizer: Any = AutoTokenizer.from_pretrained(options.tokenizer)
    size = tokenizer.vocab_size
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(options.rounds):
        for place, way in enumerate(options.way):
            name, _, entry = way.partition("=")
            urls = split_urls(entry, f"--way {name}", "http://host:8000")
            before = cached(servers)
            with VLLMServerPolicy(urls, tokenizer) as policy:
                began = time.monotonic()
                seed = 1 + number * len(options.way) + place
                asyncio.run(episodes(policy, options.problems, options.rollouts, size, seed))
                seconds = time.monotonic() - began
            queries, hits = (a - b for a, b in zip(cached(servers), before, strict=True))
            if queries <= 0:
                raise ValueError(f"{options.metrics}: no figures of caches; is it vllm serve?")
            row = found.setdefault(name, {"seconds": [], "cached": []})
            row["seconds"].append(round(seconds, 2))
            row["cached"].append(round(hits / queries, 4))
            print(f"{name}: {seconds:.1f} s, {hits / queries:.1%} cached", file=sys.stderr)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", required=True, help="URLs of all servers, with commas")
    parser.add_argument(
        "--way", action="append", required=True, metavar="NAME=URL,URL", help="repeatable"
    )
    parser.add_argument("--tokenizer", default="runs/sft/checkpoint", help="folder or name")
    parser.add_argument("--problems", type=int, default=16, help="problems at once (16)")
    parser.add_argument("--rollouts", type=int, default=8, help="episodes per problem (8)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all ways (3)")
    parser.add_argument("--out", type=Path, default=RESULTS / "routing.json")
    options = parser.parse_args(arguments)
    if any(not all(way.partition("=")) for way in options.way):
        parser.error("--way must be NAME=URL,URL")
    try:
        found = measure(options)
    except (OSError, ValueError, PolicyUnavailable) as error:
        print(f"python -m benchmarks.routing: {error}", file=sys.stderr)
        return 2
    settings: dict[str, Any] = {
        **{"problems": options.problems, "rollouts": options.rollouts, "template": TEMPLATE},
        **{"problem": PROBLEM, "turns": TURNS, "sampled": SAMPLED, "result": RESULT},
    }
    write_results(options.out, {"settings": settings, "ways": found})
    print("| way | seconds | tokens from caches |\n|---|---|---|")
    for name, row in found.items():
        seconds, share = (statistics.median(row[key]) for key in ("seconds", "cached"))
        print(f"| {name} | {seconds:.1f} | {share:.1%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
