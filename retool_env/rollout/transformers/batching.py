"""Batcher: continuous batching, where requests join and leave a running batch at any token.

One thread owns the model while there are requests. Each of its steps first computes the tokens of
new requests that the cache lacks, up to a bound, so that a long prompt does not delay other
requests for long. It then samples one token for every request whose context is computed. Requests
with a common prefix wait until the first of them has computed it. If the cache is full, new
requests wait; if even running requests outgrow it, the youngest request loses its blocks and is
computed again later.
"""

from __future__ import annotations

import inspect
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from retool_env.episode import Generation
from retool_env.rollout.policy import TurnEnd
from retool_env.rollout.transformers.blocks import ROOT, Block, BlockPool
from retool_env.rollout.transformers.kv_cache import PagedCache
from retool_env.tokens import first_runs

BLOCK = 16
"""The number of tokens in a block of the cache."""
PREFILL = 2048
"""The most tokens of prompts and results in one forward pass, padding included."""
DECODE = 2**18
"""The most tokens of context that one forward pass of sampling reads, padding included. A pass of a
single row may read more.
"""

Draw = Callable[[torch.Tensor, Sequence["Request"]], tuple[torch.Tensor, torch.Tensor]]
"""Samples from logits, shape `(B, V)`, for `B` requests: token ids and log-probs, shape `(B,)`."""


Result = Generation | Exception | None
"""The result of a request: a turn, an error, or `None` after a cancellation."""


