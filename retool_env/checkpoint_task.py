"""The task of a checkpoint: `retool.json`, beside a model's weights, says what the model was trained on.

A trainer writes the file; who evaluates the model, plays its task, or trains it further reads it, so that the model
meets the prompt, the protocol and the budgets that it knows.

| key               | value                                                                              |
|-------------------|------------------------------------------------------------------------------------|
| `format`          | the version of this format, 1                                                      |
| `id`              | the environment's registered id; `null` for problems of a script's own             |
| `protocol`        | how model and environment talk (`Rules.protocol`)                                  |
| `prompt_template` | a text with `{query}`; `null` for the environment's own words                      |
| `rules`           | the other fields of `Rules`, by name                                               |
| `problems`        | settings of the id's problems: `difficulty`, `seed`, `size`, `year`, ...           |
| `sampling`        | of evaluation: `temperature` and `top_p`                                           |
| `revision`        | of the environments that the model was trained in                                  |
| `left_out`        | names of settings that the training had, and the file may not hold                 |

A checkpoint may come from a stranger. So the file is data and nothing else: it is small, every key of it is known, and
every value is checked. It never names a sandbox, a file, a function or code, and no limit of a program in it is above the
default. The split of the problems is not in it: one trains on `train` and evaluates on `test`.
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
from retool_env.provenance import REVISION
from retool_env.rules import Rules
from retool_env.task import registered_settings

FILE = "retool.json"
"""The file's name, in the folder of the weights."""

FORMAT = 1
"""The version of the file's format. A later one is refused."""

MOST_BYTES = 128 << 10
"""Bytes that the file may have."""


TEMPERATURE, TOP_P = 1.0, 0.7
"""The paper's sampling in evaluation (section 3.1)."""


_HUB_SECONDS = 5.0
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_TOP = (
    "format",
    "id",
    "protocol",
    "prompt_template",
    "rules",
    "problems",
    "sampling",
    "revision",
    "left_out",
)


