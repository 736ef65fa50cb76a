"""The task of a checkpoint: the file `retool.json` beside a model's weights.

A trainer writes the file. Evaluation, `retool play` and further training read it, so that the model
meets the same prompt, protocol and budgets as in its training.

| key               | value                                                                    |
|-------------------|--------------------------------------------------------------------------|
| `format`          | the version of this format, 1                                            |
| `id`              | the environment's registered id; `null` for problems of a script         |
| `protocol`        | the format of turns and results (`Rules.protocol`)                       |
| `prompt_template` | a text with `{query}`; `null` for the protocol's default prompt          |
| `rules`           | the other fields of `Rules`, by name                                     |
| `problems`        | settings of the id's problems: `difficulty`, `seed`, `size`, `year`, ... |
| `sampling`        | `temperature` and `top_p` of evaluation                                  |
| `revision`        | the revision of the environments in training                             |
| `left_out`        | names of training settings that the file may not hold                    |

A checkpoint may come from a stranger. So the file holds only data: it is small, all keys are known,
and all values are checked. It never names a sandbox, a file, a function or code, and no program
limit in it exceeds the default. It does not hold the split: training uses `train`, and evaluation
uses `test`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from retool_env import checkpoint_checks as checks
from retool_env.checkpoint_checks import MOST_TEMPLATE as MOST_TEMPLATE
from retool_env.errors import SettingsError
from retool_env.files import file_fault, read_text
from retool_env.key_values import unique_keys
from retool_env.provenance import REVISION
from retool_env.rules import Rules
from retool_env.task import registered_settings

FILE = "retool.json"
"""The file's name, in the folder of the weights."""

FORMAT = 1
"""The version of the file's format. Later versions are refused."""

MOST_BYTES = 128 << 10
"""The largest size of the file, in bytes."""

TEMPERATURE, TOP_P = 1.0, 0.7
"""The paper's sampling in evaluation (section 3.1)."""

_PAPER_SAMPLING = {"temperature": TEMPERATURE, "top_p": TOP_P}
_HUB_SECONDS = 5.0
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


