"""The rules of recorded episodes, from the record of their run.

| kind       | source of the rules                                                        |
|------------|----------------------------------------------------------------------------|
| `eval`     | `eval.json`, which holds every setting                                     |
| `recover`  | `recover.json`; the faults of an episode stand in its transcript           |
| `training` | the setting `env` in `config.json`, with `eval_env` for held-out problems  |
| `file`     | the defaults: a file of transcripts has no settings                        |

The folder of an earlier version has no settings either. A transcript itself holds its protocol, and
whether it has an interpreter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retool_env.errors import DataError, SettingsError
from retool_env.evaluation.records import EvalRecord
from retool_env.evaluation.runs import Run
from retool_env.key_values import merge
from retool_env.rewards import PRESETS
from retool_env.rules import Rules
from retool_env.task import RULES, make_rules
from retool_env.transcript import Transcript


@dataclass(frozen=True)
class RecordedRules:
    """The rules of an episode, and how far the record holds them."""

    rules: Rules
    """The rules, without faults. The reward is a preset; see `reward`."""
    known: bool
    """Whether the record of the run holds the rules. If not, they are the defaults."""
    reward: str | None
    """The preset of the reward; `None` if the record names none, or another function."""


def rules_of(record: EvalRecord) -> Rules:
    """The rules of a record's episodes without faults.

    Args:
        record: The record of an evaluation or of a benchmark of recovery.

    Raises:
        SettingsError: A value of the record is wrong.
    """
    values = {name: value for name, value in record.rules.items() if name in RULES}
    # The prompt stands in the record; the reward is a name that this installation may not have.
    prompt = record.prompt or None
    return Rules(**{**values, "prompt_template": prompt, "reward": "paper", "faults": None})


def rules_of_episode(
    run: Run,
    transcript: Transcript,
    step: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RecordedRules:
    """The rules under which an episode ran.

    Args:
        run: The run.
        transcript: The episode, whose protocol and interpreter count.
        step: The step of an evaluation on held-out problems (`Place.step`); `None` elsewhere.
        settings: Settings that replace the recorded ones, such as `{"session": True}`.

    Raises:
        SettingsError: A setting is unknown or wrong.
        DataError: The record of the run has a wrong value.
    """
    settings = settings or {}
    if unknown := sorted(set(settings) - set(RULES)):
        raise SettingsError(f"unknown settings {unknown}; the settings are {', '.join(RULES)}")
    try:
        rules, known, reward = _recorded(run, step)
    except (SettingsError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"{run.path}: the recorded rules can't be used: {error}") from None
    own = {"protocol": transcript.protocol, "interpreter": transcript.interpreter}
    values = {field.name: getattr(rules, field.name) for field in dataclasses.fields(Rules)}
    if isinstance(settings.get("limits"), Mapping):
        settings = merge({"limits": dataclasses.asdict(rules.limits)}, settings)
    rules = Rules(**{**values, **own, **settings, "faults": None})
    return RecordedRules(rules, known, reward if reward in PRESETS else None)


def _recorded(run: Run, step: int | None) -> tuple[Rules, bool, str | None]:
    """The rules, whether the record holds them, and the name of the reward."""
    if run.record is not None:
        known = bool(run.record.rules)
        return rules_of(run.record), known, run.record.rules.get("reward") if known else None
    env = run.config.get("settings", {}).get("env")
    if not isinstance(env, Mapping):
        return Rules(), False, None
    if step is not None:
        env = _held_out(env, run.config["settings"].get("eval_env") or {})
    reward = env.get("reward", "paper")
    given = {name: value for name, value in env.items() if name in RULES}
    # The prompt stands in the transcript; the file of its template may be gone.
    unread: dict[str, Any] = {"prompt_template": None, "reward": "paper", "faults": None}
    return make_rules(env["id"], **given | unread), True, reward


def _held_out(env: Mapping[str, Any], eval_env: Mapping[str, Any]) -> dict[str, Any]:
    """The environment of the held-out problems: `env` with the settings of `eval_env`."""
    return merge(dict(env), dict(eval_env))
