"""SFT: the cold start (ReTool, section 2.1).

Loss on the model's own tokens alone: the prompt and the interpreter's text are masked, as the paper's authors say they
do in SFT too. The traces are made here, their code executed in the sandbox and their answers checked; or they come from a file,
such as `coldstart.py` makes. They are padded side by side, or packed one behind the other, which changes neither what a token
attends to nor the loss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
)
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from agents.base.board import Bar, BarCallback, console
from agents.base.fields import TuningSettings
from agents.base.model import check_dtype, check_learning_rate, load_model, lora_config
from agents.base.records import damaged, read_episodes, write_transcripts_atomically
from agents.base.run import RunLogger
from agents.base.session import Session
from agents.base.settings import SettingsError, check_least, find_sandbox, setting
from agents.base.sharding import processes
from agents.base.stopping import StopCallback
from agents.base.trl import trl_config
from agents.models import tiny
from agents.traces.scripted import check_mix, has_messages, make_traces, read_messages
from retool_env.episode import Tokenizer, decode
from retool_env.execution import Sandbox
from retool_env.files import file_fault
from retool_env.transcript import Span, Transcript, check_transcript

TRACES = "traces.jsonl"
"""In the run's folder, the traces that it made."""
WITHOUT_EFFECT = {
    **dict.fromkeys(
        (
            "dataset_text_field",
            "dataset_kwargs",
            "completion_only_loss",
            "assistant_only_loss",
        ),
        "set data; the loss is on the model's own tokens",
    ),
    "truncation_mode": "no trace is cut; set packing",
}
"""Fields of TRL's that have no effect on token ids and labels of our own, and of each what has."""
_ANEW = "delete the whole file: the traces are then made anew, the same ones"


@dataclass(frozen=True)
class Settings(TuningSettings):
    """Settings of the cold start."""

    name: str = "sft"
    model: str = setting("tiny", "a folder, a Hub id, or `tiny`: made on the spot")
    mix: dict[str, float] = setting(
        {"tool": 0.4, "mended": 0.1, "worked": 0.25, "direct": 0.25},
        "shares of the traces' styles; those with code are left out where there is no interpreter",
    )
    traces: int = setting(2000, "how many are made")
    data: str | None = setting(
        None,
        "a file to train on instead of making traces: coldstart's data.jsonl, another of such messages, or transcripts.jsonl",
    )
    epochs: float = setting(6.0, "passes over the traces; with --resume a run may be given more")
    packing: int = setting(
        0,
        "tokens of a pack, in which traces lie one behind the other without seeing each other; 0: no packs",
    )
    batch_size: int = setting(32, "traces, or packs, an optimizer step, of all processes together")
    micro_batch: int = setting(
        0,
        "traces, or packs, a forward and backward pass, of one process; 0: all of its part of a step, or one pack",
    )
    learning_rate: float = setting(2e-3, "peak, with a cosine to a tenth of it")
    save_steps: int = setting(50, "optimizer steps between checkpoints for resuming")
    trl: dict[str, Any] = setting({}, "any other field of TRL's SFTConfig")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run the cold start.

    Returns:
        The folder of the trained model.

    Raises:
        SettingsError: If a setting is out of range or names nothing there is, or there is nothing to learn from.
        SandboxUnavailable: If the sandbox can't work here.
    """
    counts = ("traces", "batch_size", "save_steps")
    least = dict.fromkeys(("packing", "micro_batch", "lora_rank"), 0)
    check_least(settings, {**dict.fromkeys(counts, 1), **least})
    if not settings.epochs > 0:
        raise SettingsError(f"epochs must be above 0, not {settings.epochs}")
    micro_batch, passes = check_batch(settings, processes().num_processes)
    check_dtype(settings.dtype, settings.lora_rank, settings.trl)
    with Session(settings, folder, resume, "epochs") as run:
        if run.finished:
            return run.checkpoint
        if settings.model == "tiny":
            run.model, run.tokenizer = tiny.make_model(settings.seed)
        else:
            run.model, run.tokenizer = load_model(settings.model, settings.dtype)
        check_learning_rate(settings, run.model.num_parameters())
        if settings.packing:
            check_packing(run.model)
        config = sft_config(run, micro_batch, passes)
        dataset = sft_dataset(find_traces(run))
        check_lengths(dataset, settings.packing)
        disable_progress_bars()  # that of packing would break into ours
        point = run.resume_point()
        with Bar("cold start", 1, past=run.metrics()) as bar:
            stop = StopCallback(run.task, run.stopping)
            trainer = SFTTrainer(
                model=run.model,
                args=config,
                train_dataset=dataset,
                processing_class=run.tokenizer,
                peft_config=lora_config(settings.lora_rank),
                callbacks=[RunLogger(run), BarCallback(bar), stop],
            )
            for callback in (PrinterCallback, ProgressCallback):
                trainer.remove_callback(callback)
            stop.train(trainer, point)
        run.save(trainer)
    return run.checkpoint


def sft_config(run: Session[Settings], micro_batch: int, passes: int) -> SFTConfig:
    """TRL's configuration.

    Args:
        run: The run.
        micro_batch: Traces, or packs, that a process takes at once.
        passes: How many times it does for an optimizer step.

    Raises:
        SettingsError: If the setting `trl` has a field that it can't have.
    """
    settings = run.settings
    ours = {
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": micro_batch,
        "packing": bool(settings.packing),
        "packing_strategy": "bfd",  # traces stay whole
        "max_length": settings.packing or None,
        "gradient_accumulation_steps": passes,
    }
    defaults = {
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": 0.05,
        "logging_steps": 10,
    }
    return trl_config(SFTConfig, run, ours, defaults, WITHOUT_EFFECT)


def find_traces(run: Session[Settings]) -> list[Transcript]:
    """The traces that are trained on: those of the setting `data`, or made here. The run starts.

    Raises:
        SettingsError: If there is nothing to learn from.
        SandboxUnavailable: If the sandbox can't work here.
    """
    settings = run.settings
    if settings.data is not None:
        traces = read_traces(Path(settings.data), run.tokenizer)
        run.start()
        return traces
    # Not the session's: it is closed before the training begins.
    sandbox = find_sandbox(settings.sandbox, run.rules) if run.main else None
    run.start()
    if run.main:
        with sandbox or contextlib.nullcontext():
            own_traces(run, sandbox)
    processes().wait_for_everyone()
    return list(read_episodes(run.folder / TRACES, _ANEW))


def check_batch(settings: Settings, processes: int) -> tuple[int, int]:
    """Check that a step's traces can be shared out.

    Returns:
        How many traces a process takes at once, and how many times it does for an optimizer step.

    Raises:
        SettingsError: If they can't.
    """
    part, rest = divmod(settings.batch_size, processes)
    # TRL lays a batch of packs behind each other too, and attention would take the square of their length.
    micro_batch = settings.micro_batch or (1 if settings.packing else part)
    if rest or not micro_batch or part % micro_batch:
        size = f" * micro_batch={settings.micro_batch}" if settings.micro_batch else ""
        raise SettingsError(
            f"batch_size={settings.batch_size} traces a step are not divided by {processes} processes{size}"
        )
    return micro_batch, part // micro_batch


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Check that traces in one pack don't see each other, on two short ones of which the first changes.

    Packed as TRL packs, they have no attention mask. What sets them apart are their positions, which begin anew: transformers
    makes a mask of blocks out of them for the kinds of attention that it knows, with any other a trace would attend to the ones before it.

    Raises:
        SettingsError: If the second one's logits change too.
    """
    collate, size = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True), 8

    def second(token: int) -> torch.Tensor:
        ids = [token] * size + list(range(size))
        batch = collate([{"input_ids": ids, "labels": ids, "seq_lengths": [size, size]}])
        del batch["labels"]
        return model(**batch, use_cache=False).logits[:, size:]

    # Where only the first process has read the weights, others may hold no numbers.
    if not torch.allclose(second(0), second(1), equal_nan=True):
        kind = f"{model.config.model_type}, {model.config._attn_implementation} attention"
        raise SettingsError(
            f"packing: in this model ({kind}) traces in a pack see each other; set packing=0"
        )


