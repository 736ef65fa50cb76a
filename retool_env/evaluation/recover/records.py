"""The folder of one model in the benchmark, which can be resumed and read without this project.

| file             | content                                                              |
|------------------|----------------------------------------------------------------------|
| `recover.json`   | the model, the suite, the design and the settings: `RecoverRecord`   |
| `episodes.jsonl` | one line an episode, appended when it ends: `ArmRecord`              |
| `left_out.jsonl` | one line for each prefix that could not be reproduced: `LeftOut`     |
| `usage.jsonl`    | the tokens of each answered request, also of lost episodes           |
| `results.json`   | the figures and counts                                               |
| `lock`           | held by the process that works in the folder                         |

A line has the fields of an evaluation (`retool_env.evaluation.records`), a protocol and an arm.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from retool_env.errors import DataError
from retool_env.evaluation.folder import Records, append_line, drop_half_line, replace_json
from retool_env.evaluation.records import (
    EPISODES,
    EpisodeRecord,
    EvalRecord,
    last_records,
)
from retool_env.files import read_lines, read_text
from retool_env.problem import Problem

RECOVER, LEFT_OUT, RESULTS = "recover.json", "left_out.jsonl", "results.json"

SIZES = ("k", "m", "samples")
"""The fields of a record that count episodes."""

ArmKey = tuple[str, str, str, int | None, int, int]
"""An episode of the benchmark: protocol, arm, the problem's id, the number of its parent, the call
at which it was forked, and its number in its arm."""


@dataclass(frozen=True)
class RecoverRecord(EvalRecord):
    """The model, the suite, the design and the settings: `recover.json`.

    `k` is the number of parents of a problem: whole episodes without faults.
    """

    also_required = (
        *("suite", "part", "suite_hash", "quick", "protocols", "kinds", "rates"),
        *("m", "samples", "fork_calls"),
    )
    suite: str = ""
    """The name of the suite; `own` for problems of an environment."""
    part: str = ""
    """The part of the suite: `offline`, or a reference to a public data set."""
    suite_hash: str = ""
    """The hash of the suite's manifest and problems."""
    quick: bool = False
    """Whether the small part of the suite was run."""
    protocols: list[str] = field(default_factory=list)
    """The protocols of all starts."""
    kinds: list[str] = field(default_factory=list)
    """The kinds of faults."""
    rates: list[float] = field(default_factory=list)
    """The rates of faults in the protocol `dose`."""
    m: int = 0
    """Number of continuations in each arm of a prefix."""
    samples: int = 0
    """Number of episodes of a problem in each arm of the protocol `frequency`."""
    fork_calls: dict[str, list[int]] = field(default_factory=dict)
    """The call at which each parent is forked, from 1: a list over the parents by the problem's id.
    It is fixed before the parents run."""
    text_prompt: str = ""
    """The prompt of the arm `text` of the protocol `frequency`; empty in older records."""

    def differences(self, other: EvalRecord) -> list[str]:
        """The settings in which another run of the benchmark differs; see `EvalRecord`."""
        differing = super().differences(other)
        theirs = getattr(other, "suite_hash", "")
        if self.suite_hash != theirs:
            differing.append(f"suite: hash {self.suite_hash[:12]}, not {theirs[:12]}")
        if self.quick != (quick := getattr(other, "quick", self.quick)):
            differing.append(f"quick: {self.quick}, not {quick}")
        kinds = getattr(other, "kinds", self.kinds)
        if apart := [
            kind for kind in [*self.kinds, *kinds] if (kind in self.kinds) != (kind in kinds)
        ]:
            differing.append(f"kinds of faults: {', '.join(apart)} in one of the two")
        prompt = getattr(other, "text_prompt", "")
        if self.text_prompt and prompt and self.text_prompt != prompt:
            differing.append(f"text prompt: {self.text_prompt!r:.40}, not {prompt!r:.40}")
        return differing

    def after(self, before: RecoverRecord) -> RecoverRecord:
        """The record of a folder that was begun with another size, or with other protocols.

        The folder keeps all its episodes, so no number becomes smaller.

        Args:
            before: The record of the folder.
        """
        calls = {**before.fork_calls, **self.fork_calls}
        return dataclasses.replace(
            self,
            protocols=list(dict.fromkeys([*before.protocols, *self.protocols])),
            fork_calls={
                problem: max(numbers, before.fork_calls.get(problem, []), key=len)
                for problem, numbers in calls.items()
            },
            **{name: max(getattr(before, name), getattr(self, name)) for name in SIZES},
        )