@dataclass(frozen=True)
class CheckpointTask:
    """The task of a checkpoint: the content of its `retool.json`.

    Raises:
        ValueError: If the file may not hold a value. The message begins with the key.

    Example:
        >>> env = {"id": "ReTool-Arithmetic-v0", "max_tokens": 160, "difficulty": 4}
        >>> task = CheckpointTask.of(env)
        >>> task.problems["difficulty"], task.rules["max_tokens"], task.rules["max_calls"]
        (4, 160, 8)
        >>> task.settings_for("ReTool-GSM8K-v0")
        {'protocol': 'tags', 'prompt_template': None}
    """

    id: str | None
    """The environment's registered id; `None` for problems of a script."""
    protocol: str = "tags"
    """The format of turns and results."""
    prompt_template: str | None = None
    """A text with `{query}`; `None` for the protocol's default prompt."""
    rules: Mapping[str, Any] = field(default_factory=dict)
    """The other settings of the episode, by their names in `Rules`. Missing settings get their
    defaults."""
    problems: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the id's problems. Missing settings get their defaults."""
    sampling: Mapping[str, float] = field(default_factory=lambda: {**_PAPER_SAMPLING})
    """Temperature and top-p of an evaluation."""
    revision: int = REVISION
    """The revision of the environments in training."""
    left_out: tuple[str, ...] = ()
    """Names of training settings that the file may not hold."""

    def __post_init__(self) -> None:
        options = checks.options_of(self.id)
        checks.check_names("rules", self.rules, checks.RULES)
        checks.check_names("problems", self.problems, options)
        checks.check_names("sampling", self.sampling, ("temperature", "top_p"))
        checks.check_template(self.prompt_template)
        object.__setattr__(
            self, "rules", checks.checked_rules(self.protocol, self.prompt_template, self.rules)
        )
        for name, value in self.problems.items():
            checks.OPTIONS[name](f"problems.{name}", value)
        object.__setattr__(self, "problems", {**options, **self.problems})
        if set(self.sampling) != {"temperature", "top_p"}:
            raise SettingsError("sampling: it must hold temperature and top_p")
        checks.check_number("sampling.temperature", self.sampling["temperature"], 0, 10)
        checks.check_number("sampling.top_p", self.sampling["top_p"], 0, 1)
        if not self.sampling["top_p"]:
            raise SettingsError("sampling.top_p: it must be above 0")
        checks.check_whole("revision", self.revision, 1, 1_000_000)
        names = checks.setting_names()
        if not len(self.left_out) <= len(names) or not names.issuperset(self.left_out):
            raise SettingsError("left_out: it must be a list of names of settings")

    @classmethod
    def of(cls, env: Mapping[str, Any]) -> Self:
        """The task of a run's setting `env`.

        Values that a file may not hold (a path, a function, a limit above the default, ...) are
        left out, and `left_out` names them.

        Args:
            env: The environment's `id`, and its settings.

        Raises:
            ValueError: If the id is not registered, or a setting is wrong.
        """
        settings = dict(env)
        id = settings.pop("id")
        known = {field.name for field in dataclasses.fields(Rules)}
        given = {**registered_settings(id), **settings}
        rules = Rules(**{name: value for name, value in given.items() if name in known})
        options = {name: value for name, value in settings.items() if name not in known}
        options.pop("split", None)
        return cls.of_rules(rules, id, options)

    @classmethod
    def of_rules(
        cls, rules: Rules, id: str | None = None, problems: Mapping[str, Any] | None = None
    ) -> Self:
        """The task of rules, with the values that a file may hold.

        Args:
            rules: The settings of the episodes.
            id: The environment's registered id; `None` for problems of a script.
            problems: Settings of the id's problems; `None` for the defaults.

        Raises:
            ValueError: If the id is not registered.
        """
        kept: dict[str, Any] = {"rules": {}, "problems": {}}
        left_out = []

        def keep(part: str, name: str, value: Any) -> None:
            alone: dict[str, Any] = {part: {name: value}}
            try:
                cls(id, **alone)
            except ValueError:
                left_out.append(name)
            else:
                kept[part].setdefault(name, value)

        for rule in dataclasses.fields(Rules):
            value = getattr(rules, rule.name)
            if rule.name in ("protocol", "prompt_template"):
                continue
            if rule.name == "limits":
                limits = dataclasses.asdict(rules.limits)
                above = [name for name, most in checks.LIMITS.items() if limits[name] > most]
                left_out += [f"limits.{name}" for name in above]
                kept["rules"]["limits"] = {k: v for k, v in limits.items() if k not in above}
            elif rule.name in checks.RULES:
                keep("rules", rule.name, value)
            elif value != rule.default:
                left_out.append(rule.name)
        for name, value in (problems or {}).items():
            keep("problems", name, list(value) if isinstance(value, tuple) else value)
        template = rules.template if rules.prompt_template is not None else None
        try:
            checks.check_template(template)
        except ValueError:
            template = None
            left_out.append("prompt_template")
        known = checks.setting_names()
        named = tuple(name for name in dict.fromkeys(left_out) if name in known)
        return cls(id, rules.protocol, template, **kept, left_out=named)

    @property
    def env(self) -> dict[str, Any]:
        """The id and all settings, for `make_task` and for the setting `env` of a run."""
        return {"id": self.id, **self.settings_for(self.id)}

    def settings_for(self, id: str | None) -> dict[str, Any]:
        """The settings for an environment: all for the task's id, else only protocol and prompt."""
        talk = {"protocol": self.protocol, "prompt_template": self.prompt_template}
        if id != self.id:
            return talk
        settings = {**talk, **self.rules, **self.problems}
        if settings["max_tokens"] is None:  # callers that need a token budget have a default
            del settings["max_tokens"]
        return settings

    def sampling_for(self, id: str | None) -> dict[str, float]:
        """Temperature and top-p of an evaluation: the task's for its id, else the paper's."""
        return dict(self.sampling if id == self.id else _PAPER_SAMPLING)

    def to_json(self) -> dict[str, Any]:
        """The object that the file holds."""
        record = {"format": FORMAT, **dataclasses.asdict(self)}
        return record | {"sampling": dict(self.sampling), "left_out": list(self.left_out)}

    @classmethod
    def from_json(cls, record: object) -> Self:
        """The task in a file's object.

        Raises:
            ValueError: If a key is unknown or missing, or a value is wrong. The message begins with
                the key.
        """
        if not isinstance(record, dict):
            raise SettingsError(f"it must hold a JSON object, not {checks.shortened(record)}")
        if "format" in record and (type(record["format"]) is not int or record["format"] != FORMAT):
            raise SettingsError(
                f"format: {checks.shortened(record['format'])} is not {FORMAT}, the only format "
                "that this version of retool-env reads"
            )
        known = ["format", *(field.name for field in dataclasses.fields(cls))]
        for name in record:
            if name not in known:
                raise SettingsError(
                    f"{checks.shortened(name)}: unknown key; known keys: {', '.join(known)}"
                )
        for name in known:
            if name not in record and name not in ("problems", "left_out"):  # they may be empty
                raise SettingsError(f"{name}: it is missing")
        values = {"problems": {}, "left_out": [], **record}
        del values["format"]
        for name in ("rules", "problems", "sampling"):
            if not isinstance(values[name], dict):
                raise SettingsError(
                    f"{name}: it must be an object, not {checks.shortened(values[name])}"
                )
        left_out = values["left_out"]
        if not isinstance(left_out, list) or not all(isinstance(name, str) for name in left_out):
            raise SettingsError("left_out: it must be a list of names of settings")
        return cls(**{**values, "left_out": tuple(left_out)})

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the file into the folder of a model; an interruption leaves the old file intact."""
        path = Path(folder, FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{FILE}.part")
        part.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        part.replace(path)

    def summary(self, id: str | None, source: str) -> str:
        """The settings of this task that apply in an environment, in one line.

        Args:
            id: The environment's id; `None` for problems of a script.
            source: The model that the task comes from: a folder or a Hub id.
        """
        prompt = "the default prompt" if self.prompt_template is None else "a prompt of its own"
        talk = f"protocol {self.protocol}, {prompt}"
        if id != self.id:
            trained = f"from {source}, trained on {self.id or 'the problems of a script'}"
            return f"{FILE}: {talk} ({trained}); other settings are {id}'s"
        default = CheckpointTask(id)
        words = [f"task {id or 'of a script'}", talk]
        for part, usual in (
            (self.problems, default.problems),
            (checks.flattened(self.rules), checks.flattened(default.rules)),
        ):
            words += [f"{k}={shown(v)}" for k, v in part.items() if v != usual.get(k)]
        words += [f"{name}={value:g}" for name, value in self.sampling.items()]
        left_out = f"; not in it: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{FILE}: {', '.join(words)} (from {source}){left_out}"

    def revision_warning(self, source: str) -> str:
        """A warning, in one line, if the task was trained in another revision; else empty.

        Args:
            source: The model that the task comes from: a folder or a Hub id.
        """
        if self.revision == REVISION:
            return ""
        return (
            f"warning: {source} was trained on episodes of revision {self.revision}, but these "
            f"environments are of revision {REVISION}: CHANGELOG.md lists the differences"
        )


def read_task(model: str | os.PathLike[str], cure: str = "") -> CheckpointTask | None:
    """Read the task from a model's `retool.json`.

    Args:
        model: The folder of a checkpoint, or a Hub id, whose file is downloaded.
        cure: Further advice for the error about a wrong file, a clause such as ", or ...".

    Returns:
        The task; `None` if the model has no such file, or if the Hub is unreachable and the file is
        not in its cache.

    Raises:
        ValueError: If the file is wrong. The message names the file and the key.
    """
    if (path := _file_of(os.fspath(model), cure)) is None:
        return None
    try:
        if fault := file_fault(path):
            raise SettingsError(fault)
        if path.stat().st_size > MOST_BYTES:
            raise SettingsError(f"it is larger than {MOST_BYTES >> 10} KiB")
        return CheckpointTask.from_json(_parsed(read_text(path)))
    except (ValueError, OSError) as error:
        raise SettingsError(f"{path}: {error}. Mend or remove the file{cure}") from None


def checkpoint_rules(checkpoint: str | None) -> Rules:
    """The rules of a policy's checkpoint. A summary is printed on standard error.

    Args:
        checkpoint: The checkpoint that the policy was loaded from; `None` if it has none.

    Raises:
        ValueError: If the checkpoint or its `retool.json` is missing, or the file is wrong.
    """
    if checkpoint is None or (task := read_task(checkpoint)) is None:
        raise SettingsError(
            f"the policy's model has no {FILE}: pass the rules of the episodes, such as "
            "Rules(max_tokens=...)"
        )
    for line in (task.summary(task.id, checkpoint), task.revision_warning(checkpoint)):
        if line:
            print(line, file=sys.stderr)
    return task_rules(task)


def task_rules(task: CheckpointTask) -> Rules:
    """The `Rules` of a task."""
    return checks.rules_of(task.protocol, task.prompt_template, task.rules)


def merged(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which new values replace old values; `limits` is merged limit by limit.

    Args:
        before: The old settings.
        given: The new settings.
    """
    settings = {**before, **given}
    old, new = before.get("limits"), given.get("limits")
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        settings["limits"] = {**old, **new}
    return settings