@dataclass(eq=False)
class Request:
    """One turn that is being sampled."""

    token_ids: list[int]
    """The context, and the tokens sampled since."""
    stop: tuple[str, ...]
    """The strings that end the turn."""
    budget: int
    """The most tokens to sample."""
    uniform: random.Random
    """The random numbers of this request: its own, so that they don't depend on its batch."""
    started: float = field(default_factory=time.monotonic)
    """The time of the request, in seconds of the monotonic clock."""
    future: Future[Generation] = field(default_factory=Future)
    """The future that receives the turn."""
    cancelled: bool = False
    """Whether the caller has cancelled the request; the next step then removes it."""
    logprobs: list[float] = field(default_factory=list)
    """The log-prob of each sampled token."""
    versions: list[int] = field(default_factory=list)
    """The version of the weights that sampled each token."""
    context: int = field(init=False)
    """The number of tokens in the context."""
    blocks: list[Block] = field(default_factory=list)
    """The blocks that the request holds, in the order of its tokens."""
    slots: np.ndarray = field(init=False)
    """The cache's slot of each token; 0 where there is no block yet. Shape `(context + budget,)`,
    rounded up to whole blocks.
    """
    computed: int = 0
    """The number of tokens whose keys and values are in the cache."""
    content: int = ROOT
    """The content name of its complete blocks (see `BlockPool.complete`)."""

    def __post_init__(self) -> None:
        self.context = len(self.token_ids)
        room = -(-(self.context + self.budget) // BLOCK) * BLOCK
        self.slots = np.zeros(room, dtype=np.int64)

    @property
    def sampled(self) -> list[int]:
        """The tokens sampled so far."""
        return self.token_ids[self.context :]

    @property
    def missing(self) -> int:
        """The number of tokens to compute before the next sample; at least 1 between two steps."""
        return len(self.token_ids) - self.computed

    def generation(self, reason: TurnEnd) -> Generation:
        """The sampled turn, which ends for this reason."""
        seconds = time.monotonic() - self.started
        runs = first_runs([(version, 1) for version in self.versions], len(self.versions))
        sampled, logprobs, first = tuple(self.sampled), tuple(self.logprobs), self.versions[0]
        return Generation(sampled, logprobs, reason, seconds, first, runs)

    def add(self, blocks: Sequence[Block]) -> None:
        """Append blocks for the next tokens."""
        for block in blocks:
            at = len(self.blocks) * BLOCK
            first = block.index * BLOCK
            self.slots[at : at + BLOCK] = np.arange(first, first + BLOCK)
            self.blocks.append(block)


class Batcher:
    """Samples turns from a model.

    Args:
        model: A causal language model that has only attention layers.
        draw: Samples one token for each request.
        stop_reason: Returns why a request ends after its newest token; `None` if it goes on.
        max_batch: The most requests in the batch.
        cache_tokens: The most tokens in the cache.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        draw: Draw,
        stop_reason: Callable[[Request], TurnEnd | None],
        max_batch: int,
        cache_tokens: int,
    ) -> None:
        self.prefilled_tokens = 0
        """The number of context tokens computed so far."""
        self.reused_tokens = 0
        """The number of context tokens found in the cache so far."""
        self.reread_tokens = 0
        """The number of tokens that new weights made the model compute again so far."""
        self.weight_version = 0
        """The version of the weights that the model has now."""
        self._model = model
        self._draw = draw
        self._stop_reason = stop_reason
        self._max_batch = max_batch
        self.pool = BlockPool(cache_tokens, BLOCK)
        """The blocks of the cache."""
        self.cache = PagedCache((self.pool.count + 1) * BLOCK)
        """The keys and values."""
        self._lock = threading.Lock()  # guards the next four fields, and `weight_version`
        self._inbox: list[Request] = []
        self._stale = False
        self._changes: list[tuple[int, Callable[[], None] | None, Future[None]]] = []
        self._serving = False
        self._version = 0
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # the oldest first; it is never set back
        self._cache_argument = _cache_argument(model)
        # A thread of its own: other work in the loop's executor can't delay it.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")

    @property
    def pending(self) -> int:
        """The number of requests that are not finished."""
        return len(self._inbox) + len(self._waiting) + len(self._running)

    def submit(self, request: Request) -> None:
        """Take a request.

        Its future is done when the model no longer works on the request, also if it was cancelled.
        """
        with self._lock:
            self._inbox.append(request)
            if not self._serving:
                self._serving = True
                self._thread.submit(self._serve)

    def update_weights(
        self, version: int, change: Callable[[], None] | None = None
    ) -> Future[None]:
        """Change the weights before the next step, and drop the cache of the old weights.

        Args:
            version: The number of the new weights.
            change: Writes the weights into the model; called between two steps. Its error becomes
                the error of the result. `None`: the weights are in the model already.

        Returns:
            A future that is done when the weights have changed.
        """
        changed: Future[None] = Future()
        with self._lock:
            self._changes.append((version, change, changed))
            self._stale = True
            if not self._serving:
                self._renew()
        return changed

    def clear_cache(self) -> None:
        """Free the memory of the cache, unless requests are being served."""
        with self._lock:
            if not self._serving:
                self.pool.clear()
                self.cache.clear()

    @torch.no_grad()
    def _serve(self) -> None:
        training = [module for module in self._model.modules() if module.training]
        self._model.eval()
        idle = False
        while not idle:
            done: list[tuple[Request, Result]] = []
            try:
                self._step(done)
            except Exception as error:
                # Requests that were done before the error keep their turns.
                done += self._fail(error)
            with self._lock:
                idle = not self.pending
                if idle:
                    if self._stale:
                        self._renew()
                    # Before the last turn is returned: its receiver may train at once.
                    for module in training:
                        module.training = True
                    self._serving = False
            for request, result in done:
                if isinstance(result, Generation):
                    request.future.set_result(result)
                elif result is None:
                    request.future.cancel()
                else:
                    request.future.set_exception(result)

    def _step(self, done: list[tuple[Request, Result]]) -> None:
        """Sample one token for each request whose context is computed.

        Args:
            done: The list to which finished and cancelled requests are added.
        """
        with self._lock:
            self._waiting.extend(self._inbox)
            self._inbox.clear()
            if self._stale:
                self._renew()
            self._version = self.weight_version
        for request in [r for r in (*self._running, *self._waiting) if r.cancelled]:
            self._leave(request)
            done.append((request, None))
        self._admit()
        behind = [request for request in self._running if request.missing > 1]
        if behind:
            longest = min(behind[0].missing, PREFILL)
            # Requests of similar length: a pass pads all of them to the longest.
            alike = [r for r in behind if longest <= 2 * min(r.missing, longest)]
            self._advance(alike[: max(1, PREFILL // longest)], longest, done)
        ready = [request for request in self._running if request.missing == 1]
        # Room for an older request may set a younger request back, which then is not running.
        ready = [r for r in ready if r in self._running and self._make_room(r)]
        for together in _of_similar_length(ready):
            self._advance(together, 1, done)

    def _admit(self) -> None:
        pool = self.pool
        being_computed = {
            pool.key(r.token_ids, r.computed // BLOCK, r.content)
            for r in self._running
            if r.missing > 1
        }
        for request in list(self._waiting):
            if len(self._running) >= self._max_batch:
                return
            ids = request.token_ids
            prefix = pool.longest_prefix(ids)
            content = prefix[-1].content if prefix else ROOT
            following = pool.key(ids, len(prefix), content)
            if following in being_computed and (len(prefix) + 1) * BLOCK < len(ids):
                continue
            pool.hold(prefix)
            wanted = -(-len(ids) // BLOCK) - len(prefix)
            # One spare block for each request, so that a request admitted now is not set back soon.
            if self._running and pool.available < wanted + len(self._running) + 1:
                pool.release(prefix)
                return
            request.add(prefix)
            request.add([_sure(pool.allocate()) for _ in range(wanted)])
            request.content = content
            request.computed = len(prefix) * BLOCK
            self.reused_tokens += request.computed
            self._waiting.remove(request)
            self._running.append(request)
            if request.missing > 1:
                being_computed.add(following)

    def _make_room(self, request: Request) -> bool:
        """Get a block for a request's next token, from younger requests if the cache is full.

        Returns:
            Whether the request has room; false if the request itself was set back.
        """
        while request.computed >= len(request.blocks) * BLOCK:
            block = self.pool.allocate()
            if block is not None:
                request.add([block])
                continue
            youngest = self._running[-1]
            self._set_back(youngest)
            if youngest is request:
                return False
        return True

    def _set_back(self, request: Request) -> None:
        self._leave(request)
        self._waiting.appendleft(request)

    def _leave(self, request: Request) -> None:
        """Remove a request from its queue, and release its blocks."""
        (self._waiting if request in self._waiting else self._running).remove(request)
        self.pool.release(request.blocks)
        request.blocks.clear()
        request.computed, request.content = 0, ROOT

    def _renew(self) -> None:
        """Drop the cache and apply weight changes. Running requests are computed again."""
        for request in reversed(self._running):
            self.reread_tokens += request.computed
            self._set_back(request)
        self.pool.clear()
        self.cache.clear()
        self._stale = False
        changes, self._changes = self._changes, []
        for version, change, changed in changes:
            waited_for = changed.set_running_or_notify_cancel()
            try:
                if change is not None:
                    change()
            except Exception as error:
                if waited_for:
                    changed.set_exception(error)
            else:
                self.weight_version = version
                if waited_for:
                    changed.set_result(None)

    def _fail(self, error: Exception) -> list[tuple[Request, Exception]]:
        with self._lock:
            self._waiting.extend(self._inbox)
            self._inbox.clear()
            failed = [*self._running, *self._waiting]
            for request in failed:
                self._leave(request)
            self._renew()
        return [(request, error) for request in failed]

    def _advance(
        self, requests: list[Request], most: int, done: list[tuple[Request, Result]]
    ) -> None:
        """Compute up to `most` tokens of each request, and sample where the context is computed."""
        counts = [min(request.missing, most) for request in requests]
        logits = self._forward(requests, counts)
        for request, count in zip(requests, counts, strict=True):
            old = request.computed // BLOCK
            request.computed += count
            for number in range(old, request.computed // BLOCK):
                key = self.pool.key(request.token_ids, number, request.content)
                request.content = self.pool.complete(request.blocks[number], key)
            new = request.missing == 0 and len(request.token_ids) > request.context
            self.prefilled_tokens += count - new
        due = [i for i, request in enumerate(requests) if request.missing == 0]
        if not due:
            return
        if len(due) < len(requests):
            requests, logits = [requests[i] for i in due], logits[due]
        tokens, logprobs = self._draw(logits, requests)
        for request, token, logprob in zip(
            requests, tokens.tolist(), logprobs.tolist(), strict=True
        ):
            request.token_ids.append(token)
            request.logprobs.append(logprob)
            request.versions.append(self._version)
            reason = self._stop_reason(request)
            if reason is not None:
                self._leave(request)
                done.append((request, request.generation(reason)))

    def _forward(self, requests: list[Request], counts: list[int]) -> torch.Tensor:
        """Compute the next tokens of each request, as many as `counts` says.

        Returns:
            The logits after these tokens, shape `(B, V)`.
        """
        ends = [request.computed + count for request, count in zip(requests, counts, strict=True)]
        width, length, batch = max(counts), max(ends), len(requests)
        ids = np.zeros((batch, width), dtype=np.int64)
        positions = np.zeros((batch, width), dtype=np.int64)
        table = np.zeros((batch, length), dtype=np.int64)
        for i, (request, count, end) in enumerate(zip(requests, counts, ends, strict=True)):
            ids[i, width - count :] = request.token_ids[request.computed : end]
            positions[i, width - count :] = np.arange(request.computed, end)
            table[i, length - end :] = request.slots[:end]
        written = None
        if min(counts) < width:
            new = np.arange(width) >= width - np.array(counts)[:, None]
            written = self._tensor(np.flatnonzero(new))
        slots = self._tensor(table)
        self.cache.begin(slots, width, written)
        output = self._model(
            input_ids=self._tensor(ids),
            attention_mask=(slots != 0).long(),
            position_ids=self._tensor(positions),
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_argument: self.cache},
        )
        return output.logits[:, -1]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._model.device)


def _cache_argument(model: PreTrainedModel) -> str:
    """The model's name of its cache. Transformers 5.17 knows one name; 5.24 warns of it."""
    base = getattr(model, "get_base_model", lambda: model)()  # below the adapters of peft
    for kind in type(base).__mro__:  # the first class that names it: others may take `**kwargs`
        forward = vars(kind).get("forward")
        names = inspect.signature(forward).parameters if forward else {}
        if "cache" in names or "past_key_values" in names:
            return "cache" if "cache" in names else "past_key_values"
    return "past_key_values"


def _of_similar_length(requests: list[Request]) -> list[list[Request]]:
    """Split requests into parts for one pass each. A pass pads its requests to the longest."""
    parts: list[list[Request]] = []
    for request in sorted(requests, key=lambda request: len(request.token_ids)):
        if not parts or (len(parts[-1]) + 1) * len(request.token_ids) > DECODE:
            parts.append([])
        parts[-1].append(request)
    return parts


def _sure(block: Block | None) -> Block:
    if block is None:
        raise RuntimeError("the block pool is empty though it counts free blocks: report this bug")
    return block
