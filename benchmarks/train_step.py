r"""Compares a GRPO training step of TRL's `GRPOTrainer` and ours, on the same finished episodes.

    python -m agents sft --preset tiny
    python -m benchmarks.train_step
    python -m benchmarks.train_step --model runs/grpo/checkpoint \
        --transcripts runs/grpo/transcripts.jsonl
    python -m benchmarks.train_step --model runs/models/smollm2 --drawn --episodes 16 --group 4

A step is TRL's work on a generation batch without rollouts: padding, log-probs, loss, gradients and
optimizer. The benchmark combines

- **sets** of episodes: episodes of equal length; and recorded episodes, of a run or new. With
  `--drawn`, the lengths follow the long-tailed distribution of `benchmarks.rollout` instead;
- **settings**: one optimizer step per generation batch; four steps, for which TRL computes the old
  log-probs beforehand; four steps with a KL term, for which all trainers compute reference
  log-probs;
- **trainers**: TRL's; ours on padded rows, which differs only by the use of the engine's log-probs
  as old log-probs; ours on packed rows; ours on packed rows with shared prompts, the default.

The learning rate is 0, so that every step does the same work. Before the measurement, losses and
gradients are compared on off-policy log-probs, so that ratios are clipped. If they differ, the exit
status is 1. The figures go to `benchmarks/results/train_step.json`; with `--model`, to
`train_step_<model's name>.json`.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.utils import adjusted_mfu, compute_flops_per_token, compute_mfu, get_peak_flops

from benchmarks.parts.batches import RESULT_TOKENS, Batch, equal, make, read, record
from benchmarks.parts.chains import ToolTimes, draw_chain
from benchmarks.parts.results import RESULTS, ratios, write_results
from benchmarks.parts.trainers import KINDS, OURS, PACKED, PADDED, PASSES, TRL, Steps
from retool_env.rollout.simulated import Habits

CHECKPOINT = "runs/sft/checkpoint"

SOURCES = {
    "the engine's log-probs": (PADDED, TRL),
    "packing": (PACKED, PADDED),
    "shared prompts": (OURS, PACKED),
}
"""The sources of the gain: for each, a trainer with it, and the same trainer without it."""
SETTINGS: dict[str, tuple[int, float]] = {
    "one update": (1, 0.0),
    "four updates": (PASSES, 0.0),
    "four updates, KL": (PASSES, 0.04),
}
"""The number of optimizer steps per generation batch, and the KL coefficient, by setting."""
NOISE = 0.2
"""Standard deviation of the noise on old log-probs in the comparison of losses."""
TOLERANCE, TOLERANCE_BF16 = 1e-4, 3e-2
"""Tolerances of losses (their size is about 1) and of the relative difference of gradients."""


def compare(trainers: dict[str, Steps], tolerance: float) -> dict[str, Any]:
    """Compare losses and gradients of all trainers on one generation batch.

    All trainers get the same old log-probs, with noise. Advantages are random, so that no episode
    has advantage 0.

    Args:
        trainers: The trainers by name, with the same weights.
        tolerance: The tolerance of losses, and of the relative difference of gradients.

    Returns:
        `loss` and `gradient_difference` (relative to TRL's) by trainer; `gradient_norm`; and
        whether all are the `same`.
    """
    batches = {name: steps.batch() for name, steps in trainers.items()}
    old = batches[OURS]["old_per_token_logps"]
    generator = torch.Generator().manual_seed(0)
    noise = NOISE * torch.randn(old.shape, generator=generator).to(old.device)
    advantages = torch.randn(len(old), generator=generator).to(old.device)
    losses: dict[str, float] = {}
    gradients: dict[str, torch.Tensor] = {}
    for name, steps in trainers.items():
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
    """Measure all trainers on one set of episodes in one setting.

    Args:
        model: The folder of the model.
        batch: The set of episodes.
        setting: A key of `SETTINGS`.
        rounds: The number of timed steps of each trainer; the trainers take turns.
        bf16: Whether activations are in bfloat16.
        peak: The device's FLOPs per second; `None`: the value of TRL's table.
    """
    updates, kl = SETTINGS[setting]
    tokens = sum(batch.lengths)
    with tempfile.TemporaryDirectory() as folder:
        order = [TRL, *KINDS]
        trainers = {kind: Steps(kind, model, batch, updates, kl, bf16, folder) for kind in order}
        compared = compare(trainers, TOLERANCE_BF16 if bf16 else TOLERANCE)
        for steps in trainers.values():
            steps.step()  # creates the optimizer's state
        memory = {kind: steps.peak_mb() for kind, steps in trainers.items()}
        seconds: dict[str, list[float]] = {kind: [] for kind in order}
        for number in range(rounds):
            for kind in order if number % 2 == 0 else order[::-1]:
                seconds[kind].append(trainers[kind].step())
        config = trainers[TRL].trainer.model.config.get_text_config()
    figures = {}
    for kind, times in seconds.items():
        speed = tokens / statistics.median(times)
        figures[kind] = {
            "seconds": [round(t, 4) for t in times],
            "tokens_per_s": round(speed, 1),
            "over_trl": ratios(seconds[TRL], times),
            "peak_mb": memory[kind],
            "mfu_percent": utilisation(config, batch.lengths, speed, bf16, peak),
        }
    sources = {
        source: ratios(seconds[without], seconds[having])
        for source, (having, without) in SOURCES.items()
    }
    return {
        "episodes": len(batch.transcripts),
        "tokens": tokens,
        "longest": max(batch.lengths),
        "padding": round(batch.padding, 3),
        "sources": sources,
        "trainers": figures,
        **compared,
    }


def utilisation(
    config: Any, lengths: list[int], tokens_per_s: float, bf16: bool, peak: float | None
) -> float | None:
    """Model-FLOPs utilisation (MFU) in percent, as TRL computes it for causal attention.

    Args:
        config: The model's configuration.
        lengths: The numbers of tokens of the episodes.
        tokens_per_s: The training speed.
        bf16: Whether matrix products are in bfloat16.
        peak: The device's FLOPs per second; `None`: the value of TRL's table.

    Returns:
        The utilisation; `None` if the peak is unknown.
    """
    if peak is None and torch.cuda.is_available():
        peak = get_peak_flops(torch.cuda.get_device_name(), "bfloat16" if bf16 else "float32")
    if peak is None:
        return None
    context = round(sum(n * n for n in lengths) / sum(lengths))  # the mean over tokens
    flops = compute_flops_per_token(config, context)
    return round(adjusted_mfu(compute_mfu(flops, tokens_per_s, 1, peak), config, context), 2)


def table(report: dict[str, Any]) -> str:
    """The figures as text."""
    settings = report["settings"]
    lines = [
        f"{settings['model']}, {report['activations']}, {settings['rounds']} rounds: median "
        "tokens/s without padding; ratio to TRL, median and range; peak MB above weights and "
        "optimizer's state"
    ]
    for name, by_setting in report["sets"].items():
        first = next(iter(by_setting.values()))
        lines += [
            "",
            f"{name}: {first['episodes']} episodes, {first['tokens']} tokens, the longest "
            f"{first['longest']}; {first['padding']:.0%} of the padded batch is padding",
        ]
        for setting, figures in by_setting.items():
            apart = max(figures["gradient_difference"].values())
            lines.append(
                f"  {setting}: loss {figures['loss'][TRL]:.6f}, gradients differ by at most "
                f"{apart:.1e}: {'the same' if figures['same'] else 'NOT THE SAME'}"
            )
            for kind, row in figures["trainers"].items():
                ratio = row["over_trl"]
                used = row["mfu_percent"]
                lines.append(
                    f"    {kind:<14}{row['tokens_per_s']:>10.0f}/s {ratio['median']:>7.2f} "
                    f"({ratio['min']:.2f} to {ratio['max']:.2f}) {row['peak_mb']:>9.0f} MB"
                    + ("" if used is None else f" {used:>6.1f} % MFU")
                )
            gains = [f"{name} {gain['median']:.2f}" for name, gain in figures["sources"].items()]
            lines.append(f"    each source alone: {', '.join(gains)}")
    return "\n".join(lines)


def make_sets(options: argparse.Namespace) -> dict[str, Batch]:
    """Make the sets of episodes that the command line selects."""
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
    """Run the benchmark; the exit status is 1 if losses or gradients differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=CHECKPOINT, help=f"a checkpoint ({CHECKPOINT})")
    parser.add_argument("--transcripts", type=Path, help="of a run; its last batch counts")
    parser.add_argument("--drawn", action="store_true", help="draw lengths, record no episodes")
    parser.add_argument("--episodes", type=int, default=128, help="episodes of a batch (128)")
    parser.add_argument("--group", type=int, default=8, help="rollouts per problem (8)")
    parser.add_argument("--turn-tokens", type=float, default=64.0, help="drawn: mean turn (64)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="drawn: prompt (64)")
    parser.add_argument("--max-tokens", type=int, default=1024, help="drawn: response (1024)")
    names = list(SETTINGS)
    parser.add_argument("--settings", nargs="+", choices=names, default=names, help="(all)")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each trainer (5)")
    parser.add_argument("--bf16", action="store_true", help="use activations in bfloat16")
    parser.add_argument("--peak-flops", type=float, help="FLOPs/s of the device (TRL's table)")
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling and lengths (0)")
    parser.add_argument("--out", type=Path, help="the JSON file of the figures")
    options = parser.parse_args(arguments)
    if not (Path(options.model) / "config.json").is_file():
        parser.error(
            f"{options.model} holds no model; make {CHECKPOINT}: python -m agents sft --preset tiny"
        )
    if options.transcripts and options.drawn:
        parser.error("--transcripts names recorded episodes; use it without --drawn")
    least = min(options.rounds, options.episodes, options.max_tokens)
    if least < 1 or options.group < 2 or options.episodes % options.group:
        parser.error(
            "--rounds and --max-tokens must be at least 1, --group 2, and --episodes whole groups"
        )
    name = "train_step" if options.model == CHECKPOINT else f"train_step_{_name(options.model)}"
    out = options.out or RESULTS / f"{name}.json"
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        sets = make_sets(options)
    except (ValueError, OSError) as error:  # SettingsError is a ValueError
        parser.error(str(error))
    for kind, batch in sets.items():
        if len(batch.transcripts) % PASSES:
            parser.error(
                f"{kind}: {len(batch.transcripts)} episodes can't form {PASSES} equal parts"
            )
    report: dict[str, Any] = {
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load": [round(load, 1) for load in os.getloadavg()],
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
    return int(not all(f["same"] for of_set in report["sets"].values() for f in of_set.values()))


def _name(model: str) -> str:
    """The name of a model's folder. For a run's folder `checkpoint`, it is the run's name."""
    path = Path(model).resolve()
    return path.parent.name if path.name == "checkpoint" else path.name


if __name__ == "__main__":
    sys.exit(main())
