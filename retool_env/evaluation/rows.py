"""Episodes of an evaluation as flat rows: one row for each episode, one for each call.

Rows are made one at a time, so an evaluation of any length needs little memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from retool_env.errors import DataError
from retool_env.evaluation.cost import Price
from retool_env.evaluation.identity import ModelIdentity
from retool_env.evaluation.kinds import kind_of
from retool_env.evaluation.records import (
    EPISODES,
    EVAL,
    OLD_EPISODES,
    OLD_EVAL,
    EpisodeRecord,
    EvalRecord,
    read_episodes,
    read_record,
)
from retool_env.files import read_text
from retool_env.protocol.hermes import RESPONSE_CLOSE, RESPONSE_OPEN
from retool_env.protocol.tags import RESULT_CLOSE, RESULT_OPEN
from retool_env.protocol.turn import TurnKind
from retool_env.transcript import Transcript

Kind = Literal["text", "int", "float", "bool", "texts"]
"""The type of a column; `texts` is a list of texts."""

_KEY_COLUMNS: dict[str, Kind] = {
    "model": "text",
    "env": "text",
    "problem": "text",
    "sample": "int",
}

EPISODE_COLUMNS: dict[str, Kind] = {
    **_KEY_COLUMNS,
    "seed": "int",
    "status": "text",
    "correct": "bool",
    "reward": "float",
    "stop_reason": "text",
    "answer": "text",
    "gold_answer": "text",
    "question": "text",
    "response": "text",
    "interpreter": "bool",
    "protocol": "text",
    "revision": "int",
    "metadata": "text",
    "turns": "int",
    "call_count": "int",
    "calls_ran": "int",
    "outcomes": "texts",
    "model_tokens": "int",
    "response_tokens": "int",
    "requests": "int",
    "prompt_tokens": "int",
    "completion_tokens": "int",
    "cached_tokens": "int",
    "cost": "float",
    "model_seconds": "float",
    "tool_seconds": "float",
}
"""The columns of an episode, in their order. The page of records explains each."""

CALL_COLUMNS: dict[str, Kind] = {
    **_KEY_COLUMNS,
    "call": "int",
    "program": "text",
    "outcome": "text",
    "exception": "text",
    "error": "text",
    "form": "text",
    "position": "int",
    "output": "text",
    "seconds": "float",
    "fault": "text",
    "injected": "bool",
}
"""The columns of a call, in their order."""


def describe(folder: Path) -> EvalRecord:
    """Reads the record of an evaluation, also from the folder of an earlier version.

    An earlier version wrote fewer fields; the others are then empty.

    Raises:
        DataError: The folder does not hold an evaluation, or its record is damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} was not found: name the folder of an evaluation")
    if (folder / EVAL).exists():
        return read_record(folder)
    if (kind := kind_of(folder)) and "evaluation" not in kind:
        raise DataError(f"{folder} holds {kind}, not an evaluation: name a folder of `retool eval`")
    if (folder / OLD_EVAL).exists() or (folder / OLD_EPISODES).exists():
        return _old_record(folder)
    if (folder / EPISODES).exists():
        return read_record(folder)  # its error says that the record is missing
    below = sorted(path.parent for path in folder.glob(f"*/{EVAL}"))
    if below:
        names = ", ".join(str(path) for path in below)
        raise DataError(f"{folder} holds {len(below)} evaluations: name one of them, {names}")
    raise DataError(
        f"{folder} is not the folder of an evaluation: neither {EVAL} nor {OLD_EPISODES} was found"
    )


