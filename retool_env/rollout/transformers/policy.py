"""TransformersPolicy: a causal language model of transformers, on the CPU or a GPU.

Requests join and leave a running batch at any token (`retool_env.rollout.transformers.batching`).
The keys and values of a prompt and of earlier turns are kept across tool calls and shared by the
rollouts of a group, until the weights change (`retool_env.rollout.transformers.blocks`). The
batching is our own: the method `generate_batch` of transformers draws all requests from one global
generator, has no stop strings, and changes the model's attention while it runs.
"""

from __future__ import annotations

import asyncio
import functools
import random
import warnings
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, override

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retool_env.episode import Generation
from retool_env.errors import SettingsError
from retool_env.files import folder_fault
from retool_env.rollout.checkpoint_files import check_dtype, reading
from retool_env.rollout.policy import Policy, TurnEnd, check_room, check_sampling
from retool_env.rollout.transformers.batching import BLOCK, Batcher, Request
from retool_env.rollout.weights import Inventory, Weights, check_finite
from retool_env.tokens import decode

_ATTENTION = {"full_attention", "sliding_attention"}  # the layers whose state is keys and values


class TransformersPolicy(Policy):
    """Samples from a model of transformers.

    Args:
        model: A causal language model. The policy does not copy it. A trainer may change its
            weights in place while no `act` is under way, and then calls `update_weights`.
        tokenizer: The tokenizer of the model.
        temperature: The sampling temperature; 0 is greedy.
        top_p: The nucleus mass of sampling. Training needs 1.0, so that log-probs equal the model's
            own.
        max_batch: The most sequences that are decoded together.
        cache_tokens: The most tokens whose keys and values are kept. New requests wait while
            running requests fill the cache.

    Raises:
        SettingsError: If temperature, top-p or a size is out of range, the tokenizer has no
            end-of-sequence token, or the model keeps a state other than keys and values.
    """

    at_update = "cut"

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
            raise SettingsError("the tokenizer has no eos_token, which ends turns without a tag")
        config = model.config.get_text_config()
        other = set(getattr(config, "layer_types", None) or ()) - _ATTENTION
        if other or getattr(model, "_is_stateful", False):
            raise SettingsError(
                f"a {config.model_type} model needs another engine (vLLM): this policy caches keys "
                "and values only, and some layers of the model keep another "
                f"state{': ' if other else ''}{', '.join(sorted(other))}"
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
        self.eos_token_ids = {tokenizer.eos_token_id, *declared} - {None}
        """The tokens that end a turn: the tokenizer's, and those in the model's generation config.
        """
        self._text_of: dict[int, str] = {}
        self._warned = False
        # Weak references: a cycle would keep the model and the cache, gigabytes, after the policy
        # is gone, until the garbage collector runs.
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
        """The version of the weights that are served; 0 at first."""
        return self.batcher.weight_version

    @property
    def prefilled_tokens(self) -> int:  # type: ignore[override]  # the batcher counts it
        """The number of context tokens computed so far, also again after a change of weights."""
        return self.batcher.prefilled_tokens

    @property
    def reread_tokens(self) -> int:  # type: ignore[override]  # the batcher counts it
        """The number of tokens that new weights made the model compute again so far."""
        return self.batcher.reread_tokens

    @property
    def reused_tokens(self) -> int:
        """The number of context tokens found in the cache so far."""
        return self.batcher.reused_tokens

    @override
    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Sample one turn; see `Policy.act`.

        When this has returned, raised or been cancelled, the model no longer works on the turn. If
        the weights change during a turn, its later tokens are sampled with the new weights.

        Raises:
            ValueError: If there are no tokens, the budget is below 1, or both together do not fit
                into the model's context or into the cache.
        """
        check_room(token_ids, budget, self.context_length)
        if len(token_ids) + budget > self.cache_tokens:
            raise ValueError(
                f"{len(token_ids)} tokens and a budget of {budget} don't fit a cache of "
                f"{self.cache_tokens}: set cache_tokens higher, or max_tokens lower"
            )
        request = Request(list(token_ids), tuple(stop), budget, random.Random(seed))
        self.batcher.submit(request)
        turn = asyncio.wrap_future(request.future)
        try:
            return await asyncio.shield(turn)
        except asyncio.CancelledError:
            request.cancelled = True
            while not turn.done():  # even if cancelled again: the model must be done with it
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([turn])
            raise

    @override
    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """Serve new weights from now on. The cache is dropped.

        Turns under way go on with the new weights; their contexts are computed again. If the
        model's type is narrower than the weights' type, the first update in which rounding loses a
        change gives a warning, with the share of changed weights that stayed the same.

        Args:
            version: The number of the new weights.
            weights: All weights of the model, adapters merged. They are copied into the model one
                by one. `None`: they are in the model already.

        Raises:
            ValueError: If names or shapes differ from the model's. Weights of a mapping are checked
                before anything is copied; of an iterable, the earlier weights are copied by then.
        """
        change = None if weights is None else functools.partial(self._take, weights)
        await asyncio.wrap_future(self.batcher.update_weights(version, change))

    def clear_cache(self) -> None:
        """Free the memory of keys and values while nothing is sampled.

        The next turn allocates it again.
        """
        self.batcher.clear_cache()

    @torch.no_grad()
    def _take(self, weights: Weights) -> None:
        state = self.model.state_dict(keep_vars=True)
        inventory = Inventory.of_tensors(state)
        if isinstance(weights, Mapping):  # checked as a whole, before anything is copied
            weights = list(inventory.checked(weights))
        changed = unmoved = 0
        for name, tensor in inventory.checked(weights):
            current = state[name]
            if tensor.dtype.itemsize > current.dtype.itemsize:
                tensor = tensor.to(current.device)
                differs = current != tensor  # compared in the wider type
                changed += int(differs.sum())
                unmoved += int((differs & (current == tensor.to(current.dtype))).sum())
            current.copy_(tensor)
        if unmoved and not self._warned:
            self._warned = True
            warnings.warn(
                f"the policy's weights are in {str(self.model.dtype).removeprefix('torch.')}: "
                f"{unmoved / changed:.0%} of the weights that the update changed keep their old "
                "values by rounding, so the policy samples from another model than the trained "
                "model; load the policy in float32",
                stacklevel=2,
            )

    def _draw(
        self, logits: torch.Tensor, requests: Sequence[Request]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample one token for each request by inversion of the distribution function.

        Args:
            logits: The logits after each context, shape `(B, V)`.
            requests: The `B` requests.

        Returns:
            The token ids and their log-probs, shape `(B,)` each.
        """
        logits = logits.float()
        if self.temperature == 0:
            largest, tokens = logits.max(-1)
            return tokens, largest - largest  # 0, but NaN of logits that are not finite
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
        # The smallest index whose cumulative mass exceeds the draw has a mass above 0, so a token
        # that top-p excluded is never sampled.
        tokens = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
        return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0]

    def _stop_reason(self, request: Request) -> TurnEnd | None:
        token = request.token_ids[-1]
        if token in self.eos_token_ids:
            return "eos"
        if token not in self._text_of:
            self._text_of[token] = decode(self.tokenizer, [token])
        # Decoding is slow, and only a token with a tag's last character can complete one.
        if any(tag[-1] in self._text_of[token] for tag in request.stop):
            text = decode(self.tokenizer, request.sampled)
            if any(tag in text for tag in request.stop):
                return "tag"
        return "length" if len(request.logprobs) >= request.budget else None


def load_policy(
    model: str, dtype: str = "auto", device: str | None = None, **sampling: Any
) -> TransformersPolicy:
    """Load a policy from the folder of a checkpoint or a Hub id.

    Args:
        model: The path or id.
        dtype: The type of the weights: `"auto"` (the checkpoint's), `"float32"`, `"bfloat16"`, ...
        device: `"cuda"`, `"cpu"`, ... `None`: a GPU if there is one.
        **sampling: Further arguments of `TransformersPolicy`.

    Raises:
        OSError: If the model is not found.
        NotFinite: If a weight is NaN or infinite.
        SettingsError: If the data type is unknown, or a file in the folder is damaged, a pipe or a
            device.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if fault := folder_fault(model):
        raise SettingsError(f"model: {fault}")
    check_dtype("dtype", dtype)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with reading(model):
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(model)
    check_finite(loaded.named_parameters(), f"the model {model}")
    policy = TransformersPolicy(loaded.to(device), tokenizer, **sampling)
    policy.checkpoint = str(model)
    return policy
