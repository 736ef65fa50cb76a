"""The plan of an evaluation: one model on one environment, resolved before a model is loaded."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import os
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from retool_env.commands.contamination import dates_of
from retool_env.commands.eval_settings import api_fields, eval_settings
from retool_env.key_values import parse_settings

if TYPE_CHECKING:
    from retool_env.checkpoint_task import CheckpointTask
    from retool_env.evaluation.cost import Price
    from retool_env.evaluation.folder import Records
    from retool_env.evaluation.identity import ModelIdentity
    from retool_env.evaluation.records import EvalRecord
    from retool_env.evaluation.run import Job
    from retool_env.problem import Problem
    from retool_env.rules import Rules

MADE_UP = 200
"""The default of `--problems` for generated problems, of which there is no end."""


@dataclass
class Plan:
    """One model on one environment, before anything is loaded."""

    arguments: argparse.Namespace
    """The command line, with one model, one environment and the resolved sampling."""
    settings: dict[str, Any]
    """The environment's settings."""
    task: CheckpointTask | None
    """The checkpoint's task."""
    rules: Rules
    """The settings of the episodes."""
    problems: list[Problem]
    """The problems, in their order."""
    lines: list[str]
    """Lines that say where the settings come from."""
    model: ModelIdentity
    """The model's identity."""

    @property
    def title(self) -> str:
        """The model's title and whether it has an interpreter."""
        return f"{self.model.title}, {'interpreter' if self.rules.interpreter else 'text-only'}"

    @property
    def keys(self) -> set[tuple[str, int]]:
        """All its episodes: the problem's id and the number of the sample."""
        samples = range(self.arguments.k)
        return {(problem.id, sample) for problem in self.problems for sample in samples}

    def jobs(self, ended: Mapping[tuple[str, int], bool]) -> list[Job]:
        """The episodes that are left to run, all samples of a problem together.

        Args:
            ended: The episodes on record, each with whether it failed.
        """
        from retool_env.evaluation.run import Job

        failed = {key for key, failed in ended.items() if failed}
        settled = set(ended) - (failed if self.arguments.retry_failed else set())
        return [
            Job(index, problem, sample)
            for index, problem in enumerate(self.problems)
            for sample in range(self.arguments.k)
            if (problem.id, sample) not in settled
        ]


def make_plan(
    arguments: argparse.Namespace,
    model: str,
    env: str | None,
    problems: list[Problem] | None = None,
) -> Plan:
    """Resolves the settings of one model on one environment; the model is not loaded.

    Args:
        arguments: The command line.
        model: The model's folder, Hub id, or name behind an API.
        env: The environment's id; `None`: the id in the model's `retool.json`.
        problems: The problems; `None`: the environment's, which are loaded.

    Raises:
        SettingsError: A setting is wrong.
        SandboxUnavailable: A sandbox server can't do what the rules need.
    """
    from retool_env.evaluation.identity import ModelIdentity
    from retool_env.interpreter import check_setting
    from retool_env.task import make_rules

    arguments = argparse.Namespace(**{**vars(arguments), "model": model, "env": env})
    task, settings, lines = eval_settings(arguments)
    if problems is None:
        rules, problems = _loaded(arguments, settings)
    else:
        rules = make_rules(arguments.env, **settings)
    check_setting(rules, arguments.sandbox)
    identity = ModelIdentity.of(model, arguments.api)
    return Plan(arguments, settings, task, rules, problems, lines, identity)


def _loaded(arguments: argparse.Namespace, settings: dict[str, Any]) -> tuple[Rules, list[Problem]]:
    """The rules of the environment, and as many of its problems as the command wants."""
    from retool_env.problems.generated import Generated
    from retool_env.task import make_task

    rules, source = make_task(arguments.env, **settings)
    most = len(source)
    if isinstance(source, Generated) and "size" not in parse_settings(arguments.settings):
        most = min(most, MADE_UP)
    return rules, [source[i] for i in range(min(len(source), arguments.problems or most))]


def estimate(
    plan: Plan, price: Price | None, ended: Mapping[tuple[str, int], bool] = MappingProxyType({})
) -> str:
    """One line on the episodes, tokens and dollars that are left of a plan, at most.

    Args:
        plan: The model, the environment and their settings.
        price: Dollars of an API's tokens; `None`: unknown.
        ended: The episodes on record, each with whether it failed.
    """
    from retool_env.evaluation.cost import Estimate

    turn_tokens = plan.arguments.max_tokens if plan.arguments.api else None
    left = [job.problem for job in plan.jobs(ended)]
    return Estimate.of(left, plan.rules, turn_tokens, len(left)).text(price)


