"""Policy: what the engine and the trainers ask of a model, written whole.

A `Policy` takes token ids and gives token ids; a `TextPolicy` takes a transcript and gives text, for models that
give no ids. Both are context managers that close themselves. A policy of one's own inherits one of them and writes
`act` and `update_weights`, or `write`; everything else has a default:

| part     | members                                                                            |
|----------|------------------------------------------------------------------------------------|
| turns    | `act`, `tokenizer`, `context_length`; of text, `write`                             |
| sampling | `temperature`, `top_p`                                                             |
| weights  | `model`, `checkpoint`, `weight_version`, `update_weights`; `shares_servers`, `follow` |
| memory   | `cache_tokens`, `prefilled_tokens`, `clear_cache`; `sleep_mode`, `sleep`, `wake_up` |
| end      | `close`, and `with policy:`                                                        |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from retool_env.episode import Generation, Tokenizer
from retool_env.errors import PolicyUnavailable as PolicyUnavailable
from retool_env.errors import SettingsError
from retool_env.protocol.program import Form
from retool_env.rollout.weights import Weights
from retool_env.transcript import Transcript


def check_sampling(temperature: float, top_p: float) -> None:
    """Check the settings of sampling, which are the same for every policy.

    Raises:
        SettingsError: If one is out of range.
    """
    if not temperature >= 0:
        raise SettingsError(f"temperature must not be negative, not {temperature}")
    if not 0 < top_p <= 1:
        raise SettingsError(f"top_p must be above 0 and at most 1, not {top_p}")


def check_room(token_ids: Sequence[int], budget: int, context_length: int) -> None:
    """Check that a model can take a turn.

    Raises:
        ValueError: If there are no tokens, the budget is below 1, or both together do not fit into the context.
    """
    if not token_ids or budget < 1 or len(token_ids) + budget > context_length:
        raise ValueError(
            f"{len(token_ids)} tokens and a budget of {budget} don't fit a context of {context_length}"
        )


class BasePolicy:
    """The part of the contract that policies of token ids and of text share."""

    temperature: float | None = None
    """The temperature of sampling; `None`: the policy does not sample, as one that was scripted does not."""
    top_p: float = 1.0
    """The nucleus mass of sampling. Training needs 1.0, so that log-probs are those of the model itself."""
    model: Any = None
    """The model: a module in this process, or its name elsewhere; `None` where there is none."""
    checkpoint: str | None = None
    """The folder or Hub id that the model was loaded from; its `retool.json` may give the episodes' rules."""
    weight_version: int | None = None
    """The number of the weights that are served now, an optimizer step; `None` where nobody counts them."""

    def close(self) -> None:
        """Free everything that the policy holds. May be called again. By default there is nothing to free."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Policy(BasePolicy, ABC):
    """A source of turns as token ids. Many `act` calls are in flight at once; the policy batches them as it likes."""

    tokenizer: Tokenizer
    """The tokenizer, which encodes prompts and results, and decodes sampled tokens."""
    context_length: int
    """The most tokens of prompt and response together that the model can take."""
    weight_version: int = 0
    """The number of the weights that are served now, an optimizer step; 0 at first."""
    shares_servers: bool = False
    """Whether the weights lie on servers that the policies of several processes share: one updates them there,
    then the others `follow`."""
    sleep_mode: bool = False
    """Whether the policy can `sleep`, and a trainer on the same GPU is to let it."""
    cache_tokens: int | None = None
    """The most tokens whose keys and values are kept; `None` where that is the engine's matter."""
    prefilled_tokens: int | None = None
    """The number of tokens of contexts that were computed so far; `None` where nobody counts them."""

    @abstractmethod
    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Sample one turn. Cancelling this ends the request: nothing more is sampled for it.

        Args:
            token_ids: All tokens that the model has seen and written so far, shape `(P,)`.
            stop: Strings that end the turn. The token that completes one is kept whole.
            budget: The most tokens to sample, at least 1.
            seed: The seed of this turn's sampling. Same ids, seed and weights: the same turn, up to the
                arithmetic's rounding, which may differ with the other requests in a batch.

        Returns:
            The sampled tokens, each with its log-prob under the distribution that it was sampled from.

        Raises:
            PolicyUnavailable: If no turn can be had for now; the engine tries the episode again.
        """

    @abstractmethod
    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """Serve new weights from here on, and nothing from a cache of older ones. Returns once it does.

        Args:
            version: The new weights' number.
            weights: All of the model's weights, by the names of transformers, adapters merged. `None`: the policy
                finds them by itself, in the model or its checkpoint's folder.
        """

    async def follow(self, version: int) -> None:
        """Go on with weights that another policy has let the servers load, where `shares_servers`.

        Args:
            version: The number of these weights.

        Raises:
            RuntimeError: If the policy shares no servers, which is the default.
        """
        raise RuntimeError("this policy shares no servers: update its weights")

    def clear_cache(self) -> None:
        """Give the cache's memory back while nothing is sampled. By default there is none."""

    async def sleep(self) -> None:
        """Free the GPU's memory, weights and cache, until `wake_up`, where `sleep_mode`.

        Raises:
            RuntimeError: If the policy has no `sleep_mode`, which is the default.
        """
        raise RuntimeError("this policy can't sleep: it has no sleep_mode")

    async def wake_up(self) -> None:
        """Bring back the weights that were served before `sleep`.

        Raises:
            RuntimeError: If the policy has no `sleep_mode`, which is the default.
        """
        raise RuntimeError("this policy can't sleep: it has no sleep_mode")


