"""Measures asynchronous GRPO: sampling a batch while the last batch trains, against taking turns.

    python -m agents sft --preset tiny
    python -m benchmarks.asynchrony
    python -m benchmarks.asynchrony --tool-median 0.2 --staleness 0 1 2

All runs have the same cold start, problems and seeds. Programs run in the sandbox, and then wait
for a drawn time, like a slow tool. Times are measured with learning rate 0, so that all runs sample
the same texts and calls. Accuracy is measured in separate runs, one per staleness. The figures go
to `benchmarks/results/asynchrony.json`.

With `--servers`, vLLM servers sample, and each staleness is timed with each treatment of turns that
are under way when new weights come (`--at-update`). The servers serve the model of `--checkpoint`,
and take new weights (docs/rollouts/weights.md). `--load-seconds` adds a pause to each update, as if
the weights were large:

    python -m benchmarks.asynchrony --servers http://127.0.0.1:8000,http://127.0.0.1:8001 \
        --weights-folder /tmp/weights --staleness 0 1 2 4 --load-seconds 0.06

These figures go to `benchmarks/results/asynchrony_served.json`.

With `--resample 3`, groups that teach nothing are replaced, and each staleness is timed with
batches that wait for late replacements, and with batches that carry them to a later batch
(`retool_env.training.dynamic_sampling`). These figures go to
`benchmarks/results/asynchrony_resample.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, override

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import GRPOConfig

from agents.base.presets import read_preset
from agents.base.settings import find_task
from benchmarks.parts.chains import ToolTimes
from benchmarks.parts.results import RESULTS, write_results
from retool_env.execution import DEFAULT_LIMITS, Execution, Limits, Sandbox
from retool_env.integrations.trl import (
    EngineGRPOTrainer,
    EngineRollouts,
    episode_reward,
    problem_dataset,
)
from retool_env.rollout import RolloutEngine
from retool_env.rollout.policy import AtUpdate, Policy
from retool_env.rollout.transformers.policy import TransformersPolicy, load_policy
from retool_env.rollout.vllm.server import VLLMServerPolicy
from retool_env.sandbox import make_sandbox
from retool_env.servers.address import split_urls

CHECKPOINT = Path("runs/sft/checkpoint")
PROMPTS, ROLLOUTS = 16, 8
PAIRS = 64
"""Prompts with two rollouts each, where groups are replaced: about half of them teach nothing."""


class SlowTool:
    """A sandbox with an additional wait per program. Equal programs wait for equal times.

    Args:
        sandbox: The sandbox that runs the programs.
        times: The distribution of the waits.
    """

    def __init__(self, sandbox: Sandbox, times: ToolTimes) -> None:
        self.sandbox = sandbox
        self.times = times

    async def run_async(self, code: str, limits: Limits = DEFAULT_LIMITS, **more: Any) -> Execution:
        """Run a program, and wait.

        Args:
            code: The program.
            limits: The program's limits.
            **more: More arguments of the sandbox.
        """
        execution = await self.sandbox.run_async(code, limits, **more)
        await asyncio.sleep(self.times.draw(np.random.default_rng(zlib.crc32(code.encode()))))
        return execution


@dataclass(frozen=True)
class Served:
    """The servers that sample."""

    urls: str
    """The addresses of the servers, divided by commas."""
    folder: Path
    """The folder through which new weights go."""
    load_seconds: float
    """The seconds that each update takes longer."""

    def policy(self, tokenizer: Any, at_update: AtUpdate) -> TimedPolicy:
        """Make the policy on the servers.

        Args:
            tokenizer: The tokenizer of the model.
            at_update: The treatment of turns under way when new weights come.
        """
        return TimedPolicy(
            split_urls(self.urls, "a server", "http://host:8000"),
            tokenizer,
            self.load_seconds,
            weights_folder=self.folder,
            weights_dtype="float32",
            at_update=at_update,
        )


class TimedPolicy(VLLMServerPolicy):
    """A policy on servers that measures its updates.

    Args:
        urls: The addresses of the servers.
        tokenizer: The tokenizer of the model.
        load_seconds: The seconds that each update takes longer, while the servers are paused.
        **more: The further arguments of `VLLMServerPolicy`.
    """

    def __init__(
        self, urls: Sequence[str], tokenizer: Any, load_seconds: float, **more: Any
    ) -> None:
        self.updates: list[float] = []
        """The seconds of each update, until the servers went on."""
        self.first_tokens: list[float] = []
        """The seconds from the begin of each update to the first token under the new weights."""
        super().__init__(urls, tokenizer, **more)
        control = self._weights._control
        go_on = control.go_on

        async def later(server: Any, name: str) -> None:
            await asyncio.sleep(load_seconds)
            await go_on(server, name)

        control.go_on = later  # type: ignore[method-assign]  # a stub of large weights

    @override
    async def update_weights(self, version: int, weights: Any = None) -> None:
        began = time.monotonic()
        await super().update_weights(version, weights)
        self.updates.append(time.monotonic() - began)
        await self.act([self.tokenizer.eos_token_id or 0], (), 1, 0)
        self.first_tokens.append(time.monotonic() - began)


def train(
    checkpoint: Path,
    steps: int,
    staleness: int,
    tool: Any,
    learns: bool,
    served: Served | None = None,
    at_update: AtUpdate = "cut",
    max_tokens: int | None = None,
    resample: int = 0,
    carry: bool = True,
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Train with GRPO, and return times and figures.

    Args:
        checkpoint: The initial model.
        steps: The number of optimizer steps.
        staleness: The number of batches that are sampled ahead.
        tool: The sandbox of the programs.
        learns: Whether to use the preset's learning rate; otherwise the rate is 0.
        served: The servers that sample. `None`: a model in this process samples.
        at_update: The treatment of turns under way when new weights come, on servers.
        max_tokens: The most tokens of an episode. `None`: as in the preset.
        resample: The most times that a group which teaches nothing is replaced.
        carry: Whether batches carry late replacements to later batches.
        size: The prompts of a step, and the rollouts of a prompt. `None`: 16 and 8.

    Returns:
        Means over all steps but the first, unless stated otherwise:

        - `seconds`: the time of all steps. `step_s`: the median time of a step. `waited_s`: the
          part of a step in which the trainer waits for rollouts. `rollouts_s`: the time of a batch
          of rollouts.
        - `tokens`, `calls`: per episode.
        - `lag`, `lag_max`: optimizer steps between sampling and training.
        - `difference`, `effective_tokens`, `clipped`: see `EngineGRPOTrainer`.
        - `resampled`, `carried`: groups a step.
        - `accuracy`: of the rollouts, over the first five and the last five steps.
        - With servers: `update_s`, the median time of an update; `first_token_s`, the median time
          from the begin of an update to the first token under the new weights; `cut_turns`, per
          step; `reread_tokens`, the tokens per step that were computed again after cuts.
    """
    prompts, rollouts = size or (PROMPTS, ROLLOUTS)
    preset = read_preset("tiny")
    more = {} if max_tokens is None else {"max_tokens": max_tokens}
    rules, problems = find_task({**preset["env"], **more})
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        trainer = EngineGRPOTrainer(
            model=model,
            reward_funcs=episode_reward,
            args=GRPOConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=prompts * rollouts,
                num_generations=rollouts,
                max_completion_length=rules.max_tokens,
                learning_rate=preset["grpo"]["learning_rate"] * learns,
                lr_scheduler_type="constant",
                loss_type="dapo",
                epsilon_high=0.28,
                logging_steps=1,
                save_strategy="no",
                shuffle_dataset=False,
                bf16=False,
                report_to="none",
                disable_tqdm=True,
                gradient_checkpointing=False,
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            train_dataset=problem_dataset(problems, steps * prompts, seed=0),
            processing_class=tokenizer,
            rollout_func=lambda *_: {},
        )
        trainer.remove_callback(PrinterCallback)
        policy: Policy
        if served is not None:
            policy = served.policy(tokenizer, at_update)
        elif staleness:
            policy = load_policy(str(checkpoint), "float32", str(trainer.accelerator.device))
        else:
            policy = TransformersPolicy(trainer.model, tokenizer)
        engine = RolloutEngine(policy, rules, tool)
        ends = [time.monotonic()]
        trainer.rollout_func = EngineRollouts(
            engine,
            problems,
            staleness=staleness,
            resample=resample,
            on_rollouts=lambda *_: ends.append(_now(ends)),
        )
        if (dynamic := trainer.rollout_func._dynamic) is not None and not carry:
            dynamic._staleness = 0  # a replacement is due in its own batch
        try:
            trainer.train()
        finally:
            trainer.rollout_func.close()
            policy.close()
        ends.append(time.monotonic())
    logs = [log for log in trainer.state.log_history if "reward" in log]

    def mean(name: str, part: slice) -> float:
        return round(float(np.mean([log[name] for log in logs[part]])), 4)

    of_servers = {}
    if isinstance(policy, TimedPolicy):
        of_servers = {
            "update_s": round(float(np.median(policy.updates[1:])), 4),
            "first_token_s": round(float(np.median(policy.first_tokens[1:])), 4),
            "cut_turns": mean("rollout/cut_turns", slice(1, None)),
            "reread_tokens": round(policy.reread_tokens / (len(ends) - 1), 1),
        }
    later = slice(1, None)  # the first step has no batch ahead, and includes one-time work
    return {
        "seconds": round(ends[-1] - ends[0], 2),
        "step_s": round(float(np.median(np.diff(ends)[1:])), 3),
        "waited_s": mean("rollout/waited", later),
        "rollouts_s": mean("rollout/seconds", later),
        "tokens": mean("completions/mean_length", later),
        "calls": mean("env/calls_per_episode", later),
        "lag": mean("rollout/weight_lag", later),
        "lag_max": max(log["rollout/weight_lag_max"] for log in logs),
        "difference": mean("offpolicy/difference", later),
        "effective_tokens": mean("offpolicy/effective_tokens", later),
        "clipped": mean("clip_ratio/region_mean", later),
        "resampled": mean("rollout/resampled", later),
        "carried": mean("rollout/carried", later),
        "accuracy": {
            "first 5": mean("env/accuracy", slice(5)),
            "last 5": mean("env/accuracy", slice(-5, None)),
        },
        **of_servers,
    }


