"""What a training step of GRPO costs: TRL's `GRPOTrainer` and ours, on the same finished episodes; side by side in one run.

    python -m agents sft --preset tiny
    python -m benchmarks.train_step
    python -m benchmarks.train_step --transcripts runs/grpo/transcripts.jsonl --model runs/grpo/checkpoint
    python -m benchmarks.train_step --model runs/models/smollm2 --drawn --episodes 16 --group 4

A step is all that TRL does with a generation batch but its rollouts: padding, log-probs, loss, gradients, optimizer. There are

- **sets** of episodes: of equal length; and recorded ones, of a run or sampled on the spot, or with `--drawn` ones of the
  lengths that `benchmarks.rollout` draws, a long-tailed distribution;
- **settings**: one optimizer step a generation batch; four, for which TRL computes the old log-probs beforehand; four with a
  KL to a reference model, whose log-probs both compute;
- **trainers**: TRL's; ours on padded rows, which only has the engine's log-probs for old ones; ours on packed rows; and with
  prompts that episodes share, the default.

Learning rates are 0, so that every step does the same work. Before anything is timed, loss and gradient of all are
compared, on off-policy log-probs, so that ratios are clipped: if they differ, the exit status is 1. Figures go to
`benchmarks/results/train_step.json`, with `--model` to `train_step_<its name>.json`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import adjusted_mfu, compute_flops_per_token, compute_mfu, get_peak_flops

from benchmarks.parts.batches import RESULT_TOKENS, Batch, equal, make, read, record
from benchmarks.parts.chains import ToolTimes, draw_chain
from benchmarks.parts.machine import reset_peak, resident_mb
from benchmarks.parts.results import RESULTS, write_results
from retool_env.integrations.trl import EngineGRPOTrainer, episode_reward, training_rows
from retool_env.rollout.simulated import Habits

CHECKPOINT = "runs/sft/checkpoint"

TRL, PADDED, PACKED, OURS = "TRL", "ours, padded", "ours, packed", "ours"
KINDS: dict[str, dict[str, Any]] = {
    PADDED: {"packed": False},
    PACKED: {"shared_prompts": False},
    OURS: {},
}
SOURCES = {
    "the engine's log-probs": (PADDED, TRL),
    "packing": (PACKED, PADDED),
    "shared prompts": (OURS, PACKED),
}
"""Of the gain: which trainer has each, and which all of it but that."""
PASSES = 4
"""Forward and backward passes of a generation batch: micro batches."""
SETTINGS: dict[str, tuple[int, float]] = {
    "one update": (1, 0.0),
    "four updates": (PASSES, 0.0),
    "four updates, KL": (PASSES, 0.04),
}
"""Optimizer steps of a generation batch, and the KL's coefficient."""
NOISE = 0.2
"""Standard deviation of what is added to log-probs for the comparison of losses."""
TOLERANCE, TOLERANCE_BF16 = 1e-4, 3e-2
"""Of losses, which are means of numbers around 1, and of the gradients' difference over TRL's own."""


