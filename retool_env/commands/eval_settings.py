"""The settings of `retool eval`: the environment's, the sampling, and the policy."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retool_env.commands.checkpoints import checkpoint_task, task_lines, with_test_split
from retool_env.errors import SettingsError
from retool_env.key_values import parse_settings
from retool_env.servers.address import check_no_secrets, redact, variable_name

if TYPE_CHECKING:
    from retool_env.checkpoint_task import CheckpointTask
    from retool_env.rules import Rules

MAX_TOKENS = 1024
"""The default of `--max-tokens`, where neither the command nor the checkpoint names a number."""


def eval_settings(
    arguments: argparse.Namespace,
) -> tuple[CheckpointTask | None, dict[str, Any], list[str]]:
    """Resolves the settings of an evaluation.

    The command line wins over the model's `retool.json`, and that file over the defaults. The
    resolved id of the environment, token budget and sampling are written to `arguments`.

    Returns:
        The checkpoint's task, or `None`; the environment's settings; and lines for the reader that
        say where the settings come from.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: No environment is named, the checkpoint's `retool.json` is wrong, or an option
            for models behind an API is given without `--api`.
    """
    from retool_env.checkpoint_task import TEMPERATURE, TOP_P, merged
    from retool_env.task import registered_settings

    given = parse_settings(arguments.settings)
    if arguments.text_only:
        given["interpreter"] = False
    if arguments.api is None and arguments.max_tokens is not None:
        given.setdefault("max_tokens", arguments.max_tokens)
    if arguments.env is not None:
        registered_settings(arguments.env)  # before the Hub is asked
    usual = eval_defaults(arguments)
    task, lines = checkpoint_task(arguments) if arguments.api is None else (None, [])
    arguments.env = arguments.env or (task and task.id)
    if arguments.env is None:
        raise SettingsError("name an environment with --env: no retool.json of the model names one")
    sampling = {"temperature": TEMPERATURE, "top_p": TOP_P}
    if task is not None:
        usual |= task.settings_for(arguments.env)
        sampling = task.sampling_for(arguments.env)
    asked = {name: getattr(arguments, name) for name in sampling}
    asked = {name: number for name, number in asked.items() if number is not None}
    lines += task_lines(task, arguments, {**given, **asked})
    if arguments.max_tokens is None:
        arguments.max_tokens = api_fields(arguments).get("max_completion_tokens", MAX_TOKENS)
    for name, number in {**sampling, **asked}.items():
        left_out = getattr(arguments, f"no_{name}")
        setattr(arguments, name, None if left_out else number)
    return task, with_test_split(arguments.env, merged(usual, given)), lines


_OF_APIS = (
    *("api_key_env", "native_tools", "completions", "no_temperature", "no_top_p", "api_arg"),
)


def api_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The further fields of an API's requests that the command names.

    Raises:
        SettingsError: A field is the policy's own, or the two limits on tokens differ.
    """
    from retool_env.rollout.openai.extra import check_extra

    for pair in arguments.api_arg:
        if not pair.partition("=")[0] or "=" not in pair:
            raise SettingsError(f"--api-arg must be NAME=VALUE, not {redact(pair)!r}")
    fields = parse_settings(arguments.api_arg)
    check_no_secrets(fields, "--api-arg")
    fields = check_extra(fields)
    most = fields.get("max_completion_tokens")
    if most is not None and arguments.max_tokens not in (None, most):
        raise SettingsError(
            f"--max-tokens {arguments.max_tokens} and max_completion_tokens={most} differ: give "
            "one of the two"
        )
    return fields


def eval_defaults(arguments: argparse.Namespace) -> dict[str, Any]:
    """The environment's settings that fit the kind of model, if nobody sets others.

    Raises:
        ValueError: An option for models behind an API is given without `--api`.
    """
    from retool_env.protocol.prompt import default_prompt

    if arguments.api is None:
        for name in _OF_APIS:
            if getattr(arguments, name):
                raise SettingsError(
                    f"--{name.replace('_', '-')} is for models behind an API: give --api"
                )
        return {"max_tokens": MAX_TOKENS}
    if arguments.engine != "transformers" or arguments.engine_arg:
        raise SettingsError("--engine and --engine-arg are for local models: leave --api out")
    if arguments.native_tools:  # the API describes the tool, so that the prompt must not
        return {"prompt_template": default_prompt(interpreter=False)}
    return {}