def _now(ends: list[float]) -> float:
    print(f"step {len(ends)}, {time.monotonic() - ends[0]:.0f} s", file=sys.stderr, flush=True)
    return time.monotonic()


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help=f"model ({CHECKPOINT})")
    parser.add_argument("--steps", type=int, default=30, help="steps that learn (30)")
    parser.add_argument("--timed", type=int, default=12, help="timed steps (12)")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--tool-median", type=float, default=0.5, help="median wait in s (0.5)")
    parser.add_argument("--tool-p99", type=float, default=3.0, help="99th percentile in s (3)")
    parser.add_argument("--servers", help="the URLs of vLLM servers, divided by commas")
    parser.add_argument("--weights-folder", type=Path, help="the folder of new weights for servers")
    ways = get_args(AtUpdate)
    parser.add_argument("--at-update", nargs="+", choices=ways, default=["wait", "cut"])
    parser.add_argument("--load-seconds", type=float, default=0.0, help="seconds more per update")
    parser.add_argument("--max-tokens", type=int, help="tokens of an episode, on servers (160)")
    parser.add_argument("--resample", type=int, default=0, help="replacements of a dull group (0)")
    parser.add_argument("--out", type=Path, help="the JSON file of the figures")
    options = parser.parse_args(arguments)
    if (options.servers is None) != (options.weights_folder is None):
        parser.error("--servers and --weights-folder belong together")
    if not (options.checkpoint / "config.json").is_file():
        parser.error(
            f"{options.checkpoint} holds no model; make one: python -m agents sft --preset tiny"
        )
    if min(options.steps, options.timed) < 3:
        parser.error("--steps and --timed must be at least 3")
    try:
        times = ToolTimes(options.tool_median, options.tool_p99, limit=10.0)
    except ValueError as error:
        parser.error(str(error))
    if options.servers is not None:
        return time_servers(options, times)
    if options.resample:
        return time_resampling(options, times)
    figures: dict[str, dict[str, Any]] = {}
    with make_sandbox() as sandbox:
        tool = SlowTool(sandbox, times)
        for staleness in options.staleness:
            figures[str(staleness)] = {
                "timed": train(options.checkpoint, options.timed, staleness, tool, learns=False),
                "learned": train(options.checkpoint, options.steps, staleness, tool, learns=True),
            }
    settings = {"steps": options.steps, **_settings(options)}
    out = options.out or RESULTS / "asynchrony.json"
    write_results(out, {"settings": settings, "staleness": figures})
    print("| batches ahead | seconds a step | waited | calls | lag | effective tokens | accuracy |")
    print("|---|---|---|---|---|---|---|")
    for staleness, row in figures.items():
        timed, learned = row["timed"], row["learned"]
        first, last = learned["accuracy"].values()
        print(
            f"| {staleness} | {timed['step_s']:.2f} | {timed['waited_s']:.2f} | "
            f"{timed['calls']:.2f} | {learned['lag']:.2f} | {learned['effective_tokens']:.1%} | "
            f"{first:.1%} to {last:.1%} |"
        )
    return 0


