"""Reporting: the setting `report_to` sends figures to TensorBoard, trackio or W&B.

TRL's trainers report by themselves (`report_to` of their configurations). Algorithms with a
training loop of their own report through accelerate's trackers, under the same names and steps.
`metrics.jsonl` is always written.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, default_logdir

from agents.base.settings import SettingsError, nearest
from agents.base.sharding import processes
from retool_env.transcript import Transcript

PROJECT = "retool-env"
"""The project's name on trackio and W&B. The variable WANDB_PROJECT changes the name on W&B."""

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""For each tracker, its packages; one of them must be installed."""

SAMPLES = "eval/samples"
"""The name of the table of an evaluation's transcripts."""

SAMPLE_COUNT = 4
"""The number of an evaluation's transcripts that trackers get."""


def check_report_to(setting: str | Sequence[str]) -> list[str]:
    """The names of the trackers in the setting `report_to`; `none` is left out.

    Args:
        setting: The setting `report_to`.

    Raises:
        SettingsError: If a tracker is unknown, or its package is not installed.
    """
    names = [setting] if isinstance(setting, str) else list(setting)
    names = [name for name in names if name != "none"]
    for name in names:
        if not isinstance(name, str) or name not in PACKAGES:
            raise SettingsError(
                f"report_to: {name!r} is unknown{nearest(str(name), PACKAGES)}; "
                f"choose from none, {', '.join(PACKAGES)}"
            )
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise SettingsError(
                f"report_to={name} needs a package that is not installed: "
                f"pip install {PACKAGES[name][0]}"
            )
    if "wandb" in names:
        os.environ.setdefault("WANDB_PROJECT", PROJECT)
    return names


class Reporter:
    """Reports a run's figures through accelerate's trackers, from the first process only.

    Args:
        report_to: The setting `report_to`; see `check_report_to`.
        name: The run's name.
        folder: The folder of TensorBoard's files. Each start of the run has a folder below `runs/`
            there, as with TRL's trainers.
        settings: The run's settings, which trackio and W&B store with the figures.

    Raises:
        SettingsError: If a tracker is unknown, or its package is not installed.
    """

    def __init__(
        self, report_to: str | Sequence[str], name: str, folder: Path, settings: Mapping[str, Any]
    ) -> None:
        self._trackers: list[tuple[str, Any]] = []
        kinds = check_report_to(report_to)
        for kind in kinds if processes().is_main_process else ():
            if kind == "tensorboard":
                tracker = LOGGER_TYPE_TO_CLASS[kind](".", folder / default_logdir())
            else:
                project = os.environ.get("WANDB_PROJECT", PROJECT) if kind == "wandb" else PROJECT
                tracker = LOGGER_TYPE_TO_CLASS[kind](project, name=name)
            tracker.start()
            if kind != "tensorboard":  # its table of settings only holds numbers and texts
                tracker.store_init_configuration(dict(settings))
            self._trackers.append((kind, tracker))

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Report the figures of an optimizer step."""
        for _, tracker in self._trackers:
            tracker.log(dict(figures), step=step)

    def evaluation(
        self, step: int, figures: Mapping[str, float], transcripts: Sequence[Transcript]
    ) -> None:
        """Report an evaluation, with some of its transcripts as text or a table.

        Args:
            step: The number of the optimizer step.
            figures: The figures.
            transcripts: The transcripts of the evaluation.
        """
        self.log(step, figures)
        for kind, tracker in self._trackers:
            if kind == "tensorboard":
                tracker.tracker.add_text(SAMPLES, samples_text(transcripts), step)
            else:
                tracker.log({SAMPLES: _table(kind, transcripts)}, step=step)

    def close(self) -> None:
        """Write the pending figures and close the trackers."""
        for _, tracker in self._trackers:
            tracker.finish()


class TrainerReporter:
    """Reports evaluations through the trackers of a trainer of transformers.

    Args:
        trainer: The trainer.
        report_to: The setting `report_to`; see `check_report_to`.
    """

    def __init__(self, trainer: Any, report_to: str | Sequence[str]) -> None:
        self._trainer = trainer
        self._kinds = {INTEGRATION_TO_CALLBACK[kind]: kind for kind in check_report_to(report_to)}

    def evaluation(
        self, step: int, figures: Mapping[str, float], transcripts: Sequence[Transcript]
    ) -> None:
        """Report an evaluation; see `Reporter.evaluation`.

        Args:
            step: The number of the optimizer step, which the trainer has reached.
            figures: The figures.
            transcripts: The transcripts of the evaluation.
        """
        trainer = self._trainer
        # transformers turns this prefix into `eval/`, and puts `train/` before all other names.
        logs = {name.replace("eval/", "eval_", 1): value for name, value in figures.items()}
        for callback in trainer.callback_handler.callbacks:
            if (kind := self._kinds.get(type(callback))) is None:
                continue
            state = trainer.args, trainer.state, trainer.control
            callback.on_log(*state, model=trainer.model, logs=dict(logs))
            if kind == "tensorboard":
                callback.tb_writer.add_text(SAMPLES, samples_text(transcripts), step)
                callback.tb_writer.flush()
            else:
                table = _table(kind, transcripts)
                importlib.import_module(kind).log({SAMPLES: table, "train/global_step": step})


def sample_rows(transcripts: Sequence[Transcript]) -> list[dict[str, Any]]:
    """The rows of a table of the first transcripts.

    Args:
        transcripts: The transcripts of an evaluation.
    """
    return [
        {
            "problem": transcript.problem.id,
            "reward": transcript.reward,
            "right": transcript.correct,
            "calls": len(transcript.calls),
            "calls ok": sum(call.ok for call in transcript.calls),
            "end": str(transcript.stop_reason),
            "response": transcript.response_text,
        }
        for transcript in transcripts[:SAMPLE_COUNT]
    ]


def samples_text(transcripts: Sequence[Transcript]) -> str:
    """The rows of `sample_rows` as Markdown, with each response as a block of code.

    Args:
        transcripts: The transcripts of an evaluation.
    """
    parts = []
    for row in sample_rows(transcripts):
        response = row.pop("response")
        facts = ", ".join(f"{name}: {value}" for name, value in row.items())
        parts.append(f"{facts}\n\n{textwrap.indent(response, '    ', lambda line: True)}")
    return "\n\n".join(parts)


def _table(kind: str, transcripts: Sequence[Transcript]) -> Any:
    """The rows of `sample_rows` as a table of trackio or W&B."""
    frame = importlib.import_module("pandas").DataFrame(sample_rows(transcripts))
    return importlib.import_module(kind).Table(dataframe=frame)