def _local_policy_maker(
    arguments: argparse.Namespace, sampling: dict[str, Any]
) -> Callable[[], Any]:
    """Returns the function that loads the model, or the tokenizer of a served model."""
    from retool_env.rollout.named import POLICIES, SERVED, Model, make_policy

    engine, model = arguments.engine, Model(arguments.model, dtype=arguments.dtype)
    options = {**sampling, **parse_settings(arguments.engine_arg or [])}
    if engine == "transformers":
        options = {"max_batch": arguments.batch, **options}
        return lambda: _with_few_threads(make_policy(engine, model, **options))
    if engine == "vllm":
        return lambda: make_policy(engine, model, **{"dtype": arguments.dtype, **options})
    if engine in POLICIES and engine not in SERVED:
        return lambda: make_policy(engine, model, **options)

    def of_servers() -> Any:
        from transformers import AutoTokenizer

        from retool_env.rollout.checkpoint_files import reading

        with reading(arguments.model):
            tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        served = dataclasses.replace(model, tokenizer=tokenizer)
        return make_policy("vllm_server", served, urls=engine, **options)

    return of_servers


_OWN_OPTIONS = {
    "temperature": "--temperature",
    "top_p": "--top-p",
    "max_batch": "--batch",
    "dtype": "--dtype",
    "model": "--model",
    "urls": "--engine",
}
"""The arguments of engines that have an option of their own, which the records hold."""


def check_engine(arguments: argparse.Namespace) -> None:
    """Checks the options `--engine` and `--engine-arg`. No engine is made.

    Raises:
        SettingsError: The engine is unknown, or an argument has an option of its own.
    """
    from retool_env.rollout.named import POLICIES, SERVED

    engine, known = arguments.engine, [name for name in POLICIES if name not in SERVED]
    if engine not in known and not engine.startswith(("http://", "https://")):
        raise SettingsError(
            f"--engine {engine!r:.60} is unknown: choose {', '.join(known)}, or the URLs of "
            "servers, as http://host:8000,http://other:8000"
        )
    for name in parse_settings(arguments.engine_arg or []):
        if name in _OWN_OPTIONS:
            raise SettingsError(f"--engine-arg {name} can't be set: give {_OWN_OPTIONS[name]}")


_SMALL = 10_000_000
"""A model with fewer parameters runs faster on one thread of a CPU than on several, which wait for
each other (0.9 million parameters, 80 episodes, two processors: 8.8 s against 14.7 s)."""


def _with_few_threads(policy: Any) -> Any:
    """Gives a small model on the CPU one thread."""
    import torch

    model = policy.model
    if model.device.type == "cpu" and model.num_parameters() < _SMALL:
        torch.set_num_threads(1)
    return policy


def policy_maker(arguments: argparse.Namespace, rules: Rules) -> Callable[[], Any]:
    """Checks the settings of the policy, and returns the function that makes it.

    That function loads the model.

    Raises:
        MissingPackage: The package of an API's client is missing.
        SettingsError: The API's key is missing, or the limits do not suit an API.
    """
    from retool_env.protocol.hermes import Hermes
    from retool_env.rollout.named import Model, make_policy

    sampling = {"temperature": arguments.temperature, "top_p": arguments.top_p}
    if arguments.api is None:
        return _local_policy_maker(arguments, sampling)
    if rules.max_tokens is not None:
        raise SettingsError("an API gives no tokens to count: set --max-tokens or max_characters")
    variable = arguments.api_key_env
    if variable and not os.environ.get(variable):
        raise SettingsError(
            f"--api-key-env {variable_name(variable)}: this environment variable is not set or is "
            "empty"
        )
    way = "completions" if arguments.completions else "chat"
    policy = make_policy(
        "openai",
        Model(arguments.model),
        urls=arguments.api,
        api_key=os.environ[variable] if variable else None,
        way="tools" if arguments.native_tools else way,
        tool=Hermes(True, rules.session, rules.display).tools[0],
        max_tokens=arguments.max_tokens,
        extra=api_fields(arguments),
        concurrency=arguments.batch,
        **sampling,
    )
    return lambda: policy
