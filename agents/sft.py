"""SFT: the cold start (ReTool, section 2.1).

Loss on the model's own tokens alone: the prompt and the interpreter's text are masked, as the paper's authors say they
do in SFT too. The traces are made here, their code executed in the sandbox and their answers checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from agents import tiny
from agents.model import load_model, lora_config, save_checkpoint
from agents.progress import Bar, BarCallback, console
from agents.run import Run, RunLogger
from agents.settings import SANDBOX, SettingsError, check_trl, find_sandbox, find_task, setting
from agents.traces import make_traces
from retool_env.episode import Rules, decode
from retool_env.problems import ProblemSource
from retool_env.sandbox import Sandbox
from retool_env.transcript import Transcript, check_transcript, read_transcripts, write_transcripts

ONE_PROCESS = True
"""It is not for several processes."""


@dataclass(frozen=True)
class Settings:
    """Settings of the cold start."""

    name: str = setting("sft", "the run's folder is runs/<name>")
    model: str = setting("tiny", "a folder, a Hub id, or `tiny`: made on the spot")
    dtype: str = setting("float32", "of the weights")
    env: dict[str, Any] = setting(
        {"id": "ReTool-Arithmetic-v0"}, "the environment's id and settings"
    )
    sandbox: str | dict[str, Any] = setting("nsjail", SANDBOX)
    seed: int = setting(0, "of weights, traces and order")
    mix: dict[str, float] = setting(
        {"tool": 0.4, "mended": 0.1, "worked": 0.25, "direct": 0.25},
        "shares of the traces' styles; those with code are left out where there is no interpreter",
    )
    traces: int = setting(2000, "how many are made")
    data: str | None = setting(None, "a transcripts.jsonl to train on instead of making traces")
    epochs: float = setting(6.0, "passes over the traces")
    batch_size: int = setting(32, "traces an optimizer step")
    learning_rate: float = setting(2e-3, "peak, with a cosine to a tenth of it")
    lora_rank: int = setting(0, "0: full fine-tuning")
    gradient_checkpointing: bool = setting(False, "less memory, more time")
    save_steps: int = setting(50, "optimizer steps between checkpoints for resuming")
    trl: dict[str, Any] = setting({}, "any other field of TRL's SFTConfig")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run the cold start.

    Returns:
        The folder of the trained model.
    """
    run = Run(folder, settings, resume)
    if run.finished:
        return run.checkpoint
    rules, source = find_task(settings.env)
    ours = {
        "output_dir": str(run.trainer),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "save_steps": settings.save_steps,
        "seed": settings.seed,
    }
    check_trl(SFTConfig, ours, settings.trl)
    if settings.model == "tiny":
        model, tokenizer = tiny.make_model(settings.seed)
    else:
        model, tokenizer = load_model(settings.model, settings.dtype)
    if settings.data is not None:
        traces = read_traces(Path(settings.data), tokenizer)
        run.start()
    else:
        sandbox = find_sandbox(settings.sandbox, rules)
        run.start()
        with sandbox or contextlib.nullcontext():
            traces = own_traces(settings, run.folder, rules, source, tokenizer, sandbox)
    config = SFTConfig(
        **ours,
        **{
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "warmup_steps": 0.05,
            "logging_steps": 10,
            "save_total_limit": 1,
            "bf16": False,
            "dataloader_pin_memory": torch.cuda.is_available(),
            "max_length": None,
            "report_to": "none",
            "disable_tqdm": True,
            **settings.trl,
        },
    )
    with Bar("cold start", 1) as bar:
        point = run.resume_point()
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=sft_dataset(traces),
            processing_class=tokenizer,
            peft_config=lora_config(settings.lora_rank),
            callbacks=[RunLogger(run), BarCallback(bar, {"loss": "loss"})],
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.train(resume_from_checkpoint=point)
    save_checkpoint(trainer, tokenizer, run.checkpoint)
    run.finish()
    return run.checkpoint


def read_traces(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[Transcript]:
    """The traces of a file whose answers are right.

    Raises:
        SettingsError: If there is no such file, a line of it is no transcript, none is right, or they are another tokenizer's.
    """
    if not path.is_file():
        raise SettingsError(f"data: there is no file {path}")
    try:
        traces = list(read_transcripts(path))
    except ValueError as error:
        raise SettingsError(f"data: {error}") from error
    for trace in traces:
        for span in trace.spans:
            ids = span.token_ids or ()
            # A span's text leaves out an end of sequence, so its ids may say one token more.
            if not decode(tokenizer, ids).startswith(span.text) or (span.text and not ids):
                raise SettingsError(f"data: {path} holds no token ids of this model's tokenizer")
    right = [trace for trace in traces if trace.correct]
    console.print(f"{len(right)} of {len(traces)} traces gave the right answer")
    if not right:
        raise SettingsError(f"data: no trace in {path} gave the right answer")
    return right


def own_traces(
    settings: Settings,
    folder: Path,
    rules: Rules,
    source: ProblemSource,
    tokenizer: PreTrainedTokenizerBase,
    sandbox: Sandbox | None,
) -> list[Transcript]:
    """The traces of an earlier start of this run, or else made anew.

    Raises:
        SettingsError: If the source holds too few problems, or no trace came out right.
    """
    path = folder / "traces.jsonl"
    if path.is_file():
        return list(read_transcripts(path))
    if settings.traces > len(source):
        raise SettingsError(
            f"traces={settings.traces}, but the source holds {len(source)} problems"
        )
    problems = [source[i] for i in range(settings.traces)]
    with Bar("traces", len(problems)) as bar:
        traces = make_traces(
            problems, settings.mix, rules, tokenizer, sandbox, settings.seed, bar.advance
        )
    console.print(f"{len(traces)} of {len(problems)} traces ran and gave the right answer")
    if not traces:
        raise SettingsError("no trace gave the right answer, so there is nothing to learn from")
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    write_transcripts(part, traces)
    part.replace(path)
    return traces


def sft_dataset(traces: Sequence[Transcript]) -> Dataset:
    """Token ids with labels: the id itself where the model wrote it, -100 where the prompt or the interpreter did.

    A trace whose last token is not the end of the sequence ends at a tag, where generation stops by itself, so no end
    of sequence is taught after it.

    Raises:
        ValueError: If a trace breaks an invariant of transcripts.
    """
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for trace in traces:
        check_transcript(trace)
        prompt, ids = trace.prompt_ids, trace.completion_ids
        labels = [i if kept else -100 for i, kept in zip(ids, trace.loss_mask, strict=True)]
        rows["input_ids"].append(prompt + ids)
        rows["labels"].append([-100] * len(prompt) + labels)
    return Dataset.from_dict(rows)
