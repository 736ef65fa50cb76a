"""SFT: the cold start (ReTool, section 2.1).

The loss is on the model's own tokens: prompt and interpreter text are masked, as the paper's
authors also do in SFT. The traces are made here, with code that runs in the sandbox and checked
answers, or they come from a file, for example from `coldstart.py`. A batch holds the traces as
padded rows or in packs, one behind the other. Packing changes neither the attention nor the loss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from agents.base.board import Bar, BarCallback, console
from agents.base.fields import TuningSettings
from agents.base.fine_tuning import BudgetSFTTrainer
from agents.base.model import check_dtype, check_learning_rate, load_model, lora_config
from agents.base.records import damaged, read_episodes, write_transcripts_atomically
from agents.base.run import RunLogger
from agents.base.session import Session
from agents.base.settings import SettingsError, check_least, find_sandbox, prefixed, setting
from agents.base.sharding import processes
from agents.base.stopping import StopCallback
from agents.base.trl import trl_config
from agents.models import tiny
from agents.traces.scripted import check_mix, has_messages, make_traces, read_messages
from retool_env.episode import Tokenizer, decode
from retool_env.execution import Sandbox
from retool_env.files import file_fault
from retool_env.problem import Problem
from retool_env.training.processes import RolloutsAbandoned, everywhere, together
from retool_env.transcript import Span, Transcript, check_transcript

TRACES = "traces.jsonl"
"""The file in the run's folder with the traces that the run made."""
_LABELS = ("dataset_text_field", "dataset_kwargs", "completion_only_loss", "assistant_only_loss")
WITHOUT_EFFECT = {
    **dict.fromkeys(_LABELS, "set data; the loss is on the model's own tokens"),
    "truncation_mode": "no trace is cut; set packing",
}
"""Fields of `SFTConfig` without effect on our token ids and labels, with the settings to use."""
LOSSES = ("nll", "dft")
"""TRL's losses. TRL itself refuses another name only when the traces are made."""
_CURE = "delete the whole file, so that the same traces are made again"


