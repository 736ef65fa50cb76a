"""Batcher: requests join and leave a running batch at any token.

One thread owns the model while there are requests. Each of its steps computes what new requests lack in the cache (bounded,
so that a long prompt holds nobody up for long) and samples one token for every request that lacks nothing. Requests with a
common beginning wait until the first of them has computed it. A full cache delays new requests; where even running ones
outgrow it, the youngest steps back and is computed again later.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from retool_env.episode import Generation
from retool_env.rollout.transformers.blocks import ROOT, Block, BlockPool
from retool_env.rollout.transformers.kv_cache import PagedCache

BLOCK = 16
"""Tokens a block of the cache."""
PREFILL = 2048
"""Tokens of prompts and results that a forward pass takes, at most, padding included."""
DECODE = 2**18
"""Tokens of context that a step which samples reads in one forward pass, at most, padding included (a row always fits)."""

StopReason = Literal["tag", "eos", "length"]
Draw = Callable[[torch.Tensor, Sequence["Request"]], tuple[torch.Tensor, torch.Tensor]]
"""Logits, shape `(B, V)`, and their requests, to token ids and log-probs, shape `(B,)` each."""


Outcome = Generation | Exception | None
"""What becomes of a request: a turn, an error, or nothing where it was cancelled."""


@dataclass(eq=False)
class Request:
    """One turn that is being sampled."""

    token_ids: list[int]
    """The context, and what has been sampled since."""
    stop: tuple[str, ...]
    budget: int
    uniform: random.Random
    """Where its draws come from: its own, so that they don't hang on who shares its batch."""
    started: float = field(default_factory=time.monotonic)
    future: Future[Generation] = field(default_factory=Future)
    cancelled: bool = False
    logprobs: list[float] = field(default_factory=list)
    weight_version: int | None = None
    """Of the weights that sampled its first token."""
    context: int = field(init=False)
    """Number of tokens that it came with."""
    blocks: list[Block] = field(default_factory=list)
    slots: np.ndarray = field(init=False)
    """The cache's slot of each token, as far as there are blocks."""
    computed: int = 0
    """Number of tokens whose keys and values are in the cache."""
    content: int = ROOT
    """Names its complete blocks (see `BlockPool.complete`)."""

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
        """Number of tokens to compute before the next one can be sampled; at least 1."""
        return len(self.token_ids) - self.computed

    def add(self, blocks: Sequence[Block]) -> None:
        """Take blocks for the tokens that come next."""
        for block in blocks:
            at = len(self.blocks) * BLOCK
            first = block.index * BLOCK
            self.slots[at : at + BLOCK] = np.arange(first, first + BLOCK)
            self.blocks.append(block)


