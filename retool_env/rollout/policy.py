"""Policy: the whole contract between a model and the engine, the trainers and the evaluation.

A `Policy` takes and returns token ids. A `TextPolicy` takes a transcript and returns text, for
models without token ids. Both are context managers that close themselves. A new policy inherits one
of them and defines `act` and `update_weights`, or `write`; all other members have defaults:

| part     | members                                                                            |
|----------|------------------------------------------------------------------------------------|
| turns    | `act`, `tokenizer`, `context_length`; of text, `write`                             |
| sampling | `temperature`, `top_p`                                                             |
| weights  | `model`, `checkpoint`, `weight_version`, `update_weights`, `weights_dtype`,       |
|          | `takes_adapter`, `at_update`, `reread_tokens`, `mixed_turns`; of several           |
|          | processes, `shares_servers`, `writes_parts`, `write_part`, `hold`, `follow`        |
| memory   | `cache_tokens`, `prefilled_tokens`, `clear_cache`, `admits`; `sleep_mode`,         |
|          | `sleep`, `wake_up`                                                                 |
| end      | `close`, and `with policy:`                                                        |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from retool_env.episode import Generation, Tokenizer
from retool_env.episode import TurnEnd as TurnEnd
from retool_env.errors import PolicyUnavailable as PolicyUnavailable
from retool_env.errors import SettingsError
from retool_env.protocol.program import Form
from retool_env.rollout.weights import Parts, Weights
from retool_env.transcript import Transcript

AtUpdate = Literal["cut", "wait", "keep"]
"""The treatment of turns under way when new weights come.

