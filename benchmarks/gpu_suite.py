"""Measures on a GPU: agreement with the CPU, speed, utilisation, a learning curve, a 32B-size step.

    python -m benchmarks.gpu_suite
    python -m benchmarks.gpu_suite --parts parity training --minutes 6
    python -m benchmarks.gpu_suite --small

Each part is a separate process with its share of the minutes. The parts, the most valuable first:

- `parity`: loss and gradient of a generation batch on CPU and GPU, in float32 and bfloat16.
- `training`: `benchmarks.train_step` with long-tailed lengths, and the GPU's utilisation.
- `rollout`: tokens/s of the engine with `TransformersPolicy`, and the GPU's utilisation.
- `curve`: a cold start and GRPO with the sandbox, until the time is up.
- `loading`: host memory while a model goes to the shards of one GPU, and its weights after that.
- `plan`: full fine-tuning with FSDP2 on one GPU, against the memory plan of `benchmarks.memory`.
- `attention`: log-probs and speed of the kernels for packed rows, against a mask of blocks. Kernels
  that are not installed are skipped.
- `served`: seconds of an update of vLLM's server by each way of new weights, with turns under way.
  Without vLLM the part is skipped.
- `step32b`: a LoRA step on the architecture of Qwen2.5-32B with one long episode, against the
  memory plan of `benchmarks.memory`.
- `served32b`: seconds of an update of vLLM's server of that architecture, whole and as an adapter.

A part's figures are in `benchmarks/results/gpu_suite.json` as soon as the part ends. If a part
fails or exceeds its time, the file holds its error, and the other parts still run. `--small` tries
all parts on models that are small enough for any machine, before you wait for a GPU. All models are
new, with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from agents.base.model import lora_config
from agents.base.records import read_records
from agents.models.tiny import make_model
from benchmarks import train_step
from benchmarks.memory import Setup, plan
from benchmarks.parts.batches import equal, make
from benchmarks.parts.gpu_attention import attention, attention_text
from benchmarks.parts.gpu_memory import loading, memory_plan
from benchmarks.parts.gpu_served import served, served32b, served_text
from benchmarks.parts.gpu_task import CUDA, DEVICE, MEDIUM, Task, busy, config_32b, save_model
from benchmarks.parts.results import RESULTS, write_results
from retool_env.problem import Problem
from retool_env.rollout import RolloutEngine
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.rules import Rules
from retool_env.training.packing import pack, score

LEARNER = {
    "hidden_size": 512,
    "intermediate_size": 1_536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "initializer_range": 0.04,
}
"""The size of the learning model: 25 million parameters."""


GRACE = 30
"""Seconds after its deadline in which a part may report its figures."""


def gradients(model: str, bf16: bool, out: Path) -> None:
    """Write the loss and gradient of a generation batch on this process's device to a file.

    The batch is made on the CPU, so that all devices get the same batch. Noise on the old log-probs
    makes ratios large enough for clipping.

    Args:
        model: The folder of the model.
        bf16: Whether activations are in bfloat16.
        out: The file, in PyTorch's format.
    """
    batch = make(equal(96, 16), 24, 4, AutoModelForCausalLM.from_pretrained(model), [], 0)
    with tempfile.TemporaryDirectory() as folder:
        steps = train_step.Steps(train_step.OURS, model, batch, 1, 0.0, bf16, folder)
        prepared = steps.batch()
        old = prepared["old_per_token_logps"]
        noise = torch.randn(old.shape, generator=torch.Generator().manual_seed(0))
        prepared["old_per_token_logps"] = old + train_step.NOISE * noise.to(old.device)
        loss, gradient = steps.loss_and_gradient(prepared)
    torch.save({"loss": loss, "gradient": gradient, "device": str(old.device)}, out)


def parity(task: Task) -> dict[str, Any]:
    """Part `parity`: losses and the relative difference of gradients, or an error, by precision."""
    model = save_model(task.folder / "model", task.small, hidden_size=512, num_hidden_layers=8)
    by_precision: dict[str, Any] = {}
    for name, bf16 in (("float32", False), ("bfloat16", True)):
        try:
            cpu, other = (gradients_on(device, task, model, bf16) for device in ("cpu", DEVICE))
        except subprocess.SubprocessError as error:
            by_precision[name] = {"error": str(error)[-200:], "same": False}
            continue
        apart = (other["gradient"] - cpu["gradient"]).norm() / cpu["gradient"].norm()
        tolerance = train_step.TOLERANCE_BF16 if bf16 else train_step.TOLERANCE
        by_precision[name] = {
            "devices": [cpu["device"], other["device"]],
            "loss": [cpu["loss"], other["loss"]],
            "gradient_norm": cpu["gradient"].norm().item(),
            "gradient_difference": apart.item(),
            "same": apart.item() <= tolerance and abs(cpu["loss"] - other["loss"]) <= tolerance,
        }
    return by_precision


def gradients_on(device: str, task: Task, model: str, bf16: bool) -> dict[str, Any]:
    """Call `gradients` in a process that uses one device, and return its result.

    Args:
        device: The device, as PyTorch names it.
        task: The task of the part.
        model: The folder of the model.
        bf16: Whether activations are in bfloat16.
    """
    out = task.folder / "gradients.pt"
    call = f"from benchmarks.gpu_suite import *; gradients({model!r}, {bf16}, Path({str(out)!r}))"
    environment = {**os.environ, "ACCELERATE_TORCH_DEVICE": device}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-c", call]
    subprocess.run(command, check=True, env=environment, timeout=task.left)
    return torch.load(out)


def training(task: Task) -> dict[str, Any]:
    """Part `training`: the figures of `benchmarks.train_step`, and the GPU's utilisation."""
    model = save_model(task.folder / "model", task.small, **MEDIUM)
    out = task.folder / "train_step.json"
    size = "--episodes 16 --max-tokens 4096 --rounds 3 --turn-tokens 256"
    if task.small:
        size = "--episodes 8 --max-tokens 120 --rounds 1 --turn-tokens 16"
    options = [*size.split(), "--group", "4", "--drawn", "--bf16", "--settings", "one update"]
    with busy() as utilisation:
        status = train_step.main(["--model", model, *options, "--out", str(out)])
    return {
        "same": status == 0,
        "gpu_utilisation": utilisation["mean"],
        **json.loads(out.read_text()),
    }