@dataclass(frozen=True)
class Usage:
    """Tokens, as an API counts and bills them."""

    requests: int = 0
    """Number of answered requests."""
    prompt_tokens: int = 0
    """Number of tokens read. The whole conversation counts anew at each turn."""
    completion_tokens: int = 0
    """Number of tokens written, including a reasoning that the API does not show."""
    uncounted: int = 0
    """Number of answers without token counts. The sums leave them out."""
    cached_tokens: int = 0
    """Number of prompt tokens that the API read from its cache; they are part of `prompt_tokens`."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            *(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__)
        )

    def __str__(self) -> str:
        text = f"{self.requests} requests, {self.prompt_tokens:,} tokens in, {self.completion_tokens:,} out"
        return text + (f" ({self.uncounted} answers came without figures)" * bool(self.uncounted))


@dataclass(frozen=True)
class TextGeneration:
    """One turn of a model that gives no token ids."""

    text: str
    """The text that it wrote, the closing tag included."""
    stop_reason: Literal["tag", "eos", "length"]
    """Why it stopped: a closing tag, its own end, or a limit on its length."""
    seconds: float = field(default=0.0, compare=False)
    """The wall-clock seconds that it took."""
    form: Form | None = None
    """How its program was read, where the policy made the code block of a native call; `None`: the text
    shows it."""
    usage: Usage | None = field(default=None, compare=False)
    """Tokens of the turn, where an API counts them."""


class TextPolicy(BasePolicy, ABC):
    """A source of turns as text, for evaluation: what it writes can't be trained on."""

    usage: Usage | None = None
    """The tokens of all turns so far, where an API counts them."""
    on_usage: Callable[[Usage], None] | None = None
    """Called with the tokens of each request that an API has answered, also where the answer
    cannot be used."""

    @abstractmethod
    async def write(self, transcript: Transcript, stop: Sequence[str], seed: int) -> TextGeneration:
        """Write one turn. Cancelling this ends the request.

        Args:
            transcript: All text that the model has seen and written so far, without token ids.
            stop: Strings that end the turn, which holds the one that ended it.
            seed: The seed of this turn's sampling, for models that take one.

        Raises:
            PolicyUnavailable: If no turn can be had for now; the engine tries the episode again.
        """


def as_policy(policy: Any) -> Policy | TextPolicy:
    """The policy itself or, where its class inherits neither of ours, one that has its members and our defaults.

    Raises:
        TypeError: If it can neither `act` nor `write`.
    """
    if isinstance(policy, Policy | TextPolicy):
        return policy
    if not (hasattr(policy, "act") or hasattr(policy, "write")):
        raise TypeError(
            f"{type(policy).__name__} is no policy: inherit retool_env.rollout.Policy, and write `act` and "
            "`update_weights`, or TextPolicy, and write `write`"
        )
    base = TextPolicy if hasattr(policy, "write") else Policy

    def get(self: Any, name: str) -> Any:
        return (
            getattr(policy, name) if hasattr(policy, name) else object.__getattribute__(self, name)
        )

    def set(self: Any, name: str, value: Any) -> None:
        setattr(policy, name, value)

    # The abstract methods are the policy's; here they only need to be there.
    members = dict.fromkeys(base.__abstractmethods__)
    members |= {"__getattribute__": get, "__setattr__": set}
    return type(type(policy).__name__, (base,), members)()
