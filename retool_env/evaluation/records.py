"""The folder of one evaluation, which can be resumed, read without this project, and compared.

| file             | content                                                         |
|------------------|-----------------------------------------------------------------|
| `eval.json`      | the model, the task and the settings: `EvalRecord`              |
| `episodes.jsonl` | one line an episode, appended when it ends: `EpisodeRecord`     |
| `usage.jsonl`    | the tokens of each answered request, also of lost episodes      |
| `figures.json`   | the figures, with numbers of cases, intervals and definitions   |
| `lock`           | held by the process that works in the folder                    |

A line is written whole and at once, so that a killed process loses no finished episode. If an
episode has several lines (it failed and was tried again), the last line counts. The JSON Schema is
in `docs/evaluation/records.md`. Folders of older versions (`results.json`) are read as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from retool_env.errors import DataError
from retool_env.evaluation.fields import checked, without_default
from retool_env.evaluation.identity import ModelIdentity
from retool_env.files import read_lines, read_text
from retool_env.provenance import REVISION
from retool_env.rollout.policy import Usage
from retool_env.rules import Rules
from retool_env.transcript import StopReason, Transcript

SCHEMA = 1
"""The version of the folder's format. Later versions are refused, earlier ones are read."""

EVAL, EPISODES, USAGE, LOCK = "eval.json", "episodes.jsonl", "usage.jsonl", "lock"
FIGURES, OLD_EVAL, OLD_EPISODES = "figures.json", "results.json", "transcripts.jsonl"

Key = tuple[str, int]
"""An episode of an evaluation: the problem's id and the number of the sample, from 0."""

Status = Literal["running", "finished", "stopped"]

_KINDS: dict[str, Any] = {
    **{"model": dict, "rules": dict, "sampling": dict},
    **{"problems": int, "k": int, "revision": int, "seconds": int | float},
    **{"name": str, "env": str, "prompt": str, "fingerprint": str, "price": dict | None},
}
"""The types of the fields of `EvalRecord` that a reader computes with or shows."""

RULES_OF_ONE_RUN = ("prompt_template", "reward")
"""The rules that change no figure: prompts are compared by their text, and no reward is shown."""


@dataclass(frozen=True)
class EvalRecord:
    """The model, the task and the settings of an evaluation: `eval.json`."""

    also_required: ClassVar[tuple[str, ...]] = ()
    """The fields with a default that a file must have nevertheless."""
    name: str
    """The evaluation's name: its folder below `runs/eval`."""
    model: ModelIdentity
    """The model."""
    env: str
    """The environment's id."""
    settings: dict[str, Any]
    """The environment's settings as given by the command and the checkpoint."""
    rules: dict[str, Any]
    """The resolved settings of the episodes, every default included."""
    prompt: str
    """The prompt template, with `{query}`."""
    problems: int
    """Number of problems."""
    fingerprint: str
    """SHA-256 of the problems: ids, questions and answers, in their order."""
    sampling: dict[str, Any]
    """The sampling settings of the requests. `left_out` names the fields that the API refused."""
    k: int
    """Number of episodes for each problem."""
    seed: int
    """The seed of all sampling."""
    checkpoint_task: dict[str, Any] | None = None
    """The checkpoint's `retool.json`; `None` where there is no such file or it was ignored."""
    command: dict[str, Any] = field(default_factory=dict)
    """The options of the command line."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Python and of packages."""
    commit: str | None = None
    """The git commit of the code; `None` for an installed package."""
    revision: int = REVISION
    """The revision of the environment."""
    price: dict[str, float | None] | None = None
    """Dollars for a million tokens; `None` where no price was given."""
    model_date: str | None = None
    """The date of the model's training data, from `--model-date`; `None` where none was given."""
    published: dict[str, int] = field(default_factory=dict)
    """Number of problems by date of publication; problems without a known date are left out."""
    started: str = ""
    """Date and time of the first start, in ISO 8601."""
    seconds: float = 0.0
    """Seconds of work, all starts together."""
    status: Status = "running"
    """`finished` once every episode has ended; `stopped` if the work ended earlier."""
    usage: dict[str, int] | None = None
    """Tokens that an API counted, all starts together."""
    cost: float | None = None
    """Dollars, by `price`; `None` without a price."""
    answered_as: list[dict[str, str | None]] = field(default_factory=list)
    """The distinct values of `model` and `system_fingerprint` in an API's answers, as they came."""
    left_out: list[str] = field(default_factory=list)
    """Fields of the requests that the API refused, and that were therefore left out of further
    requests: `seed`, `stop`, `parallel_tool_calls`. Of `max_tokens` the name alone was refused: it
    was sent as `max_completion_tokens`."""
    schema: int = SCHEMA
    """The version of the folder's format."""

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values; `from_json` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Rebuilds a record from `to_json`'s values.

        Raises:
            ValueError: A later version wrote the record, or a field is missing or of another type.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        record = checked(record, SCHEMA, [*without_default(cls), *cls.also_required])
        known = {name: value for name, value in record.items() if name in names}
        for name, kind in _KINDS.items():
            if name in known and not isinstance(known[name], kind):
                raise ValueError(f"{name} has the wrong value {known[name]!r:.40}")
        try:
            return cls(**{**known, "model": ModelIdentity.from_json(known["model"])})
        except (TypeError, KeyError) as error:
            raise ValueError(str(error)) from None

    def differences(self, other: EvalRecord) -> list[str]:
        """The settings in which another evaluation differs, as `name: mine, theirs`.

        Numbers of samples and of problems, prices, versions, dates and an API's address may differ
        between two starts of one evaluation and are left out.
        """
        mine, theirs = (frozen_settings(record) for record in (self, other))
        if self.model.weights == other.model.weights is not None:
            mine["model"] = theirs["model"]  # the same weights are the same model at any path
        return [
            f"{name}: {short_value(mine.get(name))}, not {short_value(theirs.get(name))}"
            for name in mine | theirs
            if mine.get(name) != theirs.get(name)
        ]