def check_lengths(dataset: Dataset, packing: int) -> None:
    """Check that each trace fits into a pack, if there are packs.

    Raises:
        SettingsError: If one does not: TRL would cut off its end.
    """
    longest = max(map(len, dataset["input_ids"]))
    if 0 < packing < longest:
        raise SettingsError(
            f"packing={packing} would cut off the end of the longest trace, which has {longest} tokens: set it to as many or more"
        )


def _says(tokenizer: Tokenizer, span: Span) -> bool:
    """Whether a span's token ids are its text, in this tokenizer's."""
    ids = span.token_ids or ()
    # A span's text leaves out an end of sequence, so its ids may say one token more.
    return decode(tokenizer, ids).startswith(span.text) and bool(ids or not span.text)


def read_traces(path: Path, tokenizer: Tokenizer) -> list[Transcript]:
    """The traces of a file: all of one of messages, and those of transcripts whose answers are right.

    Raises:
        SettingsError: If there is no such file, a line of it is neither, none is right, or they are another tokenizer's.
    """
    if fault := file_fault(path):
        raise SettingsError(f"data: {fault}")
    try:
        if has_messages(path):
            traces = read_messages(path, tokenizer)
            console.print(f"{len(traces)} traces in {path}")
            return traces
        traces = list(read_episodes(path, "delete that line"))
        if not all(_says(tokenizer, span) for trace in traces for span in trace.spans):
            raise ValueError(f"{path} holds no token ids of this model's tokenizer")
    except ValueError as error:
        raise SettingsError(f"data: {error}") from error
    if not traces:
        raise SettingsError(f"data: {path} is empty")
    right = [trace for trace in traces if trace.correct]
    console.print(f"{len(right)} of {len(traces)} traces gave the right answer")
    if not right:
        raise SettingsError(f"data: no trace in {path} gave the right answer")
    return right


def own_traces(run: Session[Settings], sandbox: Sandbox | None) -> list[Transcript]:
    """The traces of an earlier start of this run, or else made anew.

    Raises:
        SettingsError: If the source holds too few problems, or no trace came out right.
    """
    path, settings, source = run.folder / TRACES, run.settings, run.problems
    if path.exists():
        if traces := list(read_episodes(path, _ANEW)):
            return traces
        raise damaged(path, "it is empty", _ANEW)
    if settings.traces > len(source):
        raise SettingsError(
            f"traces={settings.traces}, but the source holds {len(source)} problems"
        )
    problems = [source[i] for i in range(settings.traces)]
    try:
        check_mix(problems, settings.mix, run.rules)
    except ValueError as error:
        raise SettingsError(f"mix: {error}") from error
    with Bar("traces", len(problems)) as bar:
        traces = make_traces(
            problems, settings.mix, run.rules, run.tokenizer, sandbox, settings.seed, bar.advance
        )
    console.print(f"{len(traces)} of {len(problems)} traces ran and gave the right answer")
    if not traces:
        raise SettingsError("no trace gave the right answer, so there is nothing to learn from")
    write_transcripts_atomically(path, traces)
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
