"""What sampling ahead is worth: GRPO with a batch sampled while the last one trains, beside one after the other.

    python -m agents sft --preset tiny
    python -m benchmarks.asynchrony
    python -m benchmarks.asynchrony --tool-median 0.2 --staleness 0 1 2

The same cold start, problems and seeds for each; programs run in the sandbox, and then wait as long as is drawn for them, as
a slow tool would. Time is measured with a learning rate of 0, so that all write the same and call the same; what is learned,
in runs of their own, each once. The figures go to `benchmarks/results/asynchrony.json`.
"""

import argparse
import asyncio
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

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
from retool_env.rollout.transformers.policy import TransformersPolicy, load_policy
from retool_env.sandbox import make_sandbox

CHECKPOINT = Path("runs/sft/checkpoint")
PROMPTS, ROLLOUTS = 16, 8


class SlowTool:
    """A sandbox whose programs take as much longer as is drawn for them: the same for the same program.

    Args:
        sandbox: Where they run.
        times: What is drawn from.
    """

    def __init__(self, sandbox: Sandbox, times: ToolTimes) -> None:
        self.sandbox = sandbox
        self.times = times

    async def run_async(self, code: str, limits: Limits = DEFAULT_LIMITS, **more: Any) -> Execution:
        """Run it, and wait."""
        execution = await self.sandbox.run_async(code, limits, **more)
        await asyncio.sleep(self.times.draw(np.random.default_rng(zlib.crc32(code.encode()))))
        return execution


def train(checkpoint: Path, steps: int, staleness: int, tool: Any, learns: bool) -> dict[str, Any]:
    """Train so many steps; returns what they took and gave.

    Args:
        checkpoint: Where to begin.
        steps: Of the optimizer.
        staleness: Batches sampled ahead.
        tool: Where programs run.
        learns: Whether with the preset's learning rate, or 0.

    Returns:
        `step_s`, seconds of a step, median, the first one aside; `waited_s`, of it the trainer's wait for rollouts;
        `tokens` and `calls` of an episode; `lag`, optimizer steps between sampling and training; `effective_tokens`, see `EngineGRPOTrainer`; `accuracy`, of
        the rollouts, over the first and the last five steps; `seconds` in all.
    """
    preset = read_preset("tiny")
    rules, problems = find_task(preset["env"])
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        trainer = EngineGRPOTrainer(
            model=model,
            reward_funcs=episode_reward,
            args=GRPOConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=PROMPTS * ROLLOUTS,
                num_generations=ROLLOUTS,
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
            train_dataset=problem_dataset(problems, steps * PROMPTS, seed=0),
            processing_class=tokenizer,
            rollout_func=lambda *_: {},
        )
        trainer.remove_callback(PrinterCallback)
        if staleness:
            policy = load_policy(str(checkpoint), "float32", str(trainer.accelerator.device))
        else:
            policy = TransformersPolicy(trainer.model, tokenizer)
        engine = RolloutEngine(policy, rules, tool)
        ends = [time.monotonic()]
        trainer.rollout_func = EngineRollouts(
            engine, problems, staleness=staleness, on_rollouts=lambda *_: ends.append(_now(ends))
        )
        try:
            trainer.train()
        finally:
            trainer.rollout_func.close()
        ends.append(time.monotonic())
    logs = [log for log in trainer.state.log_history if "reward" in log]

    def mean(name: str, part: slice) -> float:
        return round(float(np.mean([log[name] for log in logs[part]])), 4)

    everything = slice(1, None)  # the first step has nothing ahead, and all that is done once
    return {
        "seconds": round(ends[-1] - ends[0], 2),
        "step_s": round(float(np.median(np.diff(ends)[1:])), 3),
        "waited_s": mean("rollout/waited", everything),
        "rollouts_s": mean("rollout/seconds", everything),
        "tokens": mean("completions/mean_length", everything),
        "calls": mean("env/calls_per_episode", everything),
        "lag": mean("rollout/weight_lag", everything),
        "lag_max": max(log["rollout/weight_lag_max"] for log in logs),
        "difference": mean("offpolicy/difference", everything),
        "effective_tokens": mean("offpolicy/effective_tokens", everything),
        "clipped": mean("clip_ratio/region_mean", everything),
        "accuracy": {
            "first 5": mean("env/accuracy", slice(5)),
            "last 5": mean("env/accuracy", slice(-5, None)),
        },
    }


def _now(ends: list[float]) -> float:
    print(f"step {len(ends)}, {time.monotonic() - ends[0]:.0f} s", file=sys.stderr, flush=True)
    return time.monotonic()


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help=f"({CHECKPOINT})")
    parser.add_argument("--steps", type=int, default=30, help="of learning (30)")
    parser.add_argument("--timed", type=int, default=12, help="steps that are timed (12)")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--tool-median", type=float, default=0.5, help="seconds (0.5)")
    parser.add_argument("--tool-p99", type=float, default=3.0, help="seconds (3)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "asynchrony.json", help="where the figures go"
    )
    options = parser.parse_args(arguments)
    if not (options.checkpoint / "config.json").is_file():
        parser.error(
            f"{options.checkpoint} holds no model; `python -m agents sft --preset tiny` makes one"
        )
    if min(options.steps, options.timed) < 3:
        parser.error("--steps and --timed must be at least 3")
    try:
        times = ToolTimes(options.tool_median, options.tool_p99, limit=10.0)
    except ValueError as error:
        parser.error(str(error))
    found: dict[str, dict[str, Any]] = {}
    with make_sandbox() as sandbox:
        tool = SlowTool(sandbox, times)
        for staleness in options.staleness:
            timed = train(options.checkpoint, options.timed, staleness, tool, learns=False)
            learned = train(options.checkpoint, options.steps, staleness, tool, learns=True)
            found[str(staleness)] = {"timed": timed, "learned": learned}
    settings = {
        "steps": options.steps,
        "timed": options.timed,
        "prompts": PROMPTS,
        "rollouts": ROLLOUTS,
        "tool_median_s": options.tool_median,
        "tool_p99_s": options.tool_p99,
    }
    write_results(options.out, {"settings": settings, "staleness": found})
    print("| batches ahead | seconds a step | waited | calls | lag | effective tokens | accuracy |")
    print("|---|---|---|---|---|---|---|")
    for staleness, each in found.items():
        timed, learned = each["timed"], each["learned"]
        first, last = learned["accuracy"].values()
        print(
            f"| {staleness} | {timed['step_s']:.2f} | {timed['waited_s']:.2f} | {timed['calls']:.2f} | "
            f"{learned['lag']:.2f} | {learned['effective_tokens']:.1%} | {first:.1%} to {last:.1%} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