@dataclass(frozen=True)
class CheckpointTask:
    """What a checkpoint says of its task; see the module for each field.

    Raises:
        ValueError: If a value may not stand in the file. The message begins with the key.

    Example:
        >>> task = CheckpointTask.of({"id": "ReTool-Arithmetic-v0", "max_tokens": 160, "difficulty": 4})
        >>> task.problems["difficulty"], task.rules["max_tokens"], task.rules["max_calls"]
        (4, 160, 8)
        >>> task.settings_for("ReTool-GSM8K-v0")
        {'protocol': 'tags', 'prompt_template': None}
    """

    id: str | None
    """The environment's registered id; `None` for problems of a script's own."""
    protocol: str = "tags"
    """How model and environment talk."""
    prompt_template: str | None = None
    """A text with `{query}`; `None` for the environment's own words."""
    rules: Mapping[str, Any] = field(default_factory=dict)
    """The other settings of the episode, by their names in `Rules`. What is missing gets its default."""
    problems: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the id's problems. What is missing gets its default."""
    sampling: Mapping[str, float] = field(
        default_factory=lambda: {"temperature": TEMPERATURE, "top_p": TOP_P}
    )
    """Temperature and top-p of an evaluation."""
    revision: int = REVISION
    """Of the environments that the model was trained in."""
    left_out: tuple[str, ...] = ()
    """Names of settings that the training had, and that no file may hold."""

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
        """The task that the setting `env` of a run names: an environment's `id` and its settings.

        What a file may not hold (a path, a function, a limit above the default, ...) is left out, and named in `left_out`.

        Raises:
            ValueError: If there is no such environment, or a setting is wrong.
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
        """The task that rules stand for, with what a file may hold of them.

        Args:
            rules: The episodes' settings.
            id: The environment's registered id; `None` for problems of a script's own.
            problems: Settings of the id's problems.

        Raises:
            ValueError: If there is no such environment.
        """
        kept: dict[str, Any] = {"rules": {}, "problems": {}}
        left_out = []

        def keep(part: str, name: str, value: Any, label: str) -> None:
            alone: dict[str, Any] = {part: {name: value}}
            try:
                cls(id, **alone)
            except ValueError:
                left_out.append(label)
            else:
                kept[part].setdefault(name, value)

        for each in dataclasses.fields(Rules):
            value = getattr(rules, each.name)
            if each.name in ("protocol", "prompt_template"):
                continue
            if each.name == "limits":
                limits = dataclasses.asdict(rules.limits)
                above = [name for name, most in checks.LIMITS.items() if limits[name] > most]
                left_out += [f"limits.{name}" for name in above]
                kept["rules"]["limits"] = {k: v for k, v in limits.items() if k not in above}
            elif each.name in checks.RULES:
                keep("rules", each.name, value, each.name)
            elif value != each.default:
                left_out.append(each.name)
        for name, value in (problems or {}).items():
            keep("problems", name, list(value) if isinstance(value, tuple) else value, name)
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
        """The id and all settings, as `make_task` and the setting `env` of a run take them."""
        return {"id": self.id, **self.settings_for(self.id)}

    def settings_for(self, id: str | None) -> dict[str, Any]:
        """The settings that hold for an environment: all of them for the task's own id, else protocol and prompt."""
        talk = {"protocol": self.protocol, "prompt_template": self.prompt_template}
        if id != self.id:
            return talk
        settings = {**talk, **self.rules, **self.problems}
        if settings["max_tokens"] is None:  # whoever needs a budget of tokens has one of their own
            del settings["max_tokens"]
        return settings

    def sampling_for(self, id: str | None) -> dict[str, float]:
        """Temperature and top-p of an evaluation in an environment: the task's for its own id, else the paper's."""
        return (
            dict(self.sampling) if id == self.id else {"temperature": TEMPERATURE, "top_p": TOP_P}
        )

    def to_json(self) -> dict[str, Any]:
        """The object that the file holds."""
        return {
            "format": FORMAT,
            "id": self.id,
            "protocol": self.protocol,
            "prompt_template": self.prompt_template,
            "rules": dict(self.rules),
            "problems": dict(self.problems),
            "sampling": dict(self.sampling),
            "revision": self.revision,
            "left_out": list(self.left_out),
        }

    @classmethod
    def from_json(cls, record: object) -> Self:
        """The task in a file's object.

        Raises:
            ValueError: If a key is unknown or missing, or a value is wrong. The message begins with the key.
        """
        if not isinstance(record, dict):
            raise SettingsError(f"it must hold a JSON object, not {checks.shortened(record)}")
        if "format" in record and (type(record["format"]) is not int or record["format"] != FORMAT):
            raise SettingsError(
                f"format: {checks.shortened(record['format'])} is not {FORMAT}, the one that this version of retool-env reads"
            )
        for name in record:
            if name not in _TOP:
                raise SettingsError(
                    f"{checks.shortened(name)}: unknown key; there are {', '.join(_TOP)}"
                )
        for name in _TOP:
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
        if not isinstance(left_out, list) or not all(isinstance(each, str) for each in left_out):
            raise SettingsError("left_out: it must be a list of names of settings")
        return cls(**{**values, "left_out": tuple(left_out)})

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the file into the folder of a model. A stop in the middle leaves the file of before."""
        path = Path(folder, FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{FILE}.part")
        part.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        part.replace(path)

    def summary(self, id: str | None, place: str) -> str:
        """One line: what holds of the task in an environment, and where it comes from."""
        prompt = "the default prompt" if self.prompt_template is None else "a prompt of its own"
        talk = f"protocol {self.protocol}, {prompt}"
        if id != self.id:
            trained = "a script's own problems" if self.id is None else self.id
            return f"{FILE}: {talk} (from {place}, trained on {trained}); other settings are {id}'s"
        default = CheckpointTask(id)
        said = [f"task {id or 'of a script'}", talk]
        for part, usual in (
            (self.problems, default.problems),
            (checks.flattened(self.rules), checks.flattened(default.rules)),
        ):
            said += [f"{k}={shown(v)}" for k, v in part.items() if v != usual.get(k)]
        said += [f"{name}={value:g}" for name, value in self.sampling.items()]
        left_out = f"; not in it: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{FILE}: {', '.join(said)} (from {place}){left_out}"

    def revision_warning(self, place: str) -> str:
        """One line if the task's episodes are of another revision than those of this package; empty if not."""
        if self.revision == REVISION:
            return ""
        return (
            f"warning: {place} was trained on episodes of revision {self.revision}, and these environments are of revision "
            f"{REVISION}: CHANGELOG.md says what differs"
        )


