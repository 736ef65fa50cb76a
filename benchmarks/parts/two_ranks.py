"""Trains GRPO on two sharded processes: one episode a pass, and passes by a budget of tokens.

`benchmarks.packing --train` starts it with `accelerate launch`. A quarter of the episodes is eight
times as long as the others. Both ways have the same largest pass, the longest episode. They take
turns in one process group, so that other load on the machine strikes both.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig

from agents.base.sharding import accelerator_config, leave_process_group, processes
from agents.models.tiny import make_model
from retool_env.integrations.trl import EngineGRPOTrainer

EACH, GROUP, PROMPT, SHORT, LONG = 16, 4, 16, 32, 256
"""Episodes of a process, rollouts of a problem, and tokens of a prompt and of both responses."""
SIZE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
STEPS = 3
"""Optimizer steps of one turn; the first is not timed."""
KINDS = {"one episode a pass": 0, "tokens": PROMPT + LONG}
"""The two ways, with the setting `tokens`."""


def episodes(rank: int) -> dict[str, list[Any]]:
    """The rows of this process, of random tokens.

    Args:
        rank: The process's number, which also seeds the order of short and long episodes.
    """
    chance = np.random.default_rng(rank)
    sizes = chance.permutation([LONG] * (EACH // 4) + [SHORT] * (EACH - EACH // 4))
    return {
        "prompt_ids": [[3 + number // GROUP] * PROMPT for number in range(EACH)],
        "completion_ids": [chance.integers(3, 200, size).tolist() for size in sizes],
        "env_mask": [[1] * size for size in sizes],
        "logprobs": [[-5.5] * size for size in sizes],
        "reward": [float(number % 2) for number in range(EACH)],
    }


class Times(TrainerCallback):
    """Records when each optimizer step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the time of a step's end.

        Args:
            args: Not read.
            state: Not read.
            control: Not read.
            **_: Not read.
        """
        self.ends.append(time.perf_counter())


def turn(tokens: int, folder: str) -> dict[str, Any]:
    """Train for a few steps; returns the seconds of each timed step, and the first step's loss.

    Args:
        tokens: The budget of a pass; 0: each pass has one episode.
        folder: The trainer's folder.
    """
    model, tokenizer = make_model(0, **SIZE, num_attention_heads=4, num_key_value_heads=4)
    rank, times = processes().process_index, Times()
    trainer = EngineGRPOTrainer(
        model=model,
        reward_funcs=lambda reward, **_: reward,
        args=GRPOConfig(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=EACH if tokens else 1,
            gradient_accumulation_steps=1 if tokens else EACH,
            num_generations=GROUP,
            max_completion_length=LONG,
            learning_rate=1e-4,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            accelerator_config=accelerator_config(),
        ),
        train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(64)]}),
        processing_class=tokenizer,
        rollout_func=lambda prompts, trainer: episodes(rank),
        callbacks=[times],
        tokens=tokens,
    )
    trainer.train()
    first = next(log for log in trainer.state.log_history if "loss" in log)
    seconds = np.diff(times.ends).tolist()
    return {"seconds": seconds, "loss": first["loss"], "grad_norm": first["grad_norm"]}


def main(rounds: int, out: Path) -> None:
    """Let both ways take turns, and write the figures of the first process.

    Args:
        rounds: The number of turns of each way.
        out: The JSON file.
    """
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for kind in list(KINDS)[:: 1 if number % 2 else -1]:
                found[kind].append(turn(KINDS[kind], folder))
    if processes().process_index == 0:
        out.write_text(json.dumps(found))
    leave_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