def time_servers(options: argparse.Namespace, times: ToolTimes) -> int:
    """Time the runs on servers, side by side, and return the exit status.

    Args:
        options: The options of the command line.
        times: The distribution of the tool's waits.
    """
    served = Served(options.servers, options.weights_folder, options.load_seconds)
    figures: dict[str, dict[str, Any]] = {}
    print(
        "| batches ahead | turns | seconds a step | update | first token | cut turns | read again |"
    )
    print("|---|---|---|---|---|---|---|")
    with make_sandbox() as sandbox:
        tool = SlowTool(sandbox, times)
        for staleness in options.staleness:
            rows = figures.setdefault(str(staleness), {})
            for way in options.at_update:
                rows[way] = row = train(
                    options.checkpoint,
                    options.timed,
                    staleness,
                    tool,
                    learns=False,
                    served=served,
                    at_update=way,
                    max_tokens=options.max_tokens,
                )
                print(
                    f"| {staleness} | {way} | {row['step_s']:.2f} | {row['update_s']:.3f} | "
                    f"{row['first_token_s']:.3f} | {row['cut_turns']:.1f} | "
                    f"{row['reread_tokens']:.0f} |",
                    flush=True,
                )
    own = {"load_seconds": options.load_seconds, "max_tokens": options.max_tokens}
    settings = {**own, **_settings(options)}
    out = options.out or RESULTS / "asynchrony_served.json"
    write_results(out, {"settings": settings, "staleness": figures})
    return 0


