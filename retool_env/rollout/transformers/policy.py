"""TransformersPolicy: a causal language model of transformers, on the CPU or a GPU.

Requests join and leave a running batch at any token (`retool_env.rollout.transformers.batching`), and what was computed of a prompt or of
earlier turns is kept across tool calls and shared by a group's rollouts (`retool_env.rollout.transformers.blocks`), until the weights
change. Batching is our own rather than transformers' `generate_batch`, which draws all requests from one global generator,
knows no stop strings, and changes the model's attention while it runs.
"""

from __future__ import annotations

import asyncio
import functools
import random
import warnings
import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retool_env.episode import Generation
from retool_env.errors import SettingsError
from retool_env.files import folder_fault
from retool_env.rollout.policy import Policy, check_room, check_sampling
from retool_env.rollout.transformers.batching import BLOCK, Batcher, Request, StopReason
from retool_env.rollout.weights import Weights
from retool_env.tokens import decode


class TransformersPolicy(Policy):
    """Samples from a model of transformers.

    Args:
        model: A causal language model. It is used where it is, and as it is: whoever trains it may change its weights
            while no `act` is under way, and says so with `update_weights`.
        tokenizer: Its tokenizer.
        temperature: Of sampling; 0 is greedy.
        top_p: Nucleus mass. Training needs 1.0, so that log-probs are those of the model itself.
        max_batch: Sequences decoded together, at most.
        cache_tokens: Tokens whose keys and values are kept, at most. Requests wait while those under way fill it.

    Raises:
        SettingsError: If temperature, top-p or a size is out of range, the tokenizer knows no end of sequence, or the model
            keeps another state than keys and values.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_batch: int = 128,
        cache_tokens: int = 65_536,
    ) -> None:
        check_sampling(temperature, top_p)
        if max_batch < 1:
            raise SettingsError(f"max_batch must be at least 1, not {max_batch}")
        if cache_tokens < BLOCK:
            raise SettingsError(f"cache_tokens must be at least {BLOCK}, not {cache_tokens}")
        if tokenizer.eos_token_id is None:
            raise SettingsError(
                "the tokenizer has no eos_token, so no turn could end without a tag"
            )
        config = model.config.get_text_config()
        other = set(getattr(config, "layer_types", None) or ()) - {
            "full_attention",
            "sliding_attention",
        }
        if other or getattr(model, "_is_stateful", False):
            raise SettingsError(
                f"a {config.model_type} model must be served by another engine (vLLM): this one keeps keys and values, and "
                f"some of its layers keep another state{': ' if other else ''}{', '.join(sorted(other))}"
            )
        self.model = model
        self.tokenizer: Any = tokenizer
        self.temperature: float = temperature
        self.top_p = top_p
        self.max_batch = max_batch
        self.cache_tokens: int = cache_tokens // BLOCK * BLOCK
        self.context_length = int(config.max_position_embeddings)
        declared = model.generation_config.eos_token_id
        declared = declared if isinstance(declared, list) else [declared]
        self._eos = {tokenizer.eos_token_id, *declared} - {None}
        self._text_of: dict[int, str] = {}
        self._warned = False
        # Weakly: if it referred to itself, its model and its cache, gigabytes, would outlive it until garbage is collected.
        draw: Any = weakref.WeakMethod(self._draw)
        stop_reason: Any = weakref.WeakMethod(self._stop_reason)
        self.batcher = Batcher(
            model,
            lambda logits, requests: draw()(logits, requests),
            lambda request: stop_reason()(request),
            max_batch,
            cache_tokens,
        )
        """The running batch."""

    @property
    def weight_version(self) -> int:  # type: ignore[override]  # the batcher counts it
        """Which weights it serves; 0 at first."""
        return self.batcher.weight_version

    @property
    def prefilled_tokens(self) -> int:  # type: ignore[override]  # the batcher counts it
        """Tokens of contexts computed so far, those computed again after a change of weights included."""
        return self.batcher.prefilled_tokens

    @property
    def reused_tokens(self) -> int:
        """Tokens of contexts found in the cache so far."""
        return self.batcher.reused_tokens

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Sample one turn; see `Policy.act`.

        When it has returned, raised or been cancelled, the model works for it no more. A turn during which the weights
        changed has the version that its first token was sampled with.

        Raises:
            ValueError: If there are no tokens, the budget is below 1, or both together do not fit into the model's context
                or the cache.
        """
        check_room(token_ids, budget, self.context_length)
        if len(token_ids) + budget > self.cache_tokens:
            raise ValueError(
                f"{len(token_ids)} tokens and a budget of {budget} don't fit a cache of {self.cache_tokens}: set "
                "cache_tokens higher, or max_tokens lower"
            )
        request = Request(list(token_ids), tuple(stop), budget, random.Random(seed))
        self.batcher.submit(request)
        turn = asyncio.wrap_future(request.future)
        try:
            return await asyncio.shield(turn)
        except asyncio.CancelledError:
            request.cancelled = True
            while not turn.done():  # however often it is cancelled: the model must be done with it
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([turn])
            raise

    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """Serve new weights from here on. The cache is dropped; turns under way go on with the new ones, all recomputed.

        Args:
            version: The new weights' number.
            weights: All of the model's, adapters merged; they are copied into it one by one. `None`: they are in the model
                already. The first update of which rounding to the model's type loses something is warned of, with the share
                of weights that it did not move.

        Raises:
            ValueError: If they are not those of the model, by name and shape. Of a mapping nothing is copied then; of an
                iterable, what came before.
        """
        change = None if weights is None else functools.partial(self._take, weights)
        await asyncio.wrap_future(self.batcher.update_weights(version, change))

    def clear_cache(self) -> None:
        """Give the memory of keys and values back while nothing is sampled; it is taken anew when something is."""
        self.batcher.clear_cache()

    @torch.no_grad()
    def _take(self, weights: Weights) -> None:
        own = self.model.state_dict(keep_vars=True)
        if isinstance(weights, Mapping):
            for name, tensor in weights.items():
                _check_weight(own, name, tensor)
            _check_complete(own, weights)
            weights = weights.items()
        given = set()
        changed = unmoved = 0
        for name, tensor in weights:
            _check_weight(own, name, tensor)
            if tensor.dtype.itemsize > own[name].dtype.itemsize:
                tensor = tensor.to(own[name].device)
                differs = own[name] != tensor  # compared in the wider type
                changed += int(differs.sum())
                unmoved += int((differs & (own[name] == tensor.to(own[name].dtype))).sum())
            own[name].copy_(tensor)
            given.add(name)
        _check_complete(own, given)
        if unmoved and not self._warned:
            self._warned = True
            warnings.warn(
                f"the policy's weights are in {str(self.model.dtype).removeprefix('torch.')}: of those that an update "
                f"changed, {unmoved / changed:.0%} stay as they were, rounded, so that it samples from another model than "
                "the trained one; load it in float32",
                stacklevel=2,
            )

    def _draw(
        self, logits: torch.Tensor, requests: Sequence[Request]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One token a request, `(B, V)` logits to `(B,)` ids and log-probs, by inversion of the distribution function."""
        logits = logits.float()
        if self.temperature == 0:
            tokens = logits.argmax(-1)
            return tokens, torch.zeros_like(tokens, dtype=torch.float32)
        logprobs = torch.log_softmax(logits / self.temperature, dim=-1)
        if self.top_p < 1:
            ordered, order = logprobs.sort(dim=-1, descending=True)
            before = ordered.exp().cumsum(-1) - ordered.exp()
            ordered = ordered.masked_fill(before >= self.top_p, -torch.inf)
            logprobs = torch.full_like(logprobs, -torch.inf).scatter(-1, order, ordered)
            logprobs = torch.log_softmax(logprobs, dim=-1)
        cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
        uniform = torch.tensor(
            [request.uniform.random() for request in requests],
            dtype=torch.float64,
            device=logits.device,
        )
        # The smallest index whose cumulative mass exceeds the draw has mass of its own, so a token that top-p
        # excluded is never taken.
        tokens = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
        return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0]

    def _stop_reason(self, request: Request) -> StopReason | None:
        token = request.token_ids[-1]
        if token in self._eos:
            return "eos"
        if token not in self._text_of:
            self._text_of[token] = decode(self.tokenizer, [token])
        # Decoding is slow, and only a token with a tag's last character can complete one.
        if any(tag[-1] in self._text_of[token] for tag in request.stop):
            text = decode(self.tokenizer, request.sampled)
            if any(tag in text for tag in request.stop):
                return "tag"
        return "length" if len(request.logprobs) >= request.budget else None


def _check_weight(own: Mapping[str, torch.Tensor], name: str, tensor: torch.Tensor) -> None:
    if name not in own or own[name].shape != tensor.shape:
        has = f"has shape {tuple(own[name].shape)}" if name in own else "does not exist"
        raise ValueError(
            f"these are not the model's weights: {name!r} {has} there, and {tuple(tensor.shape)} here"
        )


def _check_complete(own: Mapping[str, torch.Tensor], names: Collection[str]) -> None:
    # A tensor of several names may come under one of them.
    given = {id(own[name]) for name in names}
    if missing := [name for name in own if id(own[name]) not in given]:
        raise ValueError(f"{len(missing)} of the model's weights are missing, {missing[0]!r} say")


def load_policy(
    model: str, dtype: str = "auto", device: str | None = None, **sampling: Any
) -> TransformersPolicy:
    """A policy from a checkpoint folder or a Hub id.

    Args:
        model: The path or id.
        dtype: `"auto"`, `"float32"`, `"bfloat16"`, ...
        device: `"cuda"`, `"cpu"`, ...; by default a GPU where there is one.
        **sampling: For `TransformersPolicy`.

    Raises:
        OSError: If there is no such model.
        SettingsError: If a pipe or a device lies there, or in the folder.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if fault := folder_fault(model):
        raise SettingsError(f"model: {fault}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    policy = TransformersPolicy(loaded.to(device), AutoTokenizer.from_pretrained(model), **sampling)
    policy.checkpoint = str(model)
    return policy
