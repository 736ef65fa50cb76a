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
import inspect
import json
import os
import re
import string
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from retool_env.errors import SettingsError
from retool_env.execution import Limits
from retool_env.files import file_fault, read_text
from retool_env.problems import SOURCES
from retool_env.protocol import PROTOCOLS
from retool_env.provenance import REVISION
from retool_env.rules import Rules
from retool_env.task import registered_settings

FILE = "retool.json"
"""The file's name, in the folder of the weights."""

FORMAT = 1
"""The version of the file's format. A later one is refused."""

MOST_BYTES = 128 << 10
"""Bytes that the file may have."""

MOST_TEMPLATE = 20_000
"""Characters that a prompt template may have."""

TEMPERATURE, TOP_P = 1.0, 0.7
"""The paper's sampling in evaluation (section 3.1)."""

_RULES = (
    "interpreter",
    "session",
    "display",
    "max_calls",
    "max_tokens",
    "max_characters",
    "max_seconds",
    "output_characters",
    "output_cut",
    "errors",
    "void_turn",
    "reward",
    "limits",
)
"""The fields of `Rules` that the file holds under `rules`. A new field is not written before it stands here."""

_MOST = {
    "max_calls": 1_000,
    "max_tokens": 1 << 20,
    "max_characters": 10_000_000,
    "max_seconds": 86_400,
    "output_characters": 100_000,
}
"""The highest budgets of an episode that are taken from a file."""

_LIMITS = dataclasses.asdict(Limits())
_HUB_SECONDS = 5.0
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]"
)
"""What no prompt needs: control characters, halves of surrogate pairs, and what turns the direction of text."""
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
        options = _options(self.id)
        _check_names("rules", self.rules, _RULES)
        _check_names("problems", self.problems, options)
        _check_names("sampling", self.sampling, ("temperature", "top_p"))
        _check_template(self.prompt_template)
        object.__setattr__(self, "rules", _checked_rules(self))
        for name, value in self.problems.items():
            _OPTIONS[name](f"problems.{name}", value)
        object.__setattr__(self, "problems", {**options, **self.problems})
        if set(self.sampling) != {"temperature", "top_p"}:
            raise SettingsError("sampling: it must hold temperature and top_p")
        _check_number("sampling.temperature", self.sampling["temperature"], 0, 10)
        _check_number("sampling.top_p", self.sampling["top_p"], 0, 1)
        if not self.sampling["top_p"]:
            raise SettingsError("sampling.top_p: it must be above 0")
        _check_whole("revision", self.revision, 1, 1_000_000)
        names = _names()
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
        kept: dict[str, dict[str, Any]] = {"rules": {}, "problems": {}}
        left_out = []

        def keep(part: str, name: str, value: Any, label: str) -> None:
            try:
                cls(id, **{part: {name: value}})
            except ValueError:
                left_out.append(label)
            else:
                kept[part].setdefault(name, value)

        for each in dataclasses.fields(Rules):
            value = getattr(rules, each.name)
            if each.name in ("protocol", "prompt_template"):
                continue
            if each.name == "limits":
                limits = dataclasses.asdict(rules.limits)  # type: ignore[call-overload]
                above = [name for name, most in _LIMITS.items() if limits[name] > most]
                left_out += [f"limits.{name}" for name in above]
                kept["rules"]["limits"] = {k: v for k, v in limits.items() if k not in above}
            elif each.name in _RULES:
                keep("rules", each.name, value, each.name)
            elif value != each.default:
                left_out.append(each.name)
        for name, value in (problems or {}).items():
            keep("problems", name, list(value) if isinstance(value, tuple) else value, name)
        template = rules.template if rules.prompt_template is not None else None
        try:
            _check_template(template)
        except ValueError:
            template = None
            left_out.append("prompt_template")
        known = _names()
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
            raise SettingsError(f"it must hold a JSON object, not {_shown(record)}")
        if "format" in record and (type(record["format"]) is not int or record["format"] != FORMAT):
            raise SettingsError(
                f"format: {_shown(record['format'])} is not {FORMAT}, the one that this version of retool-env reads"
            )
        for name in record:
            if name not in _TOP:
                raise SettingsError(f"{_shown(name)}: unknown key; there are {', '.join(_TOP)}")
        for name in _TOP:
            if name not in record and name not in ("problems", "left_out"):  # they may be empty
                raise SettingsError(f"{name}: it is missing")
        values = {"problems": {}, "left_out": [], **record}
        del values["format"]
        for name in ("rules", "problems", "sampling"):
            if not isinstance(values[name], dict):
                raise SettingsError(f"{name}: it must be an object, not {_shown(values[name])}")
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
            (_flat(self.rules), _flat(default.rules)),
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
    task = None if checkpoint is None else read_task(checkpoint)
    if task is None:
        raise SettingsError(
            f"the policy's model carries no {FILE}, so that the episodes' rules must be given: Rules(max_tokens=...)"
        )
    for line in (task.summary(task.id, checkpoint), task.revision_warning(checkpoint)):
        if line:
            print(line, file=sys.stderr)
    return task_rules(task)


def task_rules(task: CheckpointTask) -> Rules:
    """The `Rules` of a task."""
    return Rules(
        protocol=task.protocol,
        prompt_template=task.prompt_template,
        **task.rules,
    )