def rollout(task: Task) -> dict[str, Any]:
    """Part `rollout`: tokens per second of the engine in text-only episodes, all at once."""
    episodes, tokens = (8, 40) if task.small else (256, 512)
    model: Any
    model, tokenizer = make_model(0, **({} if task.small else MEDIUM))
    model = model.to(DEVICE, torch.bfloat16)
    # A model with random weights samples any token; only the tokenizer's end token ends a turn.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    policy = TransformersPolicy(
        model, tokenizer, max_batch=episodes, cache_tokens=episodes * (tokens + 64)
    )
    rules = Rules(interpreter=False, max_tokens=tokens, prompt_template="{query}\n")
    engine = RolloutEngine(policy, rules, None, concurrency=episodes)
    problems = [Problem(str(i), f"Compute {i} + {i}.", str(2 * i)) for i in range(episodes)]
    engine.run(problems[:2])  # warms up
    before = engine.progress.tokens
    with busy() as utilisation:
        began = time.perf_counter()
        engine.run(problems)
        seconds = time.perf_counter() - began
    sampled = engine.progress.tokens - before
    return {
        "episodes": episodes,
        "tokens": sampled,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(sampled / seconds, 1),
        "gpu_utilisation": utilisation["mean"],
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def curve(task: Task) -> dict[str, Any]:
    """Part `curve`: accuracy of the training rollouts by step, until the time is up."""
    small, folder = task.small, task.folder
    model = save_model(folder / "model", small, **LEARNER)
    level = "env.difficulty=1" if small else "env.difficulty=[1, 2, 4]"
    shared = ["--preset", "tiny", "--runs", str(folder), level, f"sandbox={task.sandbox}"]
    cold = ["traces=40", "epochs=1"] if small else ["traces=8000", "epochs=6", "batch_size=64"]
    cold += [] if small else ["learning_rate=6e-4"]
    train(["sft", *shared, f"model={model}", *cold], task)
    rl = [f"model={folder / 'sft' / 'checkpoint'}", "save_steps=1000", "transcripts_every=1000"]
    if small:
        rl += ["steps=2", "prompts=2", "micro_batch=16"]
    else:
        rl += ["steps=2000", "prompts=64", "micro_batch=256", "learning_rate=1e-4"]
        rl += ["in_flight=512", "sample_batch=512"]
        rl += ["engine.name=transformers", "engine.cache_tokens=131072"]
    train(["grpo", *shared, *rl], task)
    records = list(read_records(folder / "grpo" / "metrics.jsonl"))
    if not records:
        raise RuntimeError("the time was up before the first step ended; raise --minutes")
    columns = ("step", "seconds", "env/accuracy", "env/code_ratio", "rollout/tokens")
    return {name: [record.get(name) for record in records] for name in columns}


def train(arguments: list[str], task: Task) -> None:
    """Run `python -m agents`, and stop it when the time is up. A stopped run saves its state.

    Args:
        arguments: The command line of `python -m agents`.
        task: The task, with the deadline.

    Raises:
        RuntimeError: If the run failed.
    """
    process = subprocess.Popen([sys.executable, "-m", "agents", *arguments])
    stopped = (128 + signal.SIGTERM, -signal.SIGTERM)
    try:
        status = process.wait(task.left)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # a shell's background processes ignore SIGINT
        status = process.wait()
    if status not in (0, *stopped):
        raise RuntimeError(f"python -m agents {arguments[0]} ended with status {status}")


def step32b(task: Task) -> dict[str, Any]:
    """Part `step32b`: memory and time of a LoRA step with one long episode, against the plan."""
    config, tokens = config_32b(task.small), 96 if task.small else 18_432
    planned = plan(config, Setup("grpo", 1, tokens, lora=64, sharded=False))
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    add_fused_lm_head(model, 1.0)
    model = get_peft_model(model, lora_config(64))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (1, tokens), generator=generator).to(DEVICE)
    scored = torch.ones_like(ids)
    scored[:, : tokens // 16] = 0  # the prompt
    batch = pack(ids, torch.ones_like(ids), scored)

    def step() -> float:
        began = time.perf_counter()
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = -score(model, batch).log_probs.sum() / tokens
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # gradients stay allocated between steps
        if CUDA:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    step()  # makes the optimizer's state
    peak = kept = None
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        kept = torch.cuda.memory_allocated()
    with busy() as utilisation:
        seconds = step()
    if CUDA:
        peak = torch.cuda.max_memory_allocated()
    return {
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1),
        "mfu_percent": train_step.utilisation(config, [tokens], tokens / seconds, True, None),
        "gpu_utilisation": utilisation["mean"],
        "planned_bytes": planned,
        "planned_bytes_together": sum(planned.values()),
        "kept_bytes": kept,
        "peak_bytes": peak,
    }