class Steps:
    """A trainer, up to a loop around its steps.

    Args:
        kind: Which.
        model: A folder.
        batch: The episodes that it is given in place of rollouts.
        updates: Optimizer steps of a generation batch.
        kl: Coefficient.
        bf16: Whether activations are in bfloat16; weights are float32, as TRL loads them.
        folder: For what trainers write.
    """

    def __init__(
        self, kind: str, model: str, batch: Batch, updates: int, kl: float, bf16: bool, folder: str
    ) -> None:
        rows = len(batch.transcripts)
        self._rows = [{"prompt": t.problem.id} for t in batch.transcripts]
        self._passes = PASSES // updates
        self._updates = updates
        config = GRPOConfig(
            output_dir=folder,
            max_steps=1,
            per_device_train_batch_size=rows // PASSES,
            gradient_accumulation_steps=self._passes,
            steps_per_generation=PASSES,
            num_generations=batch.group,
            max_completion_length=max(batch.lengths),
            learning_rate=0.0,
            loss_type="dapo",
            epsilon_high=0.28,
            beta=kl,
            bf16=bf16,
            use_cpu=not torch.accelerator.is_available(),
            gradient_checkpointing=False,
            disable_dropout=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        )
        make: Any = GRPOTrainer if kind == TRL else EngineGRPOTrainer
        self.trainer = make(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            reward_funcs=episode_reward,
            args=config,
            train_dataset=Dataset.from_list(self._rows),
            processing_class=AutoTokenizer.from_pretrained(model),
            rollout_func=lambda prompts, trainer: training_rows(
                batch.transcripts, trainer.eos_token_ids
            ),
            **KINDS.get(kind, {}),
        )
        self.trainer.current_gradient_accumulation_steps = self._passes
        self.trainer.model.train()
        self.trainer.create_optimizer()

    def batch(self) -> dict[str, Any]:
        """What it makes of the episodes before it trains."""
        return self.trainer._generate_and_score_completions([dict(row) for row in self._rows])

    def loss_and_gradient(self, batch: dict[str, Any]) -> tuple[float, torch.Tensor]:
        """Of a whole generation batch, as one step; all of the gradient in one row, in float64 on the CPU."""
        trainer, rows = self.trainer, len(self._rows)
        trainer.model.zero_grad()
        total = 0.0
        for start in range(0, rows, rows // PASSES):
            part = {
                name: each[start : start + rows // PASSES] if each.dim() else each
                for name, each in batch.items()
            }
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, part)
            loss.backward()
            total += loss.item()
        gradient = [p.grad.flatten().double().cpu() for p in trainer.model.parameters()]
        trainer.model.zero_grad()
        return total, torch.cat(gradient)

    def step(self) -> float:
        """Do all that is done with a generation batch; returns the seconds."""
        trainer = self.trainer
        _synchronise()
        began = time.perf_counter()
        for _ in range(self._updates):
            for _ in range(self._passes):
                trainer.training_step(trainer.model, [dict(row) for row in self._rows], None)
            trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
        _synchronise()
        return time.perf_counter() - began

    def peak_mb(self) -> float:
        """Of a step, above what stays between steps: weights and the optimizer's state."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            self.step()
            return round((torch.cuda.max_memory_allocated() - held) / 2**20, 1)
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps of earlier steps
        before = resident_mb()
        reset_peak()
        self.step()
        return round(resident_mb(peak=True) - before, 1)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(each: dict[str, Steps], tolerance: float) -> dict[str, Any]:
    """Loss and gradient of all trainers on one generation batch, with the same off-policy log-probs for old ones.

    Advantages are drawn, so that every episode has one, whatever was rewarded.

    Args:
        each: The trainers by name, with the same weights.
        tolerance: Of losses, and of the gradients' relative difference.

    Returns:
        `loss` by name, `gradient_difference` by name, relative; and whether all are the `same`.
    """
    batches = {name: steps.batch() for name, steps in each.items()}
    old = batches[OURS]["old_per_token_logps"]
    generator = torch.Generator().manual_seed(0)
    noise = NOISE * torch.randn(old.shape, generator=generator).to(old.device)
    advantages = torch.randn(len(old), generator=generator).to(old.device)
    losses: dict[str, float] = {}
    gradients: dict[str, torch.Tensor] = {}
    for name, steps in each.items():
        shared = {"old_per_token_logps": old + noise, "advantages": advantages}
        losses[name], gradients[name] = steps.loss_and_gradient({**batches[name], **shared})
    reference = gradients[TRL]
    apart = {
        name: ((gradient - reference).norm() / reference.norm()).item()
        for name, gradient in gradients.items()
    }
    same = all(abs(loss - losses[TRL]) <= tolerance for loss in losses.values())
    return {
        "loss": losses,
        "gradient_norm": reference.norm().item(),
        "gradient_difference": apart,
        "same": same and max(apart.values()) <= tolerance,
    }


def measure(
    model: str, batch: Batch, setting: str, rounds: int, bf16: bool, peak: float | None
) -> dict[str, Any]:
    """One set of episodes in one setting: the losses compared, then each trainer timed in turn, and its memory."""
    updates, kl = SETTINGS[setting]
    tokens = sum(batch.lengths)
    with tempfile.TemporaryDirectory() as folder:
        each = {
            kind: Steps(kind, model, batch, updates, kl, bf16, folder) for kind in (TRL, *KINDS)
        }
        compared = compare(each, TOLERANCE_BF16 if bf16 else TOLERANCE)
        for steps in each.values():
            steps.step()  # makes the optimizer's state
        memory = {kind: steps.peak_mb() for kind, steps in each.items()}
        seconds: dict[str, list[float]] = {kind: [] for kind in each}
        order = list(each)
        for number in range(rounds):
            for kind in order if number % 2 == 0 else order[::-1]:
                seconds[kind].append(each[kind].step())
        config = each[TRL].trainer.model.config.get_text_config()
    found = {}
    for kind, times in seconds.items():
        ratios = [a / b for a, b in zip(seconds[TRL], times, strict=True)]
        speed = tokens / statistics.median(times)
        found[kind] = {
            "seconds": [round(t, 4) for t in times],
            "tokens_per_s": round(speed, 1),
            "over_trl": _spread(ratios),
            "peak_mb": memory[kind],
            "mfu_percent": utilisation(config, batch.lengths, speed, bf16, peak),
        }
    alone = {
        source: _spread([a / b for a, b in zip(seconds[without], seconds[having], strict=True)])
        for source, (having, without) in SOURCES.items()
    }
    return {
        "episodes": len(batch.transcripts),
        "tokens": tokens,
        "longest": max(batch.lengths),
        "padding": round(batch.padding, 3),
        "sources": alone,
        "trainers": found,
        **compared,
    }


def _spread(ratios: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(ratios), 3),
        "min": round(min(ratios), 3),
        "max": round(max(ratios), 3),
    }


def utilisation(
    config: Any, lengths: list[int], tokens_per_s: float, bf16: bool, peak: float | None
) -> float | None:
    """Model-FLOPs utilisation in percent, as TRL counts it for causal attention.

    Args:
        config: The model's.
        lengths: Of the episodes.
        tokens_per_s: Trained on.
        bf16: Whether matrices are multiplied in bfloat16.
        peak: FLOPs a second of the device; `None`: those of TRL's table.

    Returns:
        It, or `None` where no peak is known.
    """
    if peak is None and torch.cuda.is_available():
        peak = get_peak_flops(torch.cuda.get_device_name(), "bfloat16" if bf16 else "float32")
    if peak is None:
        return None
    context = round(sum(n * n for n in lengths) / sum(lengths))  # a token's, on average
    flops = compute_flops_per_token(config, context)
    return round(adjusted_mfu(compute_mfu(flops, tokens_per_s, 1, peak), config, context), 2)


def table(report: dict[str, Any]) -> str:
    """The figures as text."""
    settings = report["settings"]
    lines = [
        f"{settings['model']}, {report['activations']}, {settings['rounds']} rounds in turn: tokens/s without padding, "
        "median; over TRL's, median and range; MB above weights and optimizer's state, at most",
    ]
    for name, found in report["sets"].items():
        first = next(iter(found.values()))
        lines += [
            "",
            f"{name}: {first['episodes']} episodes, {first['tokens']} tokens, the longest {first['longest']}; of the padded "
            f"batch {first['padding']:.0%} is padding",
        ]
        for setting, each in found.items():
            lines.append(
                f"  {setting}: loss {each['loss'][TRL]:.6f}, gradients apart by at most "
                f"{max(each['gradient_difference'].values()):.1e}: {'the same' if each['same'] else 'NOT THE SAME'}"
            )
            for kind, row in each["trainers"].items():
                ratio = row["over_trl"]
                used = row["mfu_percent"]
                lines.append(
                    f"    {kind:<14}{row['tokens_per_s']:>10.0f}/s {ratio['median']:>7.2f} "
                    f"({ratio['min']:.2f} to {ratio['max']:.2f}) {row['peak_mb']:>9.0f} MB"
                    + ("" if used is None else f" {used:>6.1f} % MFU")
                )
            alone = [f"{source} {ratio['median']:.2f}" for source, ratio in each["sources"].items()]
            lines.append(f"    each alone: {', '.join(alone)}")
    return "\n".join(lines)


def make_sets(options: argparse.Namespace) -> dict[str, Batch]:
    """The sets of episodes that are asked for."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    episodes, group = options.episodes, options.group
    if options.transcripts:
        name, batch = "recorded", read(options.transcripts)
        episodes, group = len(batch.transcripts), batch.group
    elif not options.drawn:
        name, batch = "recorded", record(options.model, episodes // group, group, options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model = model.to(device)
    special = tokenizer.all_special_ids
    if options.drawn:
        chance = np.random.default_rng(options.seed)
        habits, times = Habits(options.turn_tokens), ToolTimes(0.05, 3.0, 30.0)
        chains = [
            draw_chain(chance, habits, times, 8, options.max_tokens, RESULT_TOKENS)
            for _ in range(episodes)
        ]
        name = "drawn"
        batch = make(chains, options.prompt_tokens, group, model, special, options.seed)
    prompt = round(np.mean([len(t.prompt_ids) for t in batch.transcripts]))
    response = round(np.mean([len(t.completion_ids) for t in batch.transcripts]))
    alike = make(equal(response, episodes), prompt, group, model, special, options.seed)
    return {"equal lengths": alike, name: batch}


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status: 1 if losses or gradients differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=CHECKPOINT, help=f"a checkpoint ({CHECKPOINT})")
    parser.add_argument("--transcripts", type=Path, help="of a run; the last batch is taken")
    parser.add_argument("--drawn", action="store_true", help="lengths are drawn, not recorded")
    parser.add_argument("--episodes", type=int, default=128, help="of a batch (128)")
    parser.add_argument("--group", type=int, default=8, help="rollouts a problem (8)")
    parser.add_argument("--turn-tokens", type=float, default=64.0, help="drawn: mean (64)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="drawn: each (64)")
    parser.add_argument("--max-tokens", type=int, default=1024, help="drawn: of a response (1024)")
    parser.add_argument(
        "--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="(all)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement (5)")
    parser.add_argument("--bf16", action="store_true", help="activations in bfloat16")
    parser.add_argument(
        "--peak-flops", type=float, help="of the device, a second, if TRL does not know it"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling and lengths")
    parser.add_argument("--out", type=Path, help="where the figures go")
    options = parser.parse_args(arguments)
    if not (Path(options.model) / "config.json").is_file():
        parser.error(
            f"{options.model} holds no model; `python -m agents sft --preset tiny` makes {CHECKPOINT}"
        )
    if options.transcripts and options.drawn:
        parser.error("--transcripts are recorded, and not --drawn")
    least = min(options.rounds, options.episodes, options.max_tokens)
    if least < 1 or options.group < 2 or options.episodes % options.group:
        parser.error(
            "--rounds and --max-tokens are at least 1, --group at least 2, --episodes whole groups"
        )
    name = "train_step" if options.model == CHECKPOINT else f"train_step_{_name(options.model)}"
    out = options.out or RESULTS / f"{name}.json"
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        sets = make_sets(options)
    except (ValueError, OSError) as error:  # a setting's, too
        parser.error(str(error))
    for kind, batch in sets.items():
        if len(batch.transcripts) % PASSES:
            parser.error(f"{kind}: {len(batch.transcripts)} episodes make no {PASSES} equal parts")
    report: dict[str, Any] = {
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load": [round(each, 1) for each in os.getloadavg()],
        "activations": "bfloat16" if options.bf16 else "float32",
        "settings": {
            **{k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
            "passes": PASSES,
            "noise": NOISE,
        },
        "sets": {},
    }
    for kind, batch in sets.items():
        report["sets"][kind] = {}
        for setting in options.settings:
            report["sets"][kind][setting] = measure(
                options.model, batch, setting, options.rounds, options.bf16, options.peak_flops
            )
            print(f"{kind}, {setting}: done", file=sys.stderr, flush=True)
            write_results(out, report)
    print(table(report))
    return int(not all(e["same"] for found in report["sets"].values() for e in found.values()))


def _name(model: str) -> str:
    """Of a model's folder; a run's is called `checkpoint`, whatever the run."""
    path = Path(model).resolve()
    return path.parent.name if path.name == "checkpoint" else path.name


if __name__ == "__main__":
    sys.exit(main())