@dataclass(frozen=True)
class Settings(TuningSettings):
    """Settings of the cold start."""

    name: str = "sft"
    model: str = setting("tiny", "a folder, a Hub id, or `tiny`, a model that the run makes")
    mix: dict[str, float] = setting(
        {"tool": 0.4, "mended": 0.1, "worked": 0.25, "direct": 0.25},
        "shares of the traces' styles; without an interpreter, styles with code are left out",
    )
    traces: int = setting(2000, "number of traces to make")
    data: str | None = setting(
        None,
        "file to train on instead of making traces: coldstart's data.jsonl, other such messages, "
        "or transcripts.jsonl",
    )
    epochs: float = setting(6.0, "passes over the traces; with --resume a run may be given more")
    packing: int = setting(
        0, "tokens of a pack, which holds traces that don't see each other; 0: no packs"
    )
    batch_size: int = setting(32, "traces, or packs, an optimizer step, of all processes together")
    micro_batch: int = setting(
        0,
        "traces, or packs, a forward and backward pass of one process; 0: its whole part of a "
        "step, or one pack",
    )
    tokens: int = setting(
        0,
        "tokens in a forward and backward pass of one process, in place of micro_batch; the passes "
        "are balanced over all processes; 0: micro_batch counts",
    )
    learning_rate: float = setting(2e-3, "peak, from which a cosine falls to a tenth")
    save_steps: int = setting(50, "optimizer steps between checkpoints for resuming")
    trl: dict[str, Any] = setting({}, "any other field of TRL's SFTConfig")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run the cold start.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Whether to continue the run in the folder.

    Returns:
        The folder of the trained model.

    Raises:
        SettingsError: If a setting is out of range or names an unknown thing, or no trace is right.
        SandboxUnavailable: If the sandbox can't work here.
    """
    micro_batch, passes = check_batch(settings, processes().num_processes)
    with Session(settings, folder, resume, "epochs") as run:
        if run.finished:
            return run.checkpoint
        if settings.model == "tiny":
            run.model, run.tokenizer = tiny.make_model(settings.seed)
        else:
            run.model, run.tokenizer = load_model(
                settings.model, settings.dtype, settings.attention
            )
        check_learning_rate(settings, run.model.num_parameters())
        if settings.packing or settings.tokens:
            check_packing(run.model)
        config = sft_config(settings, run.trainer, micro_batch, passes)
        run.check_disk()
        dataset = sft_dataset(find_traces(run))
        disable_progress_bars()  # packing's bar would disturb the run's bar
        point = run.resume_point()
        run.stopping.check()
        with Bar("cold start", 1, past=run.metrics()) as bar:
            stop = StopCallback(run.task, run.stopping, run.saving, run.card)
            trainer = BudgetSFTTrainer(
                model=run.model,
                args=config,
                train_dataset=dataset,
                processing_class=run.tokenizer,
                peft_config=lora_config(settings.lora_rank),
                callbacks=[RunLogger(run), BarCallback(bar), stop],
                tokens=settings.tokens,
            )
            for callback in (PrinterCallback, ProgressCallback):
                trainer.remove_callback(callback)
            stop.train(trainer, point)
        run.save(trainer)
    return run.checkpoint


def sft_config(settings: Settings, output: Path, micro_batch: int, passes: int) -> SFTConfig:
    """TRL's configuration.

    Args:
        settings: The run's settings.
        output: The folder of the checkpoints for resuming.
        micro_batch: Traces, or packs, of a process's forward and backward pass.
        passes: Forward and backward passes of a process for an optimizer step.

    Raises:
        SettingsError: If the setting `trl` has a wrong field or value.
    """
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
    loss = settings.trl.get("loss_type", "nll")
    if loss not in LOSSES:
        raise SettingsError(f"trl.loss_type={loss!r:.60}: choose from {', '.join(LOSSES)}")
    smoothing = {"label_smoothing_factor": "it needs tokens=0"} if settings.tokens else {}
    idle = {**WITHOUT_EFFECT, **smoothing}
    return trl_config(SFTConfig, settings, output, ours, defaults, idle)


def find_traces(run: Session[Settings]) -> list[Transcript]:
    """Start the run; returns the traces to train on, from the setting `data` or made here.

    Raises:
        SettingsError: If no trace is right, or the longest trace does not fit into a pack.
        SandboxUnavailable: If the sandbox can't work here.
        RolloutsAbandoned: If a process was asked to stop.
    """
    settings = run.settings
    if settings.data is not None:
        traces = read_traces(Path(settings.data), run.tokenizer)
        check_lengths(traces, settings.packing)
        run.start()
        return traces
    problems = [] if (run.folder / TRACES).exists() else problems_of_traces(run)
    # The session's sandbox would stay open during training.
    sandbox = find_sandbox(settings.sandbox, run.rules) if run.main else None
    run.start()
    with sandbox or contextlib.nullcontext():
        together(processes(), lambda: run.main and own_traces(run, problems, sandbox))
    traces = list(read_episodes(run.folder / TRACES, _CURE))
    check_lengths(traces, settings.packing)
    return traces


def check_batch(settings: Settings, processes: int) -> tuple[int, int]:
    """Check the numbers, and that a step's traces can be divided among processes and passes.

    Args:
        settings: The run's settings.
        processes: Number of processes of the run.

    Returns:
        The traces of TRL's micro batch, and the micro batches of a process for an optimizer step.
        With a budget of tokens the micro batch is the whole step, which the trainer divides.

    Raises:
        SettingsError: If a number is out of range, the traces can't be divided, or packs and a
            budget are set.
    """
    counts = ("traces", "batch_size", "save_steps")
    least = dict.fromkeys(("packing", "micro_batch", "tokens", "lora_rank"), 0)
    check_least(settings, {**dict.fromkeys(counts, 1), **least})
    if not settings.epochs > 0:
        raise SettingsError(f"epochs must be above 0, not {settings.epochs}")
    check_dtype(settings.dtype, settings.lora_rank, settings.trl)
    if settings.packing and settings.tokens:
        raise SettingsError(
            f"packing={settings.packing} and tokens={settings.tokens} both divide the traces into "
            "passes: set tokens alone"
        )
    part, rest = divmod(settings.batch_size, processes)
    # TRL also lays several packs one behind the other; attention costs the square of their length.
    micro_batch = settings.micro_batch or (1 if settings.packing else part)
    if settings.tokens:
        micro_batch = part
    if rest or not micro_batch or part % micro_batch:
        size = f" * micro_batch={settings.micro_batch}" if settings.micro_batch else ""
        raise SettingsError(
            f"batch_size={settings.batch_size} traces a step are not divided by {processes} "
            f"processes{size}: change batch_size or micro_batch"
        )
    return micro_batch, part // micro_batch


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Check that traces in one pack, or in one row of a pass, don't see each other.

    The check packs two short traces and changes the first. TRL's packs have no attention mask, but
    the positions begin anew in each trace. From these positions transformers makes a mask of blocks
    for the kinds of attention that it knows. With other attention, a trace would attend to the
    traces before it.

    Raises:
        SettingsError: If the logits of the second trace change with the first trace.
    """
    collate, size = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True), 8

    def second(token: int) -> torch.Tensor:
        ids = [token] * size + list(range(size))
        batch = collate([{"input_ids": ids, "labels": ids, "seq_lengths": [size, size]}])
        del batch["labels"]
        return model(**batch, use_cache=False).logits[:, size:]

    # In a sharded run only the first process has the weights.
    apart = model.device.type == "meta" or torch.allclose(second(0), second(1))
    if not everywhere(apart)[0]:
        kind = f"{model.config.model_type}, {model.config._attn_implementation} attention"
        raise SettingsError(
            f"in this model ({kind}) traces in a pack see each other: set packing=0 and tokens=0"
        )