PARTS: dict[str, tuple[Callable[[Task], dict[str, Any]], float]] = {
    "parity": (parity, 2),
    "training": (training, 3),
    "rollout": (rollout, 1.5),
    "curve": (curve, 4),
    "loading": (loading, 0.5),
    "plan": (memory_plan, 0.5),
    "attention": (attention, 1),
    "served": (served, 2),
    "step32b": (step32b, 2),
    "served32b": (served32b, 3),
}
"""The function of each part, and its share of the time."""


def run_part(name: str, small: bool, seconds: float, sandbox: str) -> dict[str, Any]:
    """Run a part in a separate process.

    Args:
        name: The part's name.
        small: Whether to use small models.
        seconds: The time of the part.
        sandbox: The setting `sandbox` of training runs.

    Returns:
        The part's figures, or its `error`; and `wall_s`, its time in seconds.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        call = (
            "import json; from benchmarks.gpu_suite import *; "
            f"task = Task({small}, Path({folder!r}), {began + seconds}, {sandbox!r}); "
            f"Path({str(out)!r}).write_text(json.dumps(PARTS[{name!r}][0](task)))"
        )
        # A group: all processes of the part can be killed. A session would outlive the terminal.
        process = subprocess.Popen([sys.executable, "-c", call], process_group=0)
        try:
            # A part that respects its deadline needs a moment to report its figures.
            status = process.wait(seconds + GRACE)
            figures = json.loads(out.read_text()) if status == 0 else {"error": f"status {status}"}
        except subprocess.TimeoutExpired:
            figures = {"error": f"not done in {seconds:.0f} s"}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {**figures, "wall_s": round(time.monotonic() - began, 1)}


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; the exit status is 1 if a part failed or parity does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8, help="time of all parts together (8)")
    parser.add_argument("--sandbox", default="nsjail", help="sandbox of the curve (nsjail)")
    parser.add_argument("--small", action="store_true", help="use small models, on any machine")
    parser.add_argument("--out", type=Path, help="the JSON file of the figures")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes < float("inf"):
        parser.error("--minutes must be a number above 0")
    if options.out is not None and options.out.is_dir():
        parser.error(f"--out must name a file, and {options.out} is a folder")
    if not CUDA and not options.small:
        parser.error("this machine has no GPU; use --small to try all parts without a GPU")
    name = "gpu_suite_small" if options.small else "gpu_suite"
    out = options.out or RESULTS / f"{name}.json"
    device = torch.cuda.get_device_name() if CUDA else None
    report = {"accelerator": device, "small": options.small, "parts": {}}
    shares = sum(PARTS[part][1] for part in options.parts)
    for part in options.parts:
        seconds = 60 * options.minutes * PARTS[part][1] / shares
        print(f"{part}: at most {seconds:.0f} s", file=sys.stderr, flush=True)
        report["parts"][part] = run_part(part, options.small, seconds, options.sandbox)
        write_results(out, report)
    print(table(report["parts"]))
    bad = any("error" in figures for figures in report["parts"].values())
    compared = [
        figures
        for name in ("parity", "attention")
        for figures in report["parts"].get(name, {}).values()
        if isinstance(figures, dict) and "skipped" not in figures
    ]
    compared += [report["parts"][name] for name in ("loading",) if name in report["parts"]]
    return int(bad or not all(figures["same"] for figures in compared))


def table(parts: dict[str, dict[str, Any]]) -> str:
    """One or two lines of text per part."""
    lines = []
    for name, figures in parts.items():
        if "error" in figures:
            lines.append(f"{name}: {figures['error']}")
        elif "skipped" in figures:
            lines.append(f"{name}: skipped, {figures['skipped']}")
        elif name in ("served", "served32b"):
            lines += [
                f"{name}, {way}: {served_text(row)}"
                for way, row in figures.items()
                if isinstance(row, dict)
            ]
        elif name == "parity":
            lines += [
                f"{name}, {precision}: {_parity_text(row)}"
                for precision, row in figures.items()
                if isinstance(row, dict)
            ]
        elif name == "training":
            lines.append(train_step.table(figures))
        elif name == "curve":
            accuracy = [a for a in figures["env/accuracy"] if a is not None]
            part = max(1, len(accuracy) // 10)
            first, last = sum(accuracy[:part]) / part, sum(accuracy[-part:]) / part
            steps = f"{len(accuracy)} steps in {figures['seconds'][-1]:.0f} s"
            lines.append(f"{name}: {steps}, accuracy {first:.1%} -> {last:.1%}")
        elif name == "attention":
            lines += [
                f"{name}, {kernel}: {attention_text(row)}"
                for kernel, row in figures.items()
                if isinstance(row, dict)
            ]
        elif name == "loading":
            sizes = [figures[key] / 2**30 for key in ("model_bytes", "host_growth_bytes")]
            equal = "equal" if figures["same"] else "DIFFERENT"
            lines.append(f"{name}: {sizes[0]:.1f} GiB, host {sizes[1]:.1f} GiB, {equal} weights")
        else:
            speed = figures.get("tokens_per_s")
            lines.append(f"{name}: " + (f"{speed:,} tokens/s" if speed else "memory"))
            if figures.get("peak_bytes") is not None:
                peak, planned = figures["peak_bytes"], figures["planned_bytes_together"]
                lines.append(f"  {peak / 2**30:.1f} GiB at most, {planned / 2**30:.1f} planned")
        if figures.get("gpu_utilisation") is not None:
            lines.append(f"  the GPU was busy {figures['gpu_utilisation']:.0f} % of the time")
    return "\n".join(lines)


def _parity_text(figures: dict[str, Any]) -> str:
    if "error" in figures:
        return figures["error"]
    return f"gradients differ by {figures['gradient_difference']:.1e}, losses {figures['loss']}"


def _terminate(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)  # so that the running part is killed
    sys.exit(main())
