"""Sampler: the policy that samples rollouts, chosen by the setting `engine`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel

from agents.base.settings import SettingsError, read_variable
from retool_env.rollout import Policy
from retool_env.rollout import named as rollout
from retool_env.rollout.named import POLICIES, SERVED, Model
from retool_env.servers.address import shown_url


def check_engine(
    setting: str | Mapping[str, Any], processes: int, sample_batch: int
) -> tuple[str, dict[str, Any]]:
    """Split the setting `engine` into the engine's name and the arguments of its policy.

    Args:
        setting: The setting `engine`.
        processes: The number of the run's processes.
        sample_batch: The largest number of sequences that the engine `transformers` decodes
            together, unless `setting` contains `max_batch`.

    Raises:
        SettingsError: If the engine is unknown, or does not work with this number of processes.
    """
    arguments: dict[str, Any] = {"name": setting} if isinstance(setting, str) else dict(setting)
    name = arguments.pop("name", None)
    names = [policy for policy in POLICIES if policy not in SERVED]
    if name not in names and not str(name).startswith(("http://", "https://")):
        raise SettingsError(
            f"engine: {shown_url(repr(name))} is unknown; choose from {', '.join(names)}, or give "
            "the URLs of vLLM servers"
        )
    if name == "vllm" and processes > 1:
        raise SettingsError(
            "engine=vllm works with one process only: for several processes, start `vllm serve` "
            "and give the URLs of the servers"
        )
    if name == "transformers":
        arguments.setdefault("max_batch", sample_batch)
    elif name not in names:
        arguments.setdefault("sharers", processes)
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
    """Make the policy of an engine.

    Args:
        name: The engine's name or the servers' URLs; see `check_engine`.
        arguments: The arguments of the policy; see `check_engine`.
        trained: The model that is trained, including its adapters.
        tokenizer: The model's tokenizer.
        model: The folder or Hub id from which the model was loaded.
        temperature: The sampling temperature.
        apart: Whether the engine `transformers` samples with a separate copy of the model. A copy
            is needed if the model is sharded, or trained while it samples.
        device: The device of the separate copy.

    Raises:
        SettingsError: If an argument is unknown or out of range.
        ImportError: If a required package is missing.
        PolicyUnavailable: If no server can be reached.
    """
    options = dict(arguments)
    if name not in POLICIES:
        way = options.get("weights", "files")
        if way in ("files", "delta", "adapter") and "weights_folder" not in options:
            raise SettingsError(
                "engine: servers read new weights from files: set engine.weights_folder to a "
                "folder with the same path on every machine"
            )
        if way == "adapter" and not isinstance(trained, PeftModel):
            raise SettingsError(
                "engine.weights=adapter sends a LoRA adapter, and this model has none: train with "
                "LoRA, or set engine.weights=files"
            )
        variable = options.pop("token_env", None)
        if variable is not None:
            options["token"] = read_variable("engine.token_env", variable)
        name, options["urls"] = "vllm_server", name
    dtype = str(next(trained.parameters()).dtype).removeprefix("torch.")
    sampled = Model(model, None if apart else trained, tokenizer, dtype, str(device))
    try:
        policy: Policy = rollout.make_policy(name, sampled, temperature=temperature, **options)
    except SettingsError as error:
        raise SettingsError(f"engine: {error}") from error
    if apart and isinstance(policy.model, torch.nn.Module):
        policy.model.requires_grad_(False)
    return policy
