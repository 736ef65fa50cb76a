"""TransformersPolicy: a causal language model of transformers, batched, on the CPU or a GPU.

Requests that arrive together are sampled as one batch, left-padded, with a key-value cache. A row that is done leaves the
batch, and its turn is handed over at once; requests that come meanwhile wait for the next batch.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from retool_env.episode import Generation, decode

StopReason = Literal["tag", "eos", "length"]


@dataclass(eq=False)
class _Request:
    token_ids: list[int]
    stop: tuple[str, ...]
    budget: int
    uniform: random.Random
    future: asyncio.Future[Generation]
    started: float = 0.0
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def finish(self, stop_reason: StopReason) -> None:
        """Hand the turn to whoever waits for it, from the thread that samples."""
        turn = Generation(
            tuple(self.sampled), tuple(self.logprobs), stop_reason, time.monotonic() - self.started
        )
        self.future.get_loop().call_soon_threadsafe(_resolve, self.future, turn)


def _resolve(future: asyncio.Future[Generation], turn: Generation) -> None:
    if not future.done():
        future.set_result(turn)


class TransformersPolicy:
    """Samples from a model of transformers.

    Args:
        model: A causal language model. It is used where it is, and as it is: whoever trains it may change its weights
            between rollouts, and says so with `update_weights`.
        tokenizer: Its tokenizer.
        temperature: Of sampling; 0 is greedy.
        top_p: Nucleus mass. Training needs 1.0, so that log-probs are those of the model itself.
        max_batch: Rows sampled together, at most.
        linger: Seconds that a batch waits for more requests while they keep coming.

    Raises:
        ValueError: If temperature or top-p are out of range, or the tokenizer knows no end of sequence.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_batch: int = 128,
        linger: float = 0.02,
    ) -> None:
        if temperature < 0:
            raise ValueError(f"temperature must not be negative, not {temperature}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos_token, so no turn could end without a tag")
        self.model = model
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.top_p = top_p
        self.max_batch = max_batch
        self.linger = linger
        self.context_length = int(model.config.get_text_config().max_position_embeddings)
        self.weight_version = 0
        declared = model.generation_config.eos_token_id
        declared = declared if isinstance(declared, list) else [declared]
        self._eos = {tokenizer.eos_token_id, *declared} - {None}
        self._text_of: dict[int, str] = {}
        self._pending: list[_Request] = []
        # Of its own, so that no burst of other work in the loop's executor stands before it.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")
        self._server: asyncio.Task[None] | None = None

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Sample one turn; see `Policy.act`.

        Raises:
            ValueError: If the budget is below 1 or does not fit into the model's context.
        """
        if budget < 1 or len(token_ids) + budget > self.context_length:
            raise ValueError(
                f"{len(token_ids)} tokens and a budget of {budget} don't fit a context of {self.context_length}"
            )
        future = asyncio.get_running_loop().create_future()
        self._pending.append(
            _Request(list(token_ids), tuple(stop), budget, random.Random(seed), future)
        )
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve())
        return await future

    async def update_weights(self, version: int) -> None:
        """Note that the model's weights have changed. No cache outlives a batch, so there is none to drop."""
        self.weight_version = version

    async def _serve(self) -> None:
        while self._pending:
            waiting = 0
            while waiting < len(self._pending) < self.max_batch:
                waiting = len(self._pending)
                await asyncio.sleep(self.linger)
            batch = [r for r in self._pending[: self.max_batch] if not r.future.cancelled()]
            del self._pending[: self.max_batch]
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._sample, batch)
            except Exception as error:
                for request in batch:
                    if not request.future.done():
                        request.future.set_exception(error)

    @torch.no_grad()
    def _sample(self, batch: list[_Request]) -> None:
        if not batch:
            return
        training = self.model.training
        self.model.eval()
        try:
            last = self._sample_rows(batch)
        finally:
            self.model.train(training)
        # Handed over only now: whoever waits for the last turn may train as soon as it has it.
        for row, stop_reason in last:
            row.finish(stop_reason)

    def _sample_rows(self, rows: list[_Request]) -> list[tuple[_Request, StopReason]]:
        """Sample until all rows are done; returns those that were done last, not handed over yet."""
        device = self.model.device
        started = time.monotonic()
        for row in rows:
            row.started = started
        longest = max(len(row.token_ids) for row in rows)
        pad = self.tokenizer.pad_token_id or 0
        input_ids = torch.tensor(
            [[pad] * (longest - len(row.token_ids)) + row.token_ids for row in rows], device=device
        )
        lengths = torch.tensor([len(row.token_ids) for row in rows], device=device)
        mask = (torch.arange(longest, device=device) >= longest - lengths[:, None]).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        while True:
            output = self.model(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            tokens, logprobs = self._draw(output.logits[:, -1], rows)
            alive, done = [], []
            for i, (row, token, logprob) in enumerate(
                zip(rows, tokens.tolist(), logprobs.tolist(), strict=True)
            ):
                row.sampled.append(token)
                row.logprobs.append(logprob)
                stop_reason = self._stop_reason(row, token)
                if stop_reason is not None:
                    done.append((row, stop_reason))
                elif not row.future.cancelled():
                    alive.append(i)
            if not alive:
                return done
            for row, stop_reason in done:
                row.finish(stop_reason)
            positions = positions[:, -1:] + 1
            input_ids = tokens[:, None]
            if len(alive) < len(rows):
                keep = torch.tensor(alive, device=device)
                rows = [rows[i] for i in alive]
                input_ids, positions, mask = input_ids[keep], positions[keep], mask[keep]
                cache.batch_select_indices(keep)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)

    def _draw(
        self, logits: torch.Tensor, rows: list[_Request]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One token a row, `(B, V)` logits to `(B,)` ids and log-probs, by inversion of the distribution function.

        Each row has a generator of its own, so that what it draws does not hang on who shares its batch.
        """
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
        cumulative = logprobs.double().exp().cumsum(-1)
        uniform = torch.tensor(
            [row.uniform.random() for row in rows], dtype=torch.float64, device=logits.device
        )
        # The smallest index whose cumulative mass exceeds the draw has mass of its own, so a token that top-p
        # excluded is never taken.
        tokens = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
        return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0]

    def _stop_reason(self, row: _Request, token: int) -> Literal["tag", "eos", "length"] | None:
        if token in self._eos:
            return "eos"
        if token not in self._text_of:
            self._text_of[token] = decode(self.tokenizer, [token])
        # Decoding is slow, and only a token with a tag's last character can complete one.
        if any(tag[-1] in self._text_of[token] for tag in row.stop):
            text = decode(self.tokenizer, row.sampled)
            if any(tag in text for tag in row.stop):
                return "tag"
        return "length" if len(row.sampled) >= row.budget else None


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
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device)
    return TransformersPolicy(loaded, AutoTokenizer.from_pretrained(model), **sampling)