def merged(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others over them; of `limits`, each limit by itself."""
    settings = {**before, **given}
    limits = before.get("limits"), given.get("limits")
    if all(isinstance(each, Mapping) for each in limits):
        settings["limits"] = {**limits[0], **limits[1]}  # type: ignore[dict-item]
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


def _flat(rules: Mapping[str, Any]) -> dict[str, Any]:
    """The rules, with each limit of a program by itself."""
    limits = {f"limits.{name}": value for name, value in rules["limits"].items()}
    return {name: value for name, value in rules.items() if name != "limits"} | limits


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


def _names() -> set[str]:
    """All settings that the file may say were left out."""
    options = {name for source in SOURCES.values() for name in inspect.signature(source).parameters}
    rules = {each.name for each in dataclasses.fields(Rules)}
    return rules | options | {f"limits.{name}" for name in _LIMITS}


def _options(id: str | None) -> dict[str, Any]:
    """The settings of an id's problems that the file may hold, with their defaults."""
    if id is None:
        return {}
    if not isinstance(id, str) or len(id) > 100:
        raise SettingsError(f"id: it must be a registered environment's, not {_shown(id)}")
    try:
        registered = registered_settings(id)
    except ValueError as error:
        raise SettingsError(f"id: {error}") from None
    if not isinstance(registered["problems"], str):
        return {}
    parameters = inspect.signature(SOURCES[registered["problems"]]).parameters
    return {
        name: each.default
        for name, each in parameters.items()
        if name in _OPTIONS and name not in registered
    }


def _checked_rules(task: CheckpointTask) -> dict[str, Any]:
    """All of a task's rules, defaults included.

    Raises:
        ValueError: If one is wrong, or higher than a file may set it.
    """
    protocols = tuple(PROTOCOLS)
    if task.protocol not in protocols:
        raise SettingsError(
            f"protocol: it must be one of {', '.join(protocols)}, not {_shown(task.protocol)}"
        )
    for name, kind, what in (("reward", str, "the name of one"), ("limits", dict, "an object")):
        if name in task.rules and not isinstance(task.rules[name], kind):
            raise SettingsError(f"rules.{name}: it must be {what}, not {_shown(task.rules[name])}")
    try:
        rules = task_rules(task)
    except ValueError as error:
        raise SettingsError(f"rules: {error!s:.400}") from None
    found = {name: getattr(rules, name) for name in _RULES}
    found["limits"] = dataclasses.asdict(rules.limits)  # type: ignore[call-overload]
    flat = _flat(found)
    for name, most in ({f"limits.{k}": v for k, v in _LIMITS.items()} | _MOST).items():
        if flat[name] is not None and flat[name] > most:
            raise SettingsError(
                f"rules.{name}: {_shown(flat[name])} is above {most}, the most that a checkpoint may ask for"
            )
    return found


def _check_names(part: str, values: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in values:
        if name not in known:
            names = ", ".join(known) or "none here"
            raise SettingsError(f"{part}: unknown key {_shown(name)}; there are {names}")


def _check_template(template: object) -> None:
    """Check a prompt template: a text of a stranger, in which nothing but `{query}` is filled in."""
    if template is None:
        return
    if not isinstance(template, str):
        raise SettingsError(f"prompt_template: it must be a text or null, not {_shown(template)}")
    if len(template) > MOST_TEMPLATE:
        raise SettingsError(f"prompt_template: it is longer than {MOST_TEMPLATE:,} characters")
    if found := _UNPRINTABLE.search(template):
        raise SettingsError(f"prompt_template: it holds the character {found[0]!r}")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        parts = []
    fields = {part[1:] for part in parts if part[1] is not None}
    if fields != {("query", "", None)}:
        raise SettingsError(
            "prompt_template: it must be a text with {query} and no other field, its literal braces written twice, not "
            f"{_shown(template)}"
        )


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise SettingsError(
            f"{name}: it must be a whole number from {least} to {most}, not {_shown(value)}"
        )


def _check_number(name: str, value: object, least: float, most: float) -> None:
    if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]
        raise SettingsError(
            f"{name}: it must be a number from {least} to {most}, not {_shown(value)}"
        )


def _check_levels(name: str, value: object) -> None:
    levels = value if isinstance(value, list) and 0 < len(value) <= 100 else [value]
    for level in levels:
        _check_whole(name, level, 1, 5)


def _check_seed(name: str, value: object) -> None:
    _check_whole(name, value, -(2**63), 2**63)


def _check_size(name: str, value: object) -> None:
    _check_whole(name, value, 1, 1_000_000)


def _check_year(name: str, value: object) -> None:
    if value is not None:
        _check_whole(name, value, 2024, 2025)


def _check_column(name: str, value: object) -> None:
    short = isinstance(value, str) and len(value) <= 100 and value.isprintable()
    if value is not None and not short:
        raise SettingsError(f"{name}: it must be the name of a column, not {_shown(value)}")


_OPTIONS: Mapping[str, Callable[[str, object], None]] = {
    "difficulty": _check_levels,
    "seed": _check_seed,
    "size": _check_size,
    "year": _check_year,
    "question_key": _check_column,
    "answer_key": _check_column,
}
"""The settings of problems that the file may hold, each with its check. Paths are not among them."""


def _shown(value: object) -> str:
    try:
        return f"{value!r:.60}"
    except (RecursionError, ValueError):  # an integer of thousands of digits
        return f"a {type(value).__name__}"