def read_task(model: str | os.PathLike[str], cure: str = "") -> CheckpointTask | None:
    """The task that a model's `retool.json` names.

    Args:
        model: A checkpoint's folder, or a Hub id, whose file is fetched.
        cure: What else can be done about a wrong file, for the error.

    Returns:
        The task; `None` where the model has no such file. (Of the Hub, also where it cannot be asked, and has not been
        before: loading the model then says so.)

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


def checkpoint_rules(policy: object) -> Rules:
    """The rules of the checkpoint that a policy was loaded from, which is said on standard error.

    Raises:
        ValueError: If it was loaded from none, or the checkpoint has no `retool.json`, or a wrong one.
    """
    checkpoint = getattr(policy, "checkpoint", None)
    if checkpoint is None or (task := read_task(checkpoint)) is None:
        raise SettingsError(
            f"the policy's model carries no {FILE}, so that the episodes' rules must be given: Rules(max_tokens=...)"
        )
    for line in (task.summary(task.id, checkpoint), task.revision_warning(checkpoint)):
        if line:
            print(line, file=sys.stderr)
    return task_rules(task)


def task_rules(task: CheckpointTask) -> Rules:
    """The `Rules` of a task."""
    return checks.rules_of(task.protocol, task.prompt_template, task.rules)


def merged(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others over them; of `limits`, each limit by itself."""
    settings = {**before, **given}
    old, new = before.get("limits"), given.get("limits")
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        settings["limits"] = {**old, **new}
    return settings


def differences(before: Mapping[str, Any], given: Mapping[str, Any], what: str) -> str:
    """What settings change, as `max_calls=5 (retool.json: 3)` each; empty where nothing does.

    Args:
        before: The settings that would hold otherwise.
        given: The settings that hold in their place.
        what: Where those of before come from.
    """
    now = merged(before, given)
    changed = {k: v for k, v in given.items() if k in before and before[k] != now[k]}
    return ", ".join(f"{k}={shown(v)} ({what}: {shown(before[k])})" for k, v in changed.items())


def shown(value: object) -> str:
    """A setting's value in a line: short, and without line breaks or control characters."""
    text = value if isinstance(value, str) and value.isidentifier() else repr(value)
    return text if len(text) <= 48 else f"{text[:45]}..."


def _file_of(model: str, cure: str) -> Path | None:
    """Where the file of a model lies, on this machine; `None` if the model has none."""
    if os.path.isdir(model):
        path = Path(model, FILE)
        return path if os.path.lexists(path) else None
    if os.path.exists(model) or model.startswith(".") or not _HUB_ID.fullmatch(model):
        return None
    return _from_hub(model, cure)


def _from_hub(name: str, cure: str) -> Path | None:
    """The file of a model on the Hub, in the Hub's cache on this machine; `None` if there is none."""
    try:
        from huggingface_hub import (
            get_hf_file_metadata,
            hf_hub_download,
            hf_hub_url,
            try_to_load_from_cache,
        )
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        return None  # no model can be loaded from there either
    try:
        size = get_hf_file_metadata(hf_hub_url(name, FILE), timeout=_HUB_SECONDS).size
    except EntryNotFoundError:
        return None
    except Exception:  # no network, no such model, offline mode: the types vary by version
        with contextlib.suppress(ValueError):  # no name that the Hub could have
            cached = try_to_load_from_cache(name, FILE)
            return Path(cached) if isinstance(cached, str) else None
        return None
    if size is None or size > MOST_BYTES:
        raise SettingsError(
            f"{FILE} of {name} on the Hub: it is larger than {MOST_BYTES >> 10} KiB. Use another model{cure}"
        )
    return Path(hf_hub_download(name, FILE))


def _parsed(text: str) -> object:
    """The value that a JSON text holds.

    Raises:
        ValueError: If it is not JSON, a key stands there twice, or a number is not finite.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            raise SettingsError("a key stands twice in one object")
        return found

    def constant(name: str) -> None:
        raise SettingsError(f"{name} is not a number")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise SettingsError(
            f"not JSON ({error.msg}, line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise SettingsError("nested too deeply") from None