`"cut"`: they keep their tokens, and go on under the new weights. `"wait"`: they end first.
`"keep"`: they go on under the new weights with the keys and values of the older weights. Their
later tokens are then counted under the older version, since the time of the change is not known.
"""


def check_at_update(at_update: str) -> AtUpdate:
    """Check the treatment of turns under way, and return it.

    Args:
        at_update: The treatment; see `AtUpdate`.

    Raises:
        SettingsError: If it is unknown.
    """
    if at_update not in get_args(AtUpdate):
        raise SettingsError(f"at_update must be cut, wait or keep, not {at_update!r}")
    return at_update  # type: ignore[return-value]  # checked above


def check_sampling(temperature: float | None, top_p: float | None) -> None:
    """Check the sampling settings, which are the same for every policy.

    Args:
        temperature: The sampling temperature, 0 or more. `None`: not set.
        top_p: The nucleus mass, above 0 and at most 1. `None`: not set.

    Raises:
        SettingsError: If a setting is out of range.
    """
    if temperature is not None and not temperature >= 0:
        raise SettingsError(f"temperature must not be negative, not {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise SettingsError(f"top_p must be above 0 and at most 1, not {top_p}")


def check_room(token_ids: Sequence[int], budget: int, context_length: int) -> None:
    """Check that a turn fits into the model's context.

    Args:
        token_ids: The context of the turn, shape `(P,)`.
        budget: The most tokens to sample.
        context_length: The most tokens that the model can take.

    Raises:
        ValueError: If there are no tokens, the budget is below 1, or both together do not fit into
            the context.
    """
    if not token_ids or budget < 1 or len(token_ids) + budget > context_length:
        raise ValueError(
            f"{len(token_ids)} tokens and a budget of {budget} don't fit a context of "
            f"{context_length}"
        )


class BasePolicy:
    """The part of the contract that `Policy` and `TextPolicy` share."""

    temperature: float | None = None
    """The sampling temperature; `None`: the policy does not sample (scripted turns, for example).
    """
    top_p: float = 1.0
    """The nucleus mass of sampling. Training needs 1.0, so that log-probs equal the model's own."""
    model: Any = None
    """The model: a module in this process, or the name of a model elsewhere; `None`: no model."""
    checkpoint: str | None = None
    """The folder or Hub id from which the model was loaded; its `retool.json` may set the rules."""
    weight_version: int | None = None
    """The number of the served weights, an optimizer step; `None`: versions are not counted."""

    def close(self) -> None:
        """Free all resources of the policy. It may be called again. The default does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Policy(BasePolicy, ABC):
    """A source of turns as token ids.

    Many `act` calls are in flight at once; the policy batches them as it likes.
    """

    tokenizer: Tokenizer
    """The tokenizer, which encodes prompts and results, and decodes sampled tokens."""
    context_length: int
    """The most tokens of prompt and response together that the model can take."""
    weight_version: int = 0
    """The number of the served weights, an optimizer step; 0 at first."""
    shares_servers: bool = False
    """Whether the policies of several processes share the servers that hold the weights. One policy
    then updates the weights, and the other policies `follow`.
    """
    at_update: AtUpdate = "wait"
    """The treatment of turns under way when new weights come."""
    reread_tokens: int = 0
    """The number of tokens of cut turns, contexts included, that were computed again so far."""
    mixed_turns: int = 0
    """The number of turns so far that went on under new weights with a cache of older weights."""
    writes_parts: bool = False
    """Whether all of these processes write the weights together, with `write_part`."""
    takes_adapter: bool = False
    """Whether `update_weights` takes the `Adapter` of a model in place of its weights."""
    weights_dtype: str | None = None
    """The data type in which weights travel, for example `"bfloat16"`: a trainer casts shards
    before it gathers them. `None`: the trainer's own.
    """
    sleep_mode: bool = False
    """Whether the policy can `sleep`, so that a trainer on the same GPU has its memory."""
    cache_tokens: int | None = None
    """The most tokens whose keys and values are kept; `None`: the engine decides."""
    prefilled_tokens: int | None = None
    """The number of context tokens that were computed so far; `None`: not counted."""

    admits: Callable[[float], bool] | None = None
    """Whether the episodes in flight of this process may grow to this many tokens together, in any
    thread. The engine asks before an episode begins, and again later if they may not. `None`: the
    policy sets no bound.
    """

    @abstractmethod
    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Sample one turn. Cancelling this call ends the request, and no more tokens are sampled.

        Args:
            token_ids: All tokens that the model has seen and written so far, shape `(P,)`.
            stop: Strings that end the turn. The token that completes a stop string is kept whole.
            budget: The most tokens to sample, at least 1.
            seed: The seed of this turn's sampling. Equal ids, seed and weights give the same turn,
                up to rounding, which may differ with the other requests in a batch.

        Returns:
            The sampled tokens, each with its log-prob under the distribution that it was sampled
            from.

        Raises:
            PolicyUnavailable: If no turn is available for now; the engine tries the episode again.
        """

    @abstractmethod
    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """Serve new weights from now on, and nothing from a cache of older weights.

        Returns when the new weights are served.

        Args:
            version: The number of the new weights.
            weights: All weights of the model, by the names of transformers, adapters merged.
                `None`: the policy finds them by itself, in the model or in the folder of its
                checkpoint.
        """

    def write_part(self, parts: Parts, weights: Weights, rank: int) -> None:
        """Write this process's part of new weights. Then one process calls `update_weights(parts)`.

        Args:
            parts: The parts of all processes.
            weights: All weights of the model, in the same order on every process.
            rank: The number of this process, from 0.

        Raises:
            RuntimeError: If the policy does not write parts (`writes_parts`), which is the default.
        """
        raise RuntimeError("this policy takes weights from one process: call update_weights")

    async def hold(self, cut: bool = True) -> None:
        """Let no turn begin until `update_weights` or `follow`.

        All policies that share servers hold their turns before one of them updates the weights.
        With `at_update="cut"`, turns under way are cut, and go on afterwards; with `"keep"` they go
        on meanwhile. The default, and `at_update="wait"`, do nothing. No turn may be under way
        then.

        Args:
            cut: Whether to cut turns now, and to return when none is under way. The cuts of one
                policy also end the turns of the others, so first all policies hold without cuts.
        """

    async def follow(self, version: int) -> None:
        """Use the weights that another policy has let the shared servers load.

        Turns that were held go on. After an error they stay held.

        Args:
            version: The number of these weights.

        Raises:
            RuntimeError: If the policy shares no servers, which is the default.
        """
        raise RuntimeError("this policy shares no servers: call update_weights instead of follow")

    def clear_cache(self) -> None:
        """Free the memory of the cache while nothing is sampled. The default does nothing."""

    async def sleep(self) -> None:
        """Free the GPU's memory of weights and cache until `wake_up`.

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
    """The numbers of tokens that an API counts and bills."""

    requests: int = 0
    """The number of answered requests."""
    prompt_tokens: int = 0
    """The tokens that the model read. Each turn counts the whole conversation again."""
    completion_tokens: int = 0
    """The tokens that the model wrote, including any hidden reasoning."""
    uncounted: int = 0
    """The number of answers without figures; their tokens are missing from the sums."""
    cached_tokens: int = 0
    """The part of `prompt_tokens` that the API read from its cache."""
    in_reasoning: int = 0
    """The number of answers whose tag or call stands in the reasoning alone, and has no effect."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            *(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__)
        )

    def __str__(self) -> str:
        text = f"{self.requests} requests, {self.prompt_tokens:,} tokens in, "
        text += f"{self.completion_tokens:,} out"
        text += f" ({self.uncounted} answers came without figures)" * bool(self.uncounted)
        apart = f" (in {self.in_reasoning} answers a tag or a call stands in the reasoning alone)"
        return text + apart * bool(self.in_reasoning)


