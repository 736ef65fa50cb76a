"""Sampler: the policy that samples rollouts, chosen by the setting `engine`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from agents.base.config import read_config
from agents.base.settings import SettingsError, read_variable
from retool_env.rollout import Policy
from retool_env.rollout import named as rollout
from retool_env.rollout.named import POLICIES, SERVED, Model
from retool_env.servers.address import shown_url
from retool_env.training.processes import everywhere

if TYPE_CHECKING:
    from agents.base.run import Run

_OTHERS = {
    "temperature": "set temperature, which the loss reads as well",
    "model": "set model",
}
"""Arguments of policies that other settings fill, with the advice for the error."""


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
        SettingsError: If the engine is unknown or does not work with this number of processes, or
            another setting fills one of the arguments.
    """
    arguments: dict[str, Any] = {"name": setting} if isinstance(setting, str) else dict(setting)
    name = arguments.pop("name", None)
    names = [policy for policy in POLICIES if policy not in SERVED]
    if name not in names and not str(name).startswith(("http://", "https://")):
        raise SettingsError(
            f"engine: {shown_url(repr(name))} is unknown; choose from {', '.join(names)}, or give "
            "the URLs of vLLM servers"
        )
    for key, advice in _OTHERS.items():
        if key in arguments:
            raise SettingsError(f"engine.{key} can't be set: {advice}")
    if name not in names and "urls" in arguments:
        raise SettingsError("engine.urls can't be set: engine.name holds the URLs")
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


def check_for_training(arguments: Mapping[str, Any], staleness: int) -> None:
    """Check that a loss can use the engine's log-probs, and that the engine can sample ahead.

    The rollouts check the policy itself again. This check needs no model.

    Args:
        arguments: The arguments of the policy; see `check_engine`.
        staleness: The number of batches that are sampled ahead.

    Raises:
        SettingsError: If an argument does not suit training with this staleness.
    """
    if (top_p := arguments.get("top_p", 1.0)) != 1.0:
        raise SettingsError(
            f"engine.top_p={top_p}: training needs top_p=1, so that the log-probs belong to the "
            "model's own distribution. Leave engine.top_p out"
        )
    if staleness and arguments.get("sleep_mode"):
        raise SettingsError(
            f"engine.sleep_mode=true needs staleness=0, not {staleness}: an engine that sleeps "
            "while the trainer trains can't sample ahead"
        )
    waits = "wait" if arguments.get("weights") == "adapter" else arguments.get("at_update")
    if staleness > 1 and arguments.get("sharers", 1) > 1 and waits == "wait":
        raise SettingsError(
            f"staleness={staleness} is too large for servers that several processes share, with "
            "engine.weights=adapter or engine.at_update=wait: no turn may be under way while such "
            "servers take new weights. Set staleness=1, or leave both out"
        )


def own_weights_folder(run: Run, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a policy, with a folder of the run's own below their `weights_folder`.

    Files of a start that was killed are removed there. All processes call this together.

    Args:
        run: The run, which has started.
        arguments: The arguments; see `check_engine`. Without a `weights_folder` nothing happens.
    """
    if "weights_folder" not in arguments:
        return dict(arguments)
    name = everywhere(read_config(run.folder).get("id", "") if run.main else "")[0]
    folder = Path(arguments["weights_folder"]) / name
    if name and run.main:
        shutil.rmtree(folder, ignore_errors=True)
    everywhere(None)
    return {**arguments, "weights_folder": str(folder)}


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