def _old_record(folder: Path) -> EvalRecord:
    path = folder / OLD_EVAL
    try:
        record = json.loads(read_text(path))
        return _of_results(folder, record, record["command"])
    except FileNotFoundError:  # the evaluation was stopped before its end
        return _of_results(folder, {}, {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error!r:.200}") from None


def _of_results(folder: Path, record: dict[str, Any], command: dict[str, str]) -> EvalRecord:
    """The record of an evaluation, of the values of a `results.json`."""
    api = command.get("api", "None")
    name = command.get("model", "unknown")
    kind: Literal["api", "checkpoint", "hub"] = "checkpoint" if Path(name).is_dir() else "hub"
    model = ModelIdentity(name, kind) if api == "None" else ModelIdentity(name, "api", url=api)
    numbers = {key: command.get(key, "") for key in ("temperature", "top_p", "max_tokens")}
    return EvalRecord(
        name=folder.resolve().name,
        model=model,
        env=command.get("env", "unknown"),
        settings=record.get("settings", {}),
        rules={},
        prompt="",
        problems=int(record.get("problems") or 0),
        fingerprint="",
        sampling={key: float(text) for key, text in numbers.items() if _is_number(text)},
        k=int(command.get("k", 1)),
        seed=int(command.get("seed", 0)),
        checkpoint_task=record.get("checkpoint_task"),
        command=command,
        versions=record.get("versions", {}),
        revision=record.get("revision", 1),
        seconds=record.get("seconds", 0.0),
        status="finished" if record else "stopped",
        usage=record.get("usage"),
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def price_of(record: EvalRecord) -> Price | None:
    """The price of the model's tokens; `None` where no price was given."""
    price = record.price
    if price is None:
        return None
    return Price(price["prompt"] or 0.0, price["completion"] or 0.0, price.get("cached"))


def episodes_of(folder: Path) -> Iterator[EpisodeRecord]:
    """Yields the episodes of a folder without their token ids.

    Raises:
        DataError: A record is damaged.
    """
    return read_episodes(folder, tokens=False)


def episode_row(episode: EpisodeRecord, record: EvalRecord) -> dict[str, Any]:
    """The values of `EPISODE_COLUMNS`. A value that is not known is `None`."""
    transcript, usage = episode.transcript, episode.usage
    price = price_of(record)
    calls = transcript.calls
    with_tokens = transcript.spans[0].token_ids is not None
    problem = transcript.problem
    reason = transcript.stop_reason
    return clean(
        {
            "model": episode.model,
            "env": record.env,
            "problem": episode.problem,
            "sample": episode.sample,
            "seed": episode.seed,
            "status": "failed" if episode.failed else "finished",
            "correct": transcript.correct,
            "reward": transcript.reward,
            "stop_reason": None if reason is None else str(reason),
            "answer": transcript.answer,
            "gold_answer": problem.answer,
            "question": problem.question,
            "response": transcript.response_text,
            "interpreter": transcript.interpreter,
            "protocol": transcript.protocol,
            "revision": transcript.revision,
            "metadata": json.dumps(dict(problem.metadata)),
            "turns": sum(span.author == "model" for span in transcript.spans),
            "call_count": len(calls),
            "calls_ran": sum(call.ok for call in calls),
            "outcomes": [str(call.execution.outcome) for call in calls],
            "model_tokens": sum(transcript.loss_mask) if with_tokens else None,
            "response_tokens": len(transcript.completion_ids) if with_tokens else None,
            "requests": usage and usage.requests,
            "prompt_tokens": usage and usage.prompt_tokens,
            "completion_tokens": usage and usage.completion_tokens,
            "cached_tokens": usage and usage.cached_tokens,
            "cost": price.of(usage) if price and usage else None,
            "model_seconds": _seconds(transcript, "model"),
            "tool_seconds": _seconds(transcript, "env"),
        }
    )


def call_rows(episode: EpisodeRecord, record: EvalRecord) -> Iterator[dict[str, Any]]:
    """Yields the values of `CALL_COLUMNS` for each call of an episode, in their order."""
    for number, call in enumerate(episode.transcript.calls):
        execution = call.execution
        yield clean(
            {
                "model": episode.model,
                "env": record.env,
                "problem": episode.problem,
                "sample": episode.sample,
                "call": number,
                "program": call.program,
                "outcome": str(execution.outcome),
                "exception": execution.exception,
                "error": execution.error,
                "form": call.form,
                "position": call.position,
                "output": execution.stdout,
                "seconds": execution.duration,
                "fault": execution.fault and execution.fault.kind,
                "injected": execution.fault and execution.fault.injected,
            }
        )


def _seconds(transcript: Transcript, author: str) -> float:
    return round(sum(span.seconds for span in transcript.response if span.author == author), 6)


def conversation(transcript: Transcript) -> list[dict[str, Any]]:
    """An episode as chat messages: `role`, `content`, and the program that a message runs.

    An assistant's message whose program was run has the key `program`, and its content is the text
    before it. The result follows as a message of the role `tool`.
    """
    messages: list[dict[str, Any]] = [{"role": "user", "content": transcript.spans[0].text}]
    turns = iter(transcript.turns)
    programs = iter(transcript.calls)
    spans = transcript.response
    for index, span in enumerate(spans):
        if span.author == "model":
            turn = next(turns)
            message: dict[str, Any] = {"role": "assistant", "content": span.text}
            run = index + 1 < len(spans) and spans[index + 1].execution is not None
            if run and turn.kind is TurnKind.CODE:
                message["content"] = span.text[: turn.start].rstrip()
                message["program"] = next(programs).program
            messages.append(message)
        elif "program" in messages[-1]:
            messages.append({"role": "tool", "content": _result(span.text)})
        else:
            messages.append({"role": "user", "content": span.text})
    return messages


def _result(text: str) -> str:
    """The output of a program without the tags around it, as the model saw it."""
    for before, after in ((RESULT_OPEN, RESULT_CLOSE), (RESPONSE_OPEN, RESPONSE_CLOSE)):
        start, end = text.find(before), text.rfind(after)
        if 0 <= start < end:
            return text[start + len(before) : end].strip("\n")
    return text


def clean(value: Any) -> Any:
    r"""A value whose texts can be written as UTF-8; half a surrogate pair becomes `\udXXX`.

    Example:
        >>> clean({"a": ["x", "\ud800"]})
        {'a': ['x', '\\ud800']}
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "backslashreplace").decode()
        return value
    if isinstance(value, dict):
        return {key: clean(part) for key, part in value.items()}
    if isinstance(value, list):
        return [clean(part) for part in value]
    return value
