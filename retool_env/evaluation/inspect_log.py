"""An evaluation as a log of Inspect AI (https://inspect.aisi.org.uk), which `inspect view` shows.

An episode becomes a sample: its problem is the sample's id, its number the epoch. A run of a
program is a tool call with its result. The score `correct` is `C` or `I`; an episode that is not
scored has an error and no score. The log is written without Inspect's package, sample by sample:

| file      | form                                                                  |
|-----------|-----------------------------------------------------------------------|
| `.eval`   | a zip archive: a JSON file for each sample, summaries, and the header |
| `.json`   | one JSON object: the header, then the samples                         |

Tests read both forms with Inspect's own package, where it is installed.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from retool_env.errors import SettingsError
from retool_env.evaluation.records import FIGURES, EpisodeRecord, EvalRecord
from retool_env.evaluation.rows import clean, conversation, episode_row
from retool_env.files import read_text
from retool_env.metrics.estimators import cluster_mean
from retool_env.protocol.calls import TOOL_NAME
from retool_env.transcript import StopReason

VERSION = 2
"""The version of Inspect's log format."""

SCORER = "correct"
"""The name of the score."""

_STATUS = {"finished": "success", "stopped": "cancelled", "running": "started"}
_GENERATE = ("temperature", "top_p", "max_tokens")
_SUMMARY = (
    *("id", "epoch", "input", "target", "metadata", "scores", "model_usage"),
    *("total_time", "working_time", "uuid"),
)