@dataclass(frozen=True)
class ArmRecord(EpisodeRecord):
    """One episode of the benchmark: a line of `episodes.jsonl`.

    `sample` is the number of the episode in its arm, from 0.
    """

    protocol: str = ""
    """The protocol."""
    arm: str = ""
    """The arm of the protocol."""
    parent: int | None = None
    """The number of the parent among the parents of its problem; `None` for a whole episode."""
    call: int = 0
    """The number of the call at which the episode was forked, from 1; 0 for a whole episode."""

    @property
    def key(self) -> ArmKey:
        """Names the episode; see `ArmKey`."""
        return self.protocol, self.arm, self.problem, self.parent, self.call, self.sample

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values, the key first."""
        values = super().to_json()
        head = {name: getattr(self, name) for name in ("protocol", "arm", "parent", "call")}
        first = {"schema": values["schema"], **head, "problem": self.problem, "sample": self.sample}
        return {**first, **values}

    @classmethod
    def from_json(cls, record: dict[str, Any], tokens: bool = True) -> Self:
        """Rebuilds a record from `to_json`'s values; see `EpisodeRecord.from_json`.

        Args:
            record: The values.
            tokens: Whether token ids and log-probs are kept.
        """
        head = {name: record[name] for name in ("protocol", "arm", "parent", "call")}
        return dataclasses.replace(super().from_json(record, tokens), **head)


_HEAD = re.compile(rb'\{"schema": \d+, "protocol": .*?, "sample": \d+(?=,)')


def _head_key(line: bytes) -> Hashable:
    """The key of a line, from its beginning; a quoted text can't hold `"sample": ` unescaped."""
    if (match := _HEAD.match(line)) is None:
        return None
    head = json.loads(match[0] + b"}")
    names = ("protocol", "arm", "problem", "parent", "call", "sample")
    return tuple(head[name] for name in names)


def read_recover(folder: str | Path) -> RecoverRecord:
    """Reads `recover.json`.

    Args:
        folder: The folder of a model in the benchmark.

    Raises:
        DataError: The file is missing, damaged, or of a later version.
    """
    path = Path(folder) / RECOVER
    try:
        return RecoverRecord.from_json(json.loads(read_text(path)))
    except FileNotFoundError:
        raise DataError(
            f"{path} was not found: {folder} is not a folder of `retool recover`"
        ) from None
    except (ValueError, RecursionError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def read_arms(folder: str | Path, tokens: bool = True) -> Iterator[ArmRecord]:
    """Yields the episodes of a folder; of several lines with one key, the last one.

    Args:
        folder: The folder of a model in the benchmark.
        tokens: Whether token ids and log-probs are kept.

    Raises:
        DataError: A line is damaged; the message names it.
    """
    return last_records(Path(folder) / EPISODES, ArmRecord, _head_key, tokens)


@dataclass(frozen=True)
class LeftOut:
    """A prefix that can't be continued: a line of `left_out.jsonl`."""

    protocol: str
    """The protocol."""
    problem: str
    """The problem's id."""
    parent: int
    """The number of the parent."""
    call: int
    """The number of the call, from 1."""
    reason: str
    """The reason, for a reader."""


def read_left_out(folder: str | Path) -> list[LeftOut]:
    """Reads `left_out.jsonl`, each prefix once.

    Args:
        folder: The folder of a model in the benchmark.

    Raises:
        DataError: A line is damaged; the message names it.
    """
    path = Path(folder) / LEFT_OUT
    prefixes: dict[tuple[str, str, int, int], LeftOut] = {}
    for number, line in enumerate(read_lines(path) if path.exists() else (), 1):
        if not line.endswith(b"\n"):
            break
        try:
            one = LeftOut(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{path}, line {number} is damaged ({error!r:.100}): remove it"
            ) from None
        prefixes[one.protocol, one.problem, one.parent, one.call] = one
    return list(prefixes.values())


class ArmRecords(Records):
    """The folder of one model in the benchmark, open for writing; see `Records`."""

    file = RECOVER
    written = (RESULTS, LEFT_OUT, "README.md", "eval.yaml", "page.html")
    read_record: Callable[[Path], EvalRecord] = staticmethod(read_recover)
    read_episodes: Callable[..., Iterator[EpisodeRecord]] = staticmethod(read_arms)

    def _begun(
        self, record: EvalRecord, problems: Sequence[Problem], resume: bool, force: bool
    ) -> EvalRecord:
        earlier = self.folder / RECOVER
        before = read_recover(self.folder) if resume and earlier.exists() else None
        begun = super()._begun(record, problems, resume, force)
        assert isinstance(begun, RecoverRecord)
        if before is None:
            return begun
        drop_half_line(self.folder / LEFT_OUT)
        return begun.after(before)

    def leave_out(self, prefix: LeftOut) -> None:
        """Writes a prefix that can't be continued."""
        append_line(self.folder / LEFT_OUT, dataclasses.asdict(prefix))

    def write_results(self, results: dict[str, Any]) -> None:
        """Writes `results.json`."""
        replace_json(self.folder / RESULTS, results)