def make_record(plan: Plan, name: str, price: Price | None) -> EvalRecord:
    """The record of an evaluation that begins now.

    Args:
        plan: The model, the environment and their settings.
        name: The evaluation's name.
        price: Dollars of an API's tokens; `None`: unknown.
    """
    from retool_env.evaluation.identity import commit, fingerprint
    from retool_env.evaluation.records import EvalRecord, rules_to_json
    from retool_env.provenance import versions

    arguments = plan.arguments
    options = {
        key: value if isinstance(value, str | int | float | list | None) else str(value)
        for key, value in vars(arguments).items()
    }
    return EvalRecord(
        name=name,
        model=plan.model,
        env=arguments.env,
        settings=plan.settings,
        rules=rules_to_json(plan.rules),
        prompt=plan.rules.template,
        problems=len(plan.problems),
        fingerprint=fingerprint(plan.problems),
        sampling=_sampling(arguments),
        k=arguments.k,
        seed=arguments.seed,
        checkpoint_task=None if plan.task is None else plan.task.to_json(),
        command=options,
        versions=versions(),
        commit=commit(),
        price=None if price is None else dataclasses.asdict(price),
        model_date=arguments.model_date,
        published=dates_of(plan.problems),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    """The sampling settings; of an API the fields as they are sent."""
    sampling = {name: getattr(arguments, name) for name in ("temperature", "top_p")}
    if not arguments.api:
        kind = "servers" if "://" in arguments.engine else arguments.engine
        return {**sampling, "dtype": arguments.dtype, "engine": kind}
    sent = {name: number for name, number in sampling.items() if number is not None}
    way = "tools" if arguments.native_tools else "completions" if arguments.completions else "chat"
    fields = api_fields(arguments)
    if "max_completion_tokens" not in fields:
        fields = {"max_tokens": arguments.max_tokens, **fields}
    return {**sent, **fields, "way": way}


_MOST_BYTES = 160
"""The longest part of a folder's name that a model names; a file system takes 255 bytes in all."""


def _short(name: str) -> str:
    return os.fsencode(name)[:_MOST_BYTES].decode(errors="ignore")


def new_folder(arguments: argparse.Namespace, plan: Plan, kind: str = "eval") -> Path:
    """The folder of an evaluation: the folder that the command names, or a new one.

    Args:
        arguments: The command line.
        plan: The plan of the first model.
        kind: The folder of all such records below `runs`.
    """
    if arguments.out:
        return arguments.out
    mode = "interpreter" if plan.rules.interpreter else "text-only"
    stem = f"{_short(f'{plan.arguments.env}-{Path(plan.arguments.model).name}')}-{mode}"
    name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    return Path("runs") / kind / (arguments.name or name)


def check_folders(
    records: type[Records], folder: Path, folders: Sequence[Path], resume: bool
) -> None:
    """Checks the folders of all plans before a model is loaded; says if nothing is continued.

    Args:
        records: The class of the folders.
        folder: The folder that the command names.
        folders: The folder of each plan.
        resume: Whether the records of the folders are continued.

    Raises:
        SettingsError: A folder holds another record, or a file that would be overwritten.
    """
    if not any([records.check(each, resume) for each in folders]) and resume:
        print(f"{folder} holds no record to continue: all episodes are left", flush=True)


def again(arguments: argparse.Namespace, folder: Path) -> str:
    """The options that continue a record, for an advice.

    Args:
        arguments: The command line.
        folder: The folder of the command.
    """
    named = arguments.name or arguments.out
    return "--resume" if named else f"--resume --out {shlex.quote(str(folder))}"


def folders_below(folder: Path, plans: Sequence[Plan]) -> list[Path]:
    """A folder for each plan; plans of one title are told apart by a number."""
    names: list[str] = []
    for plan in plans:
        stem = _short(f"{plan.arguments.env}-{plan.model.title.replace('/', '-')}")
        numbered = (f"{stem}-{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([stem], numbered) if name not in names))
    return [folder / name for name in names]
