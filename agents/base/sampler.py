"""The policy that rollouts are sampled with, as the setting `engine` names it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from agents.base.settings import SettingsError
from retool_env.rollout import Policy
from retool_env.rollout import named as rollout
from retool_env.rollout.named import POLICIES, SERVED, Model
from retool_env.servers.address import shown_url, variable_name

ENGINE = (
    "what samples: transformers (the trained model itself; a copy of it where it is sharded, or staleness > 0), vllm, "
    "vLLM servers' URLs, or a mapping {name: one of these, and arguments of its policy}"
)
"""What the setting `engine` is."""


def check_engine(setting: str | Mapping[str, Any], processes: int) -> tuple[str, dict[str, Any]]:
    """An engine's name and its policy's arguments.

    Raises:
        SettingsError: If there is no such engine, or it can't be had in a run of so many processes.
    """
    arguments = {"name": setting} if isinstance(setting, str) else dict(setting)
    name = arguments.pop("name", None)
    names = [each for each in POLICIES if each not in SERVED]
    if name not in names and not str(name).startswith(("http://", "https://")):
        raise SettingsError(
            f"engine: {shown_url(repr(name))} is none; there are {', '.join(names)}, and vLLM servers' URLs"
        )
    if name == "vllm" and processes > 1:
        raise SettingsError(
            "engine=vllm is for one process: with several, start `vllm serve` and name its URLs"
        )
    return str(name), arguments


def make_policy(
    name: str,
    arguments: Mapping[str, Any],
    trained: torch.nn.Module,
    tokenizer: Any,
    model: str,
    temperature: float,
    apart: bool,
    device: torch.device | str = "cpu",
) -> Policy:
    """The policy of an engine.

    Args:
        name: See `check_engine`.
        arguments: The same.
        trained: The model that is trained, adapters and all.
        tokenizer: Its tokenizer.
        model: The folder or id that it was loaded from.
        temperature: Of sampling.
        apart: Whether it is sampled from while it is trained, or is sharded.
        device: Where a model apart lies.

    Raises:
        SettingsError: If an argument is unknown or out of range.
        ImportError: If a package that it needs is missing.
        PolicyUnavailable: If no server can be reached.
    """
    given = dict(arguments)
    if name not in POLICIES:
        if "weights_folder" not in given:
            raise SettingsError(
                "engine: servers get new weights as files: set engine.weights_folder, a folder at the same path on "
                "every machine"
            )
        variable = given.pop("token_env", None)
        if variable is not None:
            if variable not in os.environ:
                raise SettingsError(
                    f"engine.token_env: there is no variable {variable_name(variable)!r}"
                )
            given["token"] = os.environ[variable]
        name, given["urls"] = "vllm_server", name
    dtype = str(next(trained.parameters()).dtype).removeprefix("torch.")
    sampled = Model(model, None if apart else trained, tokenizer, dtype, str(device))
    try:
        policy: Policy = rollout.make_policy(name, sampled, temperature=temperature, **given)
    except SettingsError as error:
        raise SettingsError(f"engine: {error}") from error
    if apart and isinstance(policy.model, torch.nn.Module):
        policy.model.requires_grad_(False)
    return policy
