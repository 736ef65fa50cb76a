"""The settings in which two runs differ, and whether they can be compared all the same.

A difference is *listed* or it is a *reason for a refusal*. Rules, prompt, sampling and revision
change the task itself, so that a difference of accuracy could be theirs: they are reasons. The
model, the seed, the number of samples, the environment's id, the engine and the price do not change
the task: they are listed.

Two evaluations are compared by their records, and two training runs by their `env` and `eval_env`.
Other runs are compared by the facts that their episodes record: interpreter, protocol, revision.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from retool_env.errors import SettingsError
from retool_env.evaluation.compare.outcomes import Outcomes
from retool_env.evaluation.records import frozen_settings, rules_to_json, short_value
from retool_env.key_values import merge
from retool_env.rules import Rules

_LISTED = {
    *("model", "weights", "commit of the model", "seed", "k", "problems", "env"),
    *("rules.reward", "sampling.engine", "sampling.dtype", "sampling.way"),
}
"""The settings whose differences are listed only. The model does not see the reward."""

_PROMPTING = ("rules.interpreter", "rules.protocol")
"""Settings that the default prompt follows from: allowing them allows the prompt."""


@dataclass(frozen=True)
class SettingDifference:
    """A setting in which two runs differ."""

    name: str
    """The setting: `rules.max_calls`."""
    first: str
    """The value of the first run."""
    second: str
    """The value of the second run."""
    refused: bool
    """Whether the runs are not compared without the user's consent."""

    def text(self, first: str, second: str) -> str:
        """The difference in words.

        Args:
            first: The letter of the first run.
            second: The letter of the second run.
        """
        return f"{self.name} ({self.first} in {first}, {self.second} in {second})"


@dataclass(frozen=True)
class Settings:
    """The settings of a run, as far as they are on record."""

    source: Literal["record", "training", "episodes"]
    """The place of the settings: `eval.json`, a training run's `config.json`, or the episodes."""
    values: Mapping[str, Any]
    """The settings by name."""


def settings_of(outcomes: Outcomes) -> Settings:
    """The settings of a run.

    Args:
        outcomes: The run.
    """
    facts = {name: _single(values) for name, values in outcomes.facts.items()}
    run = outcomes.run
    if run.record is not None and run.record.rules:
        frozen = frozen_settings(run.record)
        frozen.pop("rules.prompt_template")  # the prompt has its text
        more = {"k": run.record.k, "problems": run.record.fingerprint[:8]}
        return Settings("record", {**frozen, **more, **facts})
    if run.config:
        return Settings("training", {**_training_rules(run.config["settings"]), **facts})
    return Settings("episodes", facts)


def _single(values: Sequence[object]) -> object:
    return values[0] if len(values) == 1 else list(values)


def _training_rules(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The rules of a training run's evaluations: `env` without its faults, then `eval_env`."""
    own, held_out = (settings.get(name) or {} for name in ("env", "eval_env"))
    if not isinstance(own, Mapping) or not isinstance(held_out, Mapping):
        return {}
    defaults = rules_to_json(Rules())
    given = merge(merge(defaults, {**own, "faults": None}), held_out)
    return {"env": given.get("id"), **{f"rules.{name}": given[name] for name in defaults}}


def setting_differences(
    first: Outcomes, second: Outcomes, allowed: Collection[str] = ()
) -> list[SettingDifference]:
    """The settings in which two runs differ, in the order of the record.

    Args:
        first: The first run.
        second: The second run.
        allowed: Names of settings that may differ, with or without `rules.` or `sampling.`.

    Raises:
        SettingsError: Neither run has a setting of an allowed name.
    """
    mine, theirs = settings_of(first), settings_of(second)
    alike = mine.source == theirs.source
    names = [
        name
        for name in {**mine.values, **theirs.values}
        if (alike or name in first.facts) and mine.values.get(name) != theirs.values.get(name)
    ]
    known = {**mine.values, **theirs.values}
    short = {name.rpartition(".")[2] for name in known}
    for name in allowed:
        if name not in known and name not in short:
            close = difflib.get_close_matches(name, short, n=1, cutoff=0.5)
            hint = (
                f": did you mean {close[0]}?" if close else f"; they are {', '.join(sorted(short))}"
            )
            raise SettingsError(f"--allow {name:.60}: no setting of the runs has this name{hint}")
    accepted = {name for name in names if {name, name.rpartition(".")[2]} & {*allowed}}
    if accepted & {*_PROMPTING}:
        accepted.add("prompt")
    return [
        SettingDifference(
            name,
            short_value(mine.values.get(name)),
            short_value(theirs.values.get(name)),
            name not in accepted | _LISTED,
        )
        for name in names
    ]


def unknown_settings(first: Outcomes, second: Outcomes) -> str:
    """The reason why not all settings of two runs were compared; empty if they were.

    Args:
        first: The first run.
        second: The second run.
    """
    sources = {one.name: settings_of(one).source for one in (first, second)}
    if len(set(sources.values())) == 1 and "episodes" not in sources.values():
        return ""
    return (
        f"The records of {first.name} and {second.name} do not hold the same settings: only "
        "interpreter, protocol and revision were compared."
    )


def check_settings(
    pairs: Sequence[tuple[Outcomes, Outcomes, Sequence[SettingDifference]]],
) -> None:
    """Refuses runs whose settings differ.

    Args:
        pairs: The pairs of runs, each with its differences.

    Raises:
        SettingsError: A difference is a reason for a refusal. The message names all of them.
    """
    reasons: list[str] = []
    names: list[str] = []
    for first, second, differences in pairs:
        refused = [one for one in differences if one.refused]
        reasons += [one.text(first.name, second.name) for one in refused]
        names += [one.name for one in refused]
    if reasons:
        allow = " ".join(f"--allow {name}" for name in _to_allow(names))
        raise SettingsError(
            f"the runs differ in {'; '.join(reasons)}: if this is intended, add {allow}, or --force"
        )


def _to_allow(names: Sequence[str]) -> list[str]:
    """The short names of settings, without a prompt that follows from another setting."""
    known = dict.fromkeys(names)
    if any(name in known for name in _PROMPTING):
        known.pop("prompt", None)
    return list(dict.fromkeys(name.rpartition(".")[2] for name in known))


def forced(differences: Sequence[SettingDifference]) -> list[SettingDifference]:
    """The differences as the user accepts all of them.

    Args:
        differences: The differences.
    """
    return [dataclasses.replace(one, refused=False) for one in differences]