def write_inspect_log(
    folder: Path, episodes: Iterable[EpisodeRecord], record: EvalRecord, out: Path
) -> Path:
    """Writes a log.

    Args:
        folder: The folder of the evaluation; its figures go to the log's header.
        episodes: The episodes, read once.
        record: The record of the evaluation.
        out: A file that ends in `.eval` or `.json`, or a folder, which gets a `.eval` file of the
            name that Inspect would choose.

    Returns:
        The log.

    Raises:
        SettingsError: There is no episode.
    """
    started = _started(folder, record)
    if out.suffix not in (".eval", ".json"):
        stamp = started.isoformat(timespec="seconds").replace(":", "-")
        out = out / f"{stamp}_{record.env}_{_identifier(record)}.eval"
    if out.exists() and not _is_ours(out):
        raise SettingsError(f"{out} is not a log of retool-env: choose another --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    try:
        with tempfile.TemporaryFile("w+b", dir=out.parent) as held:
            write = _write_zip if out.suffix == ".eval" else _write_json
            write(part, held, _Log(folder, record, started, episodes))
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return out


def _is_ours(path: Path) -> bool:
    """Whether a file is a log of Inspect AI that this module wrote."""
    try:
        if path.suffix == ".eval":
            with zipfile.ZipFile(path) as archive:
                head = archive.read("_journal/start.json")
        else:
            with open(path, "rb") as file:
                head = file.read(1 << 20)  # the samples stand last
    except (OSError, KeyError, zipfile.BadZipFile):
        return False
    return b'"plan": {"name": "retool-env"' in head


def _write_zip(part: Path, held: IO[bytes], log: _Log) -> None:
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        with _json_list(held) as add:
            for sample in log.samples():
                archive.writestr(
                    f"samples/{sample['id']}_epoch_{sample['epoch']}.json", json.dumps(sample)
                )
                add(_summary(sample))
        header = log.header()
        start = {"version": VERSION, "eval": header["eval"], "plan": header["plan"]}
        archive.writestr("_journal/start.json", json.dumps(start))
        held.seek(0)
        with archive.open("summaries.json", "w") as file:
            shutil.copyfileobj(held, file)
        archive.writestr("header.json", json.dumps(header))


def _write_json(part: Path, held: IO[bytes], log: _Log) -> None:
    with _json_list(held) as add:
        for sample in log.samples():
            add(sample)
    held.seek(0)
    with open(part, "wb") as file:
        # Inspect reads a header alone by stopping at the samples, so they stand last.
        file.write(json.dumps(log.header()).encode()[:-1] + b', "samples": ')
        shutil.copyfileobj(held, file)
        file.write(b"}\n")


@contextlib.contextmanager
def _json_list(file: IO[bytes]) -> Iterator[Any]:
    """Writes a JSON list to a file, an item at a time."""
    separator = b"["

    def add(item: dict[str, Any]) -> None:
        nonlocal separator
        file.write(separator + json.dumps(item).encode())
        separator = b",\n"

    yield add
    file.write(b"]" if separator != b"[" else b"[]")


def _summary(sample: dict[str, Any]) -> dict[str, Any]:
    """The part of a sample that a list of samples shows."""
    summary = {name: sample[name] for name in _SUMMARY if name in sample}
    if "error" in sample:
        summary["error"] = sample["error"]["message"]
    return {**summary, "completed": True, "message_count": len(sample["messages"])}


class _Log:
    """The parts of a log. The header is complete after the samples have been taken."""

    def __init__(
        self,
        folder: Path,
        record: EvalRecord,
        started: datetime.datetime,
        episodes: Iterable[EpisodeRecord],
    ) -> None:
        self._folder, self._record, self._started = folder, record, started
        self._episodes = episodes
        self._cases: list[tuple[str, float]] = []
        self._problems: dict[str, None] = {}
        self._count = 0
        self._usage: Counter[str] = Counter()

    def samples(self) -> Iterator[dict[str, Any]]:
        """Yields an `EvalSample` for each episode."""
        for episode in self._episodes:
            self._count += 1
            self._problems[episode.problem] = None
            if episode.transcript.scored:
                correct = bool(episode.transcript.correct)
                self._cases.append((episode.problem, float(correct)))
            sample = sample_of(episode, self._record)
            for used in sample["model_usage"].values():
                numbers = {name: value for name, value in used.items() if value is not None}
                self._usage.update(numbers)
            yield sample
        if not self._count:
            raise SettingsError("the evaluation has no episode yet, so there is nothing to export")

    def header(self) -> dict[str, Any]:
        """An `EvalLog` without samples."""
        record = self._record
        config = {name: record.sampling[name] for name in _GENERATE if name in record.sampling}
        ended = self._started + datetime.timedelta(seconds=record.seconds)
        usage = {record.model.name: dict(self._usage)} if self._usage else {}
        stats = {
            "started_at": self._started.isoformat(),
            "completed_at": ended.isoformat(),
            "model_usage": usage,
        }
        header = {
            "version": VERSION,
            "status": _STATUS[record.status],
            "eval": self._spec(config),
            "plan": {"name": "retool-env", "steps": [], "config": config},
            "results": self._results(),
            "stats": stats,
        }
        return clean(_finite(header))

    def _spec(self, config: dict[str, Any]) -> dict[str, Any]:
        record, name = self._record, _identifier(self._record)
        spec: dict[str, Any] = {
            **{key: name for key in ("eval_id", "run_id", "task_id")},
            "created": self._started.isoformat(),
            "task": record.env,
            "task_version": record.revision,
            "task_args": record.settings,
            "dataset": {
                "name": record.env,
                "samples": len(self._problems),
                "sample_ids": list(self._problems),
                "shuffled": False,
            },
            "model": record.model.name,
            "model_generate_config": config,
            "model_base_url": record.model.url,
            "config": {"epochs": record.k, "epochs_reducer": ["mean"]},
            "packages": record.versions,
            "metadata": {
                "name": record.name,
                "seed": record.seed,
                "prompt": record.prompt,
                "rules": record.rules,
                "sampling": record.sampling,
                "weights": record.model.weights,
                "model_revision": record.model.revision,
                "problems": record.fingerprint,
                "checkpoint_task": record.checkpoint_task,
            },
            "scorers": [{"name": SCORER}],
        }
        if record.commit:
            dirty = record.commit.endswith("+")
            commit = record.commit.removesuffix("+")
            spec["revision"] = {"type": "git", "origin": "", "commit": commit, "dirty": dirty}
        return spec

    def _results(self) -> dict[str, Any]:
        accuracy = cluster_mean(self._cases, share=True)
        values = {
            "accuracy": accuracy.mean,
            "interval_low": accuracy.low,
            "interval_high": accuracy.high,
        }
        metrics = {
            name: {"name": name, "value": value}
            for name, value in values.items()
            if value is not None
        }
        score = {
            "name": SCORER,
            "scorer": SCORER,
            "reducer": "mean",
            "scored_samples": len(self._cases),
            "unscored_samples": self._count - len(self._cases),
            "metrics": metrics,
        }
        return {
            "total_samples": self._count,
            "completed_samples": len(self._cases),
            "scores": [score],
            "metadata": {"figures": _figures(self._folder)},
        }


def sample_of(episode: EpisodeRecord, record: EvalRecord) -> dict[str, Any]:
    """An episode as an `EvalSample` of Inspect, in plain JSON values.

    Args:
        episode: The episode.
        record: The record of the evaluation.
    """
    transcript = episode.transcript
    row = episode_row(episode, record)
    model = record.model.name
    messages = _messages(episode, model)
    seconds = row["model_seconds"] + row["tool_seconds"]
    usage = _usage(episode, row)
    last = next((m for m in reversed(messages) if m["role"] == "assistant"), None)
    output: dict[str, Any] = {"model": model, "choices": [], "completion": ""}
    if last is not None:
        cut = transcript.stop_reason is StopReason.TOKEN_BUDGET
        choice = {"message": last, "stop_reason": "max_tokens" if cut else "stop"}
        output |= {"choices": [choice], "completion": last["content"]}
    output["usage"] = usage
    kept = ("seed", "reward", "stop_reason", "interpreter", "call_count", "calls_ran")
    sample: dict[str, Any] = {
        "id": episode.problem,
        "epoch": episode.sample + 1,
        "input": row["question"],
        "target": row["gold_answer"],
        "messages": messages,
        "output": output,
        "metadata": {name: row[name] for name in kept} | dict(transcript.problem.metadata),
        "store": {},
        "events": [],
        "model_usage": {} if usage is None else {model: usage},
        "total_time": seconds,
        "working_time": seconds,
        "uuid": _hash(_identifier(record), episode.problem, str(episode.sample)),
        "attachments": {},
    }
    if transcript.scored:
        value = "C" if transcript.correct else "I"
        reason = f"the episode ended with {row['stop_reason']}"
        score = {"value": value, "answer": row["answer"], "explanation": reason}
        sample["scores"] = {SCORER: score}
    else:
        message = f"the episode is not scored: {row['stop_reason']}"
        sample["error"] = {"message": message, "traceback": "", "traceback_ansi": ""}
    return clean(_finite(sample))


def _messages(episode: EpisodeRecord, model: str) -> list[dict[str, Any]]:
    """The conversation as Inspect's messages; a program is a tool call."""
    calls = iter(episode.transcript.calls)
    messages = []
    call = ""
    for number, message in enumerate(conversation(episode.transcript)):
        role, content = message["role"], message["content"]
        made: dict[str, Any] = {"id": f"message{number}", "role": role, "content": content}
        if role == "assistant":
            made |= {"source": "generate", "model": model}
        elif role == "user" and not number:
            made["source"] = "input"
        if "program" in message:
            call = f"call{number}"
            arguments = {"code": message["program"]}
            tool = {"id": call, "function": TOOL_NAME, "arguments": arguments, "type": "function"}
            made["tool_calls"] = [tool]
        if role == "tool":
            execution = next(calls).execution
            made |= {"tool_call_id": call, "function": TOOL_NAME}
            made["metadata"] = {"outcome": str(execution.outcome), "error": execution.error}
            if fault := execution.fault:
                made["metadata"] |= {"fault": fault.kind, "injected": fault.injected}
        messages.append(made)
    return messages


def _usage(episode: EpisodeRecord, row: dict[str, Any]) -> dict[str, Any] | None:
    """The tokens of an episode: as an API counts them, or a local model's own."""
    if episode.usage is not None:
        read, written = episode.usage.prompt_tokens, episode.usage.completion_tokens
        cached: int | None = episode.usage.cached_tokens
        read -= cached or 0  # Inspect's number leaves them out
    elif row["model_tokens"] is not None:
        read, written = len(episode.transcript.prompt_ids), row["model_tokens"]
        cached = None
    else:
        return None
    return {
        "input_tokens": read,
        "output_tokens": written,
        "total_tokens": read + written + (cached or 0),
        "input_tokens_cache_read": cached,
        "total_cost": row["cost"],
    }


def _figures(folder: Path) -> dict[str, Any]:
    """The means of the evaluation's figures; empty where none were computed."""
    try:
        figures = json.loads(read_text(folder / FIGURES))["figures"]
        return {figure["key"]: figure["mean"] for figure in figures}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _started(folder: Path, record: EvalRecord) -> datetime.datetime:
    """The start of the evaluation; of an earlier version's folder, the date of its files."""
    with contextlib.suppress(ValueError):
        started = datetime.datetime.fromisoformat(record.started)
        return started if started.tzinfo else started.replace(tzinfo=datetime.UTC)
    newest = max(path.stat().st_mtime for path in folder.iterdir() if path.is_file())
    return datetime.datetime.fromtimestamp(int(newest - record.seconds), datetime.UTC)


def _identifier(record: EvalRecord) -> str:
    parts = (record.name, record.model.name, record.env, record.fingerprint, str(record.seed))
    return _hash(*parts, record.started)


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:22]


def _finite(value: Any) -> Any:
    """A value without NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
