"""Policies by name, for settings and command lines. Importing this loads no model's library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retool_env.errors import MissingPackage, RetoolError, SettingsError
from retool_env.rollout.policy import Policy, TextPolicy
from retool_env.servers.address import split_urls


@dataclass(frozen=True)
class Model:
    """The model of a policy, and the parts of it that are loaded already."""

    name: str
    """The folder of a checkpoint, a Hub id, or the name of the model behind an API."""
    loaded: Any = None
    """The loaded model, which is used in place; `None`: the policy loads the model by its name."""
    tokenizer: Any = None
    """The loaded tokenizer of the model; `None`: the policy loads it."""
    dtype: str = "auto"
    """The type of the loaded weights; `"auto"`: the checkpoint's type."""
    device: str | None = None
    """The device of the loaded weights; `None`: a GPU if there is one."""


def _transformers(model: Model, **settings: Any) -> Policy:
    from retool_env.rollout.transformers.policy import TransformersPolicy, load_policy

    if model.loaded is None:
        return load_policy(model.name, model.dtype, model.device, **settings)
    return TransformersPolicy(model.loaded, model.tokenizer, **settings)


def _vllm(model: Model, **settings: Any) -> Policy:
    from retool_env.rollout.vllm.in_process import VLLMPolicy

    return VLLMPolicy(model.name, **settings)


def _vllm_server(model: Model, urls: str, **settings: Any) -> Policy:
    from retool_env.rollout.vllm.server import VLLMServerPolicy

    addresses = split_urls(urls, "a server", "http://host:8000")
    return VLLMServerPolicy(addresses, model.tokenizer, **settings)


def _openai(model: Model, urls: str, **settings: Any) -> TextPolicy:
    from retool_env.rollout.openai.policy import OpenAIPolicy

    return OpenAIPolicy(model.name, urls, **settings)


POLICIES: dict[str, Callable[..., Policy | TextPolicy]] = {
    "transformers": _transformers,
    "vllm": _vllm,
    "vllm_server": _vllm_server,
    "openai": _openai,
}
"""For each name, the function that makes its policy from a `Model` and the policy's settings.

Add an entry for a new policy, `POLICIES["mine"] = make_mine`; every setting then accepts the name.
"""

SERVED = ("vllm_server", "openai")
"""The names of policies that settings do not name, because the `urls` of the servers imply them."""


def make_policy(name: str, model: Model, /, **settings: Any) -> Any:
    """Make the policy of this name.

    Args:
        name: A key of `POLICIES`.
        model: The model of the policy.
        **settings: The arguments of the policy: `temperature`, `top_p`, `max_batch`, `urls`, ...

    Returns:
        A `Policy`, or a `TextPolicy` if the model gives no token ids.

    Raises:
        SettingsError: If the name, a setting or the value of a setting is unknown.
        MissingPackage: If a package that the policy needs is not installed.
        PolicyUnavailable: If no server can be reached.
        OSError: If the model is not found.
    """
    if name not in POLICIES:
        raise SettingsError(f"unknown policy {name!r}: choose one of {', '.join(POLICIES)}")
    try:
        return POLICIES[name](model, **settings)
    except RetoolError:
        raise
    except (TypeError, ValueError) as error:  # an unknown argument, or an unknown kind of model
        raise SettingsError(str(error)) from error
    except ImportError as error:
        raise MissingPackage(f"{error}: to run a model, pip install 'retool-env[train]'") from error