def frozen_settings(record: EvalRecord) -> dict[str, Any]:
    """The settings by name that stay the same between two starts of one evaluation.

    Args:
        record: The record of the evaluation.
    """
    values = {
        "model": record.model.name,
        "weights": record.model.weights,
        "commit of the model": record.model.revision,
        "env": record.env,
        "seed": record.seed,
        "prompt": record.prompt,
        "revision": record.revision,
        **{f"rules.{name}": value for name, value in all_rules(record.rules).items()},
        **{f"sampling.{name}": value for name, value in record.sampling.items()},
    }
    return json.loads(json.dumps(values))  # a tuple equals the list that a file has


def short_value(value: object) -> str:
    """The value of a setting as a text of at most 60 characters; of a digest its beginning.

    Args:
        value: The value.
    """
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{40,}", value):
        return f"{value[:12]}…"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def rules_to_json(rules: Rules) -> dict[str, Any]:
    """The settings of an episode as plain JSON values; a reward function is written as its name."""
    values = dataclasses.asdict(dataclasses.replace(rules))
    reward = rules.reward
    values["reward"] = reward if isinstance(reward, str) else getattr(reward, "__name__", "own")
    return values


def all_rules(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a record's episodes; a setting that is newer than the record had its default.

    Args:
        recorded: The rules of the record.
    """
    return json.loads(json.dumps({**rules_to_json(Rules()), **recorded}))  # tuples become lists


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode of an evaluation: a line of `episodes.jsonl`."""

    model: str
    """The model's name."""
    problem: str
    """The problem's id."""
    sample: int
    """The number of the episode among the episodes of its problem, from 0."""
    seed: int
    """The evaluation's seed. With problem and sample it determines the sampling."""
    transcript: Transcript
    """The episode."""
    usage: Usage | None = None
    """Tokens that an API counted, of all turns and attempts; `None` for a local model."""
    error: str | None = None
    """The words of an API that refused a request of the episode; `None`: nothing was refused."""

    @property
    def key(self) -> Hashable:
        """The problem's id and the sample."""
        return self.problem, self.sample

    @property
    def failed(self) -> bool:
        """Whether an infrastructure failure ended the episode."""
        return self.transcript.stop_reason is StopReason.INFRASTRUCTURE

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values. `calls` repeats what a reader looks for first."""
        calls = [
            {
                "outcome": str(call.execution.outcome),
                "exception": call.execution.exception,
                "form": call.form,
                "program": call.program,
                "fault": None
                if fault is None
                else {"kind": fault.kind, "injected": fault.injected},
            }
            for call in self.transcript.calls
            for fault in [call.execution.fault]
        ]
        return {
            "schema": SCHEMA,
            "model": self.model,
            "problem": self.problem,
            "sample": self.sample,
            "seed": self.seed,
            "status": "failed" if self.failed else "finished",
            "correct": self.transcript.correct,
            "usage": None if self.usage is None else dataclasses.asdict(self.usage),
            "error": self.error,
            "calls": calls,
            "transcript": self.transcript.to_json(),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], tokens: bool = True) -> Self:
        """Rebuilds a record from `to_json`'s values.

        Args:
            record: The values.
            tokens: Whether token ids and log-probs are kept. Without them a record needs a
                fraction of the memory: zeros replace the ids, since figures only count them.

        Raises:
            ValueError: The values are not an episode, or a later version wrote them.
        """
        record = checked(record, SCHEMA, ("model", "problem", "sample", "seed", "transcript"))
        transcript = transcript_from_json(record["transcript"], tokens)
        usage = record.get("usage")
        return cls(
            record["model"],
            record["problem"],
            record["sample"],
            record["seed"],
            transcript,
            None if usage is None else Usage(**usage),
            record.get("error"),
        )


@functools.lru_cache(maxsize=4096)
def _blanks(count: int) -> tuple[int, ...]:
    return (0,) * count


def transcript_from_json(record: dict[str, Any], tokens: bool) -> Transcript:
    """Rebuilds a transcript from the values of `Transcript.to_json`.

    Args:
        record: The values.
        tokens: See `EpisodeRecord.from_json`.
    """
    if not tokens:
        spans = [
            {
                **span,
                "token_ids": None if span["token_ids"] is None else _blanks(len(span["token_ids"])),
                **{"logprobs": None, "trained_logprobs": None, "weight_runs": ()},
            }
            for span in record["spans"]
        ]
        record = {**record, "spans": spans}
    return Transcript.from_json(record)


def read_record(folder: str | Path) -> EvalRecord:
    """Reads `eval.json`.

    Args:
        folder: The folder of an evaluation.

    Raises:
        DataError: The file is missing, damaged, or of a later version.
    """
    path = Path(folder) / EVAL
    try:
        return EvalRecord.from_json(json.loads(read_text(path)))
    except FileNotFoundError:
        raise DataError(
            f"{path} was not found: {folder} is not the folder of an evaluation"
        ) from None
    except (ValueError, RecursionError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def read_episodes(folder: str | Path, tokens: bool = True) -> Iterator[EpisodeRecord]:
    """Yields the episodes of an evaluation, also of the folders of older versions.

    Of an episode with several lines the last one is taken. A last line that is cut off, since its
    writer was killed or still writes, is left out.

    Args:
        folder: The folder of an evaluation.
        tokens: Whether token ids and log-probs are kept.

    Raises:
        DataError: A line is damaged; the message names it.
    """
    folder = Path(folder)
    path = folder / EPISODES
    if not path.exists() and (folder / OLD_EPISODES).exists():
        yield from _old_episodes(folder, tokens)
        return
    yield from last_records(path, EpisodeRecord, _head_key, tokens)


def last_records[R: EpisodeRecord](
    path: Path, kind: type[R], head_key: Callable[[bytes], Hashable], tokens: bool = True
) -> Iterator[R]:
    """Yields the records of a file of episodes; of several lines with one key, the last one.

    Args:
        path: The file; it may be missing.
        kind: The class of the records.
        head_key: A function from the beginning of a line to the key of its record, which spares
            reading the whole line; `None` if the beginning has another form.
        tokens: Whether token ids and log-probs are kept.

    Raises:
        DataError: A line is damaged; the message names it.
    """
    if not path.exists():
        return
    last: dict[Hashable, int] = {}
    for number, line in enumerate(read_lines(path), 1):
        if line.endswith(b"\n"):
            key = head_key(line)
            last[_parsed(path, number, line, kind, False).key if key is None else key] = number
    wanted = set(last.values())
    for number, line in enumerate(read_lines(path), 1):
        if number in wanted:
            yield _parsed(path, number, line, kind, tokens)


_TEXT = r'("(?:[^"\\]|\\.)*")'
_HEAD = re.compile(
    rf'\{{"schema": \d+, "model": {_TEXT}, "problem": {_TEXT}, "sample": (\d+),'.encode()
)


def _head_key(line: bytes) -> Key | None:
    match = _HEAD.match(line)
    return None if match is None else (json.loads(match[2]), int(match[3]))


def _parsed[R: EpisodeRecord](
    path: Path, number: int, line: bytes, kind: type[R], tokens: bool
) -> R:
    try:
        return kind.from_json(json.loads(line), tokens)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number} is not an episode ({error!s:.200}): remove the line, and its "
            "episode runs again"
        ) from None


def _old_episodes(folder: Path, tokens: bool) -> Iterator[EpisodeRecord]:
    """The episodes of a folder that has `transcripts.jsonl`: groups of samples, in any order."""
    path = folder / OLD_EPISODES
    name, seed = "unknown", 0
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        command = json.loads(read_text(folder / OLD_EVAL))["command"]
        name, seed = str(command["model"]), int(command["seed"])
    samples: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.endswith(b"\n"):
            break
        try:
            transcript = transcript_from_json(json.loads(line), tokens)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not a transcript ({error!r:.200})") from None
        problem = transcript.problem.id
        sample = samples[problem] = samples.get(problem, -1) + 1
        yield EpisodeRecord(name, problem, sample, seed, transcript)


def read_usage(folder: str | Path) -> Usage:
    """Adds up `usage.jsonl`: the tokens of all answered requests.

    Args:
        folder: The folder of an evaluation.

    Raises:
        DataError: A line is damaged; the message names it.
    """
    path = Path(folder) / USAGE
    total = Usage()
    for number, line in enumerate(read_lines(path) if path.exists() else (), 1):
        if not line.endswith(b"\n"):
            break
        try:
            total += Usage(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{path}, line {number} is damaged ({error!r:.100}): remove it"
            ) from None
    return total