def time_resampling(options: argparse.Namespace, times: ToolTimes) -> int:
    """Time dynamic sampling with and without late groups that are carried; the exit status.

    Args:
        options: The options of the command line.
        times: The distribution of the tool's waits.
    """
    figures: dict[str, dict[str, Any]] = {}
    print("| batches ahead | late groups | seconds a step | waited | lag | resampled | carried |")
    print("|---|---|---|---|---|---|---|")
    with make_sandbox() as sandbox:
        tool = SlowTool(sandbox, times)
        for staleness in options.staleness:
            rows = figures.setdefault(str(staleness), {})
            for way in ("waited for", "carried"):
                rows[way] = row = train(
                    options.checkpoint,
                    options.timed,
                    staleness,
                    tool,
                    learns=False,
                    resample=options.resample,
                    carry=way == "carried",
                    size=(PAIRS, 2),
                )
                print(
                    f"| {staleness} | {way} | {row['step_s']:.2f} | {row['waited_s']:.2f} | "
                    f"{row['lag']:.2f} | {row['resampled']:.1f} | {row['carried']:.1f} |",
                    flush=True,
                )
    out = options.out or RESULTS / "asynchrony_resample.json"
    own = {"resample": options.resample, "prompts": PAIRS, "rollouts": 2}
    settings = {**_settings(options), **own}
    write_results(out, {"settings": settings, "staleness": figures})
    return 0


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "timed": options.timed,
        "prompts": PROMPTS,
        "rollouts": ROLLOUTS,
        "tool_median_s": options.tool_median,
        "tool_p99_s": options.tool_p99,
    }


if __name__ == "__main__":
    sys.exit(main())
