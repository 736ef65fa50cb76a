"""Policies by name, as settings and command lines ask for them. Importing this loads no model's library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retool_env.errors import MissingPackage, RetoolError, SettingsError
from retool_env.rollout.policy import Policy, TextPolicy
from retool_env.servers.address import split_urls


@dataclass(frozen=True)
class Model:
    """The model that a policy is to sample from, as far as its user has it."""

    name: str
    """A checkpoint's folder, a Hub id, or the model's name behind an API."""
    loaded: Any = None
    """The model itself, which is sampled from where it is; `None`: it is loaded by its name."""
    tokenizer: Any = None
    """Its tokenizer, where that is loaded already."""
    dtype: str = "auto"
    """The type of the weights that are loaded."""
    device: str | None = None
    """Where they are loaded; `None`: a GPU where there is one."""


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
"""Each name with the function that makes its policy of a `Model` and the policy's own settings.

A policy of one's own is entered here, `POLICIES["mine"] = make_mine`, and can then be named wherever these can.
"""

SERVED = ("vllm_server", "openai")
"""The policies that settings do not name, but the `urls` of their servers do."""


def make_policy(name: str, model: Model, **settings: Any) -> Any:
    """Make the policy called `name`: a `Policy`, or a `TextPolicy` where the model gives no token ids.

    Args:
        name: One of `POLICIES`.
        model: The model, as far as it is at hand.
        **settings: The arguments of that policy: `temperature`, `top_p`, `max_batch`, `urls`, ...

    Raises:
        SettingsError: If there is no such policy, or it takes no such setting, or none of such a value.
        MissingPackage: If a package that it needs is not installed.
        PolicyUnavailable: If no server can be reached.
        OSError: If there is no such model.
    """
    if name not in POLICIES:
        raise SettingsError(f"no policy {name!r}; there are {', '.join(POLICIES)}")
    try:
        return POLICIES[name](model, **settings)
    except RetoolError:
        raise
    except (
        TypeError,
        ValueError,
    ) as error:  # an argument, or a model that its library does not know
        raise SettingsError(str(error)) from error
    except ImportError as error:
        cure = "running a model needs pip install 'retool-env[train]'"
        raise MissingPackage(f"{error}; {cure}") from error