@dataclass(frozen=True)
class AnsweredAs:
    """The model behind an answer, in the API's words."""

    model: str | None
    """The name of the model; `None`: not given."""
    system_fingerprint: str | None
    """The API's name of its hardware and software; `None`: not given."""


@dataclass(frozen=True)
class TextGeneration:
    """One turn of a model that returns no token ids."""

    text: str
    """The text of the turn, including the closing tag."""
    stop_reason: TurnEnd
    """Why the turn ended."""
    seconds: float = field(default=0.0, compare=False)
    """The wall-clock seconds of the turn."""
    form: Form | None = None
    """The form of the program, if the policy made the code block from a native call. `None`: the
    text shows the form.
    """
    usage: Usage | None = field(default=None, compare=False)
    """The tokens of the turn; `None`: not counted."""
    sent: tuple[str, ...] = field(default=(), compare=False)
    """The digests of the request; see `TextPolicy.digests`."""
    apart: bool = field(default=False, compare=False)
    """Whether the API kept a reasoning apart from the text; see `Span.apart`."""


class TextPolicy(BasePolicy, ABC):
    """A source of turns as text, for evaluation. Training needs token ids, and can't use it."""

    usage: Usage | None = None
    """The tokens of all turns so far; `None`: not counted."""
    on_usage: Callable[[Usage], None] | None = None
    """Called with the tokens of each answered request, also if the answer can't be used."""
    on_answered_as: Callable[[AnsweredAs], None] | None = None
    """Called with the API's names of its model, once for each distinct value."""
    on_left_out: Callable[[str], None] | None = None
    """Called with each field that the API refuses and that is left out of all further requests."""

    @abstractmethod
    async def write(self, transcript: Transcript, stop: Sequence[str], seed: int) -> TextGeneration:
        """Write one turn. Cancelling this call ends the request.

        Args:
            transcript: All text that the model has seen and written so far, without token ids.
            stop: Strings that end the turn. The turn includes its stop string.
            seed: The seed of this turn's sampling, for models that take a seed.

        Raises:
            PolicyUnavailable: If no turn is available for now; the engine tries the episode again.
        """

    def digests(self, transcript: Transcript, stop: Sequence[str]) -> tuple[str, ...]:
        """The digests of the request that `write` would send: of its settings, then of each part.

        The parts are the messages, one for each span. A fork compares them with the digests of the
        request that its parent sent (`Span.sent`). The default, `()`, compares nothing.

        Args:
            transcript: The argument of `write`.
            stop: The argument of `write`.
        """
        return ()


def as_policy(policy: Any) -> Policy | TextPolicy:
    """Return the policy, wrapped if its class inherits neither `Policy` nor `TextPolicy`.

    The wrapper has the members of the given object, and the defaults of `TextPolicy` if the object
    has `write`, else of `Policy`.

    Args:
        policy: An object with `act` or `write`.

    Raises:
        TypeError: If the object has neither `act` nor `write`.
    """
    if isinstance(policy, Policy | TextPolicy):
        return policy
    if not (hasattr(policy, "act") or hasattr(policy, "write")):
        raise TypeError(
            f"{type(policy).__name__} is not a policy: inherit retool_env.rollout.Policy and "
            "define `act` and `update_weights`, or inherit TextPolicy and define `write`"
        )
    base = TextPolicy if hasattr(policy, "write") else Policy

    def get(self: Any, name: str) -> Any:
        return (
            getattr(policy, name) if hasattr(policy, name) else object.__getattribute__(self, name)
        )

    def set(self: Any, name: str, value: Any) -> None:
        setattr(policy, name, value)

    # The abstract methods must exist in the class; `get` returns the policy's own.
    members = dict.fromkeys(base.__abstractmethods__)
    members |= {"__getattribute__": get, "__setattr__": set}
    return type(type(policy).__name__, (base,), members)()