def check_lengths(traces: Sequence[Transcript], packing: int) -> None:
    """Check that each trace fits into a pack.

    Args:
        traces: The traces.
        packing: Tokens of a pack; 0: there are no packs, and nothing is checked.

    Raises:
        SettingsError: If a trace does not fit: TRL would cut off its end.
    """
    longest = max(len(trace.prompt_ids) + len(trace.completion_ids) for trace in traces)
    if 0 < packing < longest:
        raise SettingsError(
            f"packing={packing} would cut off the end of the longest trace, which has {longest} "
            f"tokens: set packing to {longest} or more"
        )


def _spells(tokenizer: Tokenizer, span: Span) -> bool:
    """Whether this tokenizer decodes a span's token ids to the span's text."""
    ids = span.token_ids or ()
    # The text leaves out an end of sequence, so the ids may have one more token.
    return decode(tokenizer, ids).startswith(span.text) and bool(ids or not span.text)


def read_traces(path: Path, tokenizer: Tokenizer) -> list[Transcript]:
    """The traces of a file: all conversations, or the transcripts with a right answer.

    Args:
        path: A file of messages or of transcripts.
        tokenizer: The model's tokenizer.

    Raises:
        SettingsError: If the file is missing, a line is damaged, no answer is right, or another
            tokenizer made the token ids.
    """
    if fault := file_fault(path):
        raise SettingsError(f"data: {fault}")
    with prefixed("data"):
        if has_messages(path):
            traces = read_messages(path, tokenizer)
            console.print(f"{len(traces)} traces in {path}")
            return traces
        traces = list(read_episodes(path, "delete that line"))
        if not all(_spells(tokenizer, span) for trace in traces for span in trace.spans):
            raise ValueError(f"{path}: the token ids do not belong to this model's tokenizer")
    if not traces:
        raise SettingsError(f"data: {path} is empty")
    right = [trace for trace in traces if trace.correct]
    console.print(f"{len(right)} of {len(traces)} traces gave the right answer")
    if not right:
        raise SettingsError(f"data: no trace in {path} gave the right answer")
    return right


def problems_of_traces(run: Session[Settings]) -> list[Problem]:
    """The problems for which the run makes traces.

    Raises:
        SettingsError: If the source holds too few problems, or the setting `mix` is wrong for them.
    """
    settings, source = run.settings, run.problems
    if settings.traces > len(source):
        raise SettingsError(
            f"traces={settings.traces} is too large: the source holds {len(source)} problems"
        )
    problems = [source[i] for i in range(settings.traces)]
    with prefixed("mix"):
        check_mix(problems, settings.mix, run.rules)
    return problems


def own_traces(
    run: Session[Settings], problems: Sequence[Problem], sandbox: Sandbox | None
) -> list[Transcript]:
    """The traces of an earlier start of this run; without an earlier start they are made.

    Args:
        run: The run.
        problems: The problems, from `problems_of_traces`.
        sandbox: The sandbox for the traces' programs; `None`: there is no interpreter.

    Raises:
        SettingsError: If no trace is right, or the longest does not fit into a pack.
        RolloutsAbandoned: If a process was asked to stop. The traces are then made again.
    """
    path, settings = run.folder / TRACES, run.settings
    if path.exists():
        if traces := list(read_episodes(path, _CURE)):
            return traces
        raise damaged(path, "it is empty", _CURE)

    def made() -> None:
        bar.advance()
        if run.stopping.asked():
            raise RolloutsAbandoned("the traces were abandoned")

    with Bar("traces", len(problems)) as bar:
        traces = make_traces(
            problems, settings.mix, run.rules, run.tokenizer, sandbox, settings.seed, made
        )
    console.print(f"{len(traces)} of {len(problems)} traces ran and gave the right answer")
    if not traces:
        raise SettingsError("no trace gave the right answer, so there is nothing to learn from")
    check_lengths(traces, settings.packing)  # before a file binds the folder to these settings
    write_transcripts_atomically(path, traces)
    return traces


def sft_dataset(traces: Sequence[Transcript]) -> Dataset:
    """Token ids and labels: at the model's tokens the label is the id, elsewhere -100.

    A trace whose last token is not an end of sequence ends at a tag, where generation stops by
    itself. So no end of sequence is taught there.

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
