"""Model card: the README.md of a checkpoint, which a hub shows and a colleague reads.

A trainer writes it with each checkpoint anew, out of the run's settings and records, so that a
change by hand belongs in a copy of the checkpoint. Nothing is downloaded: the licence of the base
model is known if the card of the base model lies on this machine.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agents.base.records import write_atomically
from retool_env import checkpoint_checks as checks
from retool_env.checkpoint_task import CheckpointTask, shown
from retool_env.evaluation.identity import weights_hash
from retool_env.provenance import REVISION, versions

FILE = "README.md"
"""The file's name, in the folder of the weights."""

_MOST_BYTES = 256 << 10
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FIGURES = (
    *("reward", "env/accuracy", "env/code_ratio", "env/calls_per_episode", "env/call_pass_rate"),
    *("completions/mean_length", "loss", "entropy", "kl", "eval_loss", "learning_rate", "seconds"),
)
"""The figures of a run's last step that the card shows, where there are such."""
_EVALUATED = ("accuracy/avg", "use/with_code", "recovery/")
"""Beginnings of the keys of an evaluation's figures that the card shows."""


@dataclass(frozen=True)
class ModelCard:
    """The facts about a run that its model cards tell.

    Args:
        algorithm: The name of the algorithm.
        settings: The run's settings, as plain values.
        task: The task of the training.
        folder: The run's folder, whose records the card quotes.
    """

    algorithm: str
    settings: Mapping[str, Any]
    task: CheckpointTask
    folder: Path

    def save(self, folder: Path, step: int | None = None, whole: Path | None = None) -> None:
        """Writes the card into a folder, in place of any card there.

        Args:
            folder: The folder of weights; nothing is written if it does not exist.
            step: The number of steps that the model was trained; `None`: the run's last step.
            whole: The folder of the whole model, where `folder` holds an adapter.
        """
        if folder.is_dir():
            library = "peft" if (folder / "adapter_config.json").exists() else "transformers"
            text = self.text(whole or folder, step, library)
            write_atomically(folder / FILE, text)

    def text(self, checkpoint: Path, step: int | None = None, library: str = "transformers") -> str:
        """The card, in Markdown with a YAML header.

        Args:
            checkpoint: The folder of the whole model, whose evaluation the card shows.
            step: The number of steps that the model was trained; `None`: the run's last step.
            library: The library that loads the weights.
        """
        metrics = _metrics(self.folder, step)
        name = self.settings.get("name") or self.folder.name
        parts = [
            f"---\n{yaml.safe_dump(self._header(library), sort_keys=False)}---",
            f"# {name}",
            "A language model that learned to use a code interpreter, trained by "
            f"{self.algorithm} in an environment of retool-env, after [ReTool](https://arxiv.org/abs/2504.11536).",
            self._base(),
            self._task(),
            self._training(metrics, step),
            *self._evaluations(checkpoint),
            self._evaluate(checkpoint),
        ]
        return "\n\n".join(parts) + "\n"

    def _header(self, library: str) -> dict[str, Any]:
        base = base_of(str(self.settings.get("model", "")))
        header: dict[str, Any] = {"library_name": library}
        if base.id:
            header["base_model"] = base.id
        if base.licence:
            header["license"] = base.licence
        header["pipeline_tag"] = "text-generation"
        header["tags"] = ["retool-env", "tool-use", "code-interpreter", self.algorithm]
        return header

    def _base(self) -> str:
        name = str(self.settings.get("model", ""))
        base = base_of(name)
        lines = ["## Base model", "", f"`{name or 'unknown'}`"]
        if base.id and base.id != name:
            lines[-1] += f", which comes from `{base.id}`"
        licence = f"`{base.licence}`" if base.licence else "not known: see the base model"
        return "\n".join([*lines, "", f"Licence of the base model: {licence}."])

    def _task(self) -> str:
        task = self.task
        default = CheckpointTask(task.id)
        rows = {
            "environment": task.id or "problems of a script",
            "revision": task.revision,
            "protocol": task.protocol,
        }
        for values, usual in (
            (dict(task.problems), default.problems),
            (checks.flattened(task.rules), checks.flattened(default.rules)),
        ):
            rows |= {key: value for key, value in values.items() if value != usual.get(key)}
        rows |= {f"{key} in evaluation": value for key, value in task.sampling.items()}
        text = f"## Task\n\n{_table(('setting', 'value'), rows)}\n\n"
        text += "Other settings have their defaults. `retool.json` holds all of them."
        if task.prompt_template is not None:
            text += f"\n\nThe prompt:\n\n{_block(task.prompt_template)}"
        return text

    def _training(self, metrics: Mapping[str, Any], step: int | None) -> str:
        step = step or metrics.get("step")
        rows = {
            "algorithm": self.algorithm,
            "steps": "unknown" if step is None else step,
            "seed": self.settings.get("seed", "unknown"),
            "run": self.settings.get("name") or self.folder.name,
        }
        text = f"## Training\n\n{_table(('', 'value'), rows)}"
        figures = {key: metrics[key] for key in _FIGURES if _is_figure(metrics.get(key))}
        if figures:
            text += f"\n\nFigures of step {metrics.get('step')}, of the training problems:\n\n"
            text += _table(("figure", "value"), figures)
        held_out = {k: v for k, v in metrics.items() if k.startswith("eval/") and _is_figure(v)}
        if held_out:
            text += f"\n\nFigures of step {metrics.get('step')}, of held-out problems:\n\n"
            text += _table(("figure", "value"), held_out)
        settings = yaml.safe_dump(_plain(self.settings), sort_keys=False, allow_unicode=True)
        text += f"\n\nSettings:\n\n{_block(settings, 'yaml')}"
        return text + f"\n\nVersions:\n\n{_table(('package', 'version'), versions())}"

    def _evaluations(self, checkpoint: Path) -> Iterator[str]:
        """The figures of the run's evaluations, if they are of these weights."""
        weights = None
        for path in sorted(self.folder.glob("*/figures.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                record = json.loads((path.parent / "eval.json").read_text(encoding="utf-8"))
                weights = weights or weights_hash(checkpoint)
                if weights is None or record["model"]["weights"] != weights:
                    continue
                figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
                rows = {
                    each["key"]: _interval(each)
                    for each in figures
                    if each["key"].startswith(_EVALUATED) and each["mean"] is not None
                }
                title = f"{record['env']}, {record['problems']} problems, k = {record['k']}"
                yield f"## Evaluation: {title}\n\n{_table(('figure', 'value'), rows)}"

    def _evaluate(self, checkpoint: Path) -> str:
        command = f"$ retool eval --model {os.path.relpath(checkpoint)}"
        if self.task.id is None:
            command += " --env ID"
        return (
            f"## How to evaluate\n\n{_block(command, 'console')}\n\n"
            "The command takes the task from `retool.json`. "
            f"Episodes are of revision {REVISION} of the environments; results of "
            "different revisions cannot be compared."
        )


@dataclass(frozen=True)
class Base:
    """Facts about a base model."""

    id: str | None = None
    """The model's id on the Hub."""
    licence: str | None = None
    """The licence, as the model's card names it."""


def base_of(model: str) -> Base:
    """Reads the card of a base model, if it lies on this machine.

    Args:
        model: A folder or a Hub id.
    """
    if Path(model).is_dir():
        header = _header_of(Path(model, FILE))
        base = header.get("base_model")
        name = _text(base[0] if isinstance(base, list) and base else base)
        known = name is not None and _HUB_ID.fullmatch(name)
        return Base(name if known else None, _text(header.get("license")))
    if not _HUB_ID.fullmatch(model):
        return Base()
    path: Any = None
    with contextlib.suppress(ImportError, ValueError):
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(model, FILE)
    header = _header_of(Path(path)) if isinstance(path, str) else {}
    return Base(model, _text(header.get("license")))


def _header_of(path: Path) -> dict[str, Any]:
    """The YAML header of a card; empty if there is no such card, or it cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return {}
        found = re.match(r"---\r?\n(.*?)\n---", path.read_text(encoding="utf-8"), re.DOTALL)
        header = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.isprintable() else None


def _metrics(folder: Path, step: int | None) -> dict[str, Any]:
    """The figures that were logged last, up to a step; empty without any."""
    found: dict[str, Any] = {}
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _MOST_BYTES, 0))
            lines = file.read().splitlines()
    except OSError:
        return found
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and (step is None or record.get("step", 0) <= step):
                # A step and its evaluation have a record each.
                found = found | record if record.get("step") == found.get("step") else record
    return found


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _interval(figure: Mapping[str, Any]) -> str:
    text = f"{figure['mean']:.3f}"
    if figure["low"] is not None and figure["high"] is not None:
        text += f" [{figure['low']:.3f}, {figure['high']:.3f}]"
    return text


def _table(head: tuple[str, str], rows: Mapping[str, object]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    for name, value in rows.items():
        text = f"{value:.4g}" if isinstance(value, float) else shown(value)
        text = str(value) if isinstance(value, str) else text
        lines.append(f"| {name} | {text.replace('|', '&#124;')} |")
    return "\n".join(lines)


def _block(text: str, language: str = "") -> str:
    """A code block; its fence is longer than any in the text."""
    fence = max(["``", *re.findall("`+", text)], key=len) + "`"
    end = "" if text.endswith("\n") else "\n"
    return f"{fence}{language}\n{text}{end}{fence}"


def _plain(value: Any) -> Any:
    """A setting in the types that YAML has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