class Batcher:
    """Samples turns from a model.

    Args:
        model: A causal language model with attention layers only.
        draw: Samples a token for each request.
        stop_reason: Whether a request that has just been given a token is done, and why.
        max_batch: Requests in the batch, at most.
        cache_tokens: Size of the cache.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        draw: Draw,
        stop_reason: Callable[[Request], StopReason | None],
        max_batch: int,
        cache_tokens: int,
    ) -> None:
        self.prefilled_tokens = 0
        self.reused_tokens = 0
        self.weight_version = 0
        self._model = model
        self._draw = draw
        self._stop_reason = stop_reason
        self._max_batch = max_batch
        self.pool = BlockPool(cache_tokens, BLOCK)
        """The cache's blocks, free and in use."""
        self.cache = PagedCache((self.pool.count + 1) * BLOCK)
        """The keys and values."""
        self._lock = threading.Lock()  # of the next four, and `weight_version`
        self._inbox: list[Request] = []
        self._stale = False
        self._changes: list[tuple[int, Callable[[], None] | None, Future[None]]] = []
        self._serving = False
        self._version = 0
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # by age: the first is never set back
        # Of its own, so that no burst of other work in a loop's executor stands before it.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")

    @property
    def pending(self) -> int:
        """The number of requests that the model still works for."""
        return len(self._inbox) + len(self._waiting) + len(self._running)

    def submit(self, request: Request) -> None:
        """Take a request. Its future is done when the model works for it no more, be it cancelled or not."""
        with self._lock:
            self._inbox.append(request)
            if not self._serving:
                self._serving = True
                self._thread.submit(self._serve)

    def update_weights(
        self, version: int, change: Callable[[], None] | None = None
    ) -> Future[None]:
        """Compute with nothing that older weights left, from the next step on.

        Args:
            version: The new weights' number.
            change: Puts them into the model. Called between two steps; its error becomes the result's.

        Returns:
            Done when the weights have changed.
        """
        changed: Future[None] = Future()
        with self._lock:
            self._changes.append((version, change, changed))
            self._stale = True
            if not self._serving:
                self._renew()
        return changed

    def clear_cache(self) -> None:
        """Give the cache's memory back, unless requests are being served."""
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
            done: list[tuple[Request, Outcome]] = []
            try:
                self._step(done)
            except Exception as error:
                # Who was done before the error still is.
                done += self._fail(error)
            with self._lock:
                idle = not self.pending
                if idle:
                    if self._stale:
                        self._renew()
                    # Before the last turn is handed over: whoever has it may train at once.
                    for module in training:
                        module.training = True
                    self._serving = False
            for request, outcome in done:
                if isinstance(outcome, Generation):
                    request.future.set_result(outcome)
                elif outcome is None:
                    request.future.cancel()
                else:
                    request.future.set_exception(outcome)

    def _step(self, done: list[tuple[Request, Outcome]]) -> None:
        """One token for each request that lacks nothing; adds those that are done, with their turns."""
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
            # Of similar length, since all are padded to the longest.
            alike = [r for r in behind if longest <= 2 * min(r.missing, longest)]
            self._advance(alike[: max(1, PREFILL // longest)], longest, done)
        ready = [request for request in self._running if request.missing == 1]
        # An older one may need room, and the youngest give way to it.
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
            found = pool.longest_prefix(ids)
            content = found[-1].content if found else ROOT
            following = pool.key(ids, len(found), content)
            if following in being_computed and (len(found) + 1) * BLOCK < len(ids):
                continue
            pool.hold(found)
            wanted = -(-len(ids) // BLOCK) - len(found)
            # One more block for each, so that what is taken in now is not set back a moment later.
            if self._running and pool.available < wanted + len(self._running) + 1:
                pool.release(found)
                return
            request.add(found)
            request.add([_sure(pool.allocate()) for _ in range(wanted)])
            request.content = content
            request.computed = len(found) * BLOCK
            self.reused_tokens += request.computed
            self._waiting.remove(request)
            self._running.append(request)
            if request.missing > 1:
                being_computed.add(following)

    def _make_room(self, request: Request) -> bool:
        """Room for a request's next token, from younger ones if need be; false if it was set back itself."""
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
        """Take a request out, and let go of what it holds."""
        (self._waiting if request in self._waiting else self._running).remove(request)
        self.pool.release(request.blocks)
        request.blocks.clear()
        request.computed, request.content = 0, ROOT

    def _renew(self) -> None:
        """Drop the cache, and take new weights if there are some; who runs is computed again."""
        for request in reversed(self._running):
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
        self, requests: list[Request], most: int, done: list[tuple[Request, Outcome]]
    ) -> None:
        """Compute up to `most` tokens of each request, and sample for those that then lack nothing."""
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
            if request.weight_version is None:
                request.weight_version = self._version
            request.token_ids.append(token)
            request.logprobs.append(logprob)
            reason = self._stop_reason(request)
            if reason is not None:
                self._leave(request)
                done.append((request, self._generation(request, reason)))

    def _generation(self, request: Request, reason: StopReason) -> Generation:
        return Generation(
            tuple(request.sampled),
            tuple(request.logprobs),
            reason,
            time.monotonic() - request.started,
            weight_version=request.weight_version,
        )

    def _forward(self, requests: list[Request], counts: list[int]) -> torch.Tensor:
        """Compute each request's next `counts` tokens; returns the logits after them, shape `(B, V)`."""
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
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._model.device)


def _of_similar_length(requests: list[Request]) -> list[list[Request]]:
    """The requests in parts that each fit into one pass, in which all are padded to the longest."""
    parts: list[list[Request]] = []
    for request in sorted(requests, key=lambda each: len(each.token_ids)):
        if not parts or (len(parts[-1]) + 1) * len(request.token_ids) > DECODE:
            parts.append([])
        parts[-1].append(request)
    return parts


def _sure(block: Block | None) -> Block:
    if block is None:
        raise RuntimeError("the cache has fewer blocks than it counts")
    return block