def differences(before: Mapping[str, Any], given: Mapping[str, Any], source: str) -> str:
    """The changed settings, each as `max_calls=5 (retool.json: 3)`; empty without a change.

    Args:
        before: The old settings.
        given: The new settings, which replace the old settings.
        source: The source of the old settings, such as `retool.json`.
    """
    now = merged(before, given)
    changed = {k: v for k, v in given.items() if k in before and before[k] != now[k]}
    return ", ".join(f"{k}={shown(v)} ({source}: {shown(before[k])})" for k, v in changed.items())


def shown(value: object) -> str:
    """A setting's value for one line: short, without line breaks and control characters."""
    text = value if isinstance(value, str) and value.isidentifier() else repr(value)
    return text if len(text) <= 48 else f"{text[:45]}..."


def _file_of(model: str, cure: str) -> Path | None:
    """The path of a model's file on this machine; `None` if the model has no such file."""
    if os.path.isdir(model):
        path = Path(model, FILE)
        return path if os.path.lexists(path) else None
    if os.path.exists(model) or model.startswith(".") or not _HUB_ID.fullmatch(model):
        return None
    return _from_hub(model, cure)


def _from_hub(name: str, cure: str) -> Path | None:
    """The file of a model on the Hub, in the local cache; `None` if it is not available."""
    try:
        from huggingface_hub import (
            get_hf_file_metadata,
            hf_hub_download,
            hf_hub_url,
            try_to_load_from_cache,
        )
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        return None  # the model itself can't be loaded from the Hub either
    try:
        size = get_hf_file_metadata(hf_hub_url(name, FILE), timeout=_HUB_SECONDS).size
    except EntryNotFoundError:
        return None
    except Exception:  # no network, no such model, offline mode: the types vary by version
        with contextlib.suppress(ValueError):  # the name can't be a Hub id
            cached = try_to_load_from_cache(name, FILE)
            return Path(cached) if isinstance(cached, str) else None
        return None
    if size is None or size > MOST_BYTES:
        raise SettingsError(
            f"{FILE} of {name} on the Hub: it is larger than {MOST_BYTES >> 10} KiB. "
            f"Use another model{cure}"
        )
    return Path(hf_hub_download(name, FILE))


def _parsed(text: str) -> object:
    """The value of a JSON text.

    Raises:
        ValueError: If the text is not JSON, a key occurs twice, or a number is not finite.
    """

    def constant(name: str) -> None:
        raise SettingsError(f"{name} is not a number")

    try:
        return json.loads(text, object_pairs_hook=unique_keys, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise SettingsError(
            f"not JSON ({error.msg}, line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise SettingsError("nested too deeply") from None
