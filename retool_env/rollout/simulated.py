"""SimulatedPolicy: turns of given length at a given speed, for benchmarks and capacity planning.

Its turns are real token ids, so episodes run through the real engine and sandbox; only the model is
missing. All rows of a batch gain tokens at the same pace. The pace falls as the batch grows, and
drops to zero while a prompt is computed. `Batch` therefore needs one number only, and no step for
each token: the number of tokens that a row would have by now if it had been in the batch from the
beginning. `benchmarks/capacity.py` uses `Batch` without an event loop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import override

import numpy as np

from retool_env.episode import Generation
from retool_env.protocol.tags import ANSWER_CLOSE, ANSWER_OPEN, CODE_CLOSE, CODE_OPEN
from retool_env.rollout.policy import Policy, TurnEnd
from retool_env.rollout.weights import Weights
from retool_env.tokens import Tokenizer, tokens_of_turn


@dataclass(frozen=True)
class Speed:
    """The cost of a batch. The defaults describe a fast small model, so benchmarks end soon."""

    seconds_per_token: float = 0.002
    """The seconds of a decoding step with one row. In a step each row gains one token."""
    seconds_per_row: float = 0.00002
    """The seconds that each further row adds to a step."""
    prefill_seconds: float = 0.00001
    """The seconds for each prompt token outside the cache; the whole batch waits meanwhile."""
    rows: int = 256
    """The most rows that are decoded together; further requests wait, first come, first served."""

    def __post_init__(self) -> None:
        if not (self.seconds_per_token > 0 and self.rows >= 1):
            raise ValueError(f"seconds_per_token must be above 0, and rows at least 1: {self}")
        if self.seconds_per_row < 0 or self.prefill_seconds < 0:
            raise ValueError(f"seconds_per_row and prefill_seconds must not be negative: {self}")

    def step(self, rows: int) -> float:
        """The seconds of a decoding step with this number of rows."""
        return self.seconds_per_token + (rows - 1) * self.seconds_per_row


@dataclass(frozen=True)
class Habits:
    """The distribution of turns."""

    turn_tokens: float = 100.0
    """The mean number of tokens of a turn. A turn is at least as long as its code block or answer.
    """
    spread: float = 0.8
    """The standard deviation of the logarithm of the length, which is normal; 0: equal lengths."""
    calls: float = 2.0
    """The mean number of calls in an episode. Each turn is a call with probability `calls / (1 +
    calls)`, so the number of calls is geometric; `max_calls` of the rules cuts it.
    """
    program: str = "print(1)"
    """The program of each call."""
    answer: str = "1"
    """The answer of each episode."""

    def __post_init__(self) -> None:
        if not self.turn_tokens > 0 or self.spread < 0 or self.calls < 0:
            raise ValueError(f"turn_tokens must be above 0, spread and calls at least 0: {self}")

    def length(self, chance: np.random.Generator) -> int:
        """Draw the number of tokens of a turn."""
        return max(1, round(lognormal(chance, self.turn_tokens, self.spread)))

    def is_call(self, chance: np.random.Generator) -> bool:
        """Draw whether a turn is a call."""
        return bool(chance.random() < self.calls / (1 + self.calls))


def lognormal(chance: np.random.Generator, mean: float, spread: float) -> float:
    """Draw a number whose logarithm is normal.

    Args:
        chance: The random generator.
        mean: The mean of the number itself.
        spread: The standard deviation of its logarithm.
    """
    return mean * math.exp(spread * float(chance.standard_normal()) - spread * spread / 2)


class Batch[R: Hashable]:
    """Requests that are decoded together, and the time at which each is done.

    A batch has no clock: its user passes the current time.

    Args:
        speed: The cost of the batch.
    """

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self._now = -math.inf
        self._stalled_until = -math.inf
        self._written = 0.0  # tokens of a row that has been there from the beginning
        self._order = itertools.count()
        # A heap, ordered by the value of `_written` at which the row is done.
        self._rows: list[tuple[float, int, R]] = []
        self._waiting: dict[R, tuple[int, int]] = {}

    @property
    def rows(self) -> int:
        """The number of requests that are being decoded."""
        return len(self._rows)

    @property
    def next_end(self) -> float:
        """The time at which the first row is done if nothing is added; infinity without a row."""
        if not self._rows:
            return math.inf
        seconds = max(0.0, self._rows[0][0] - self._written) * self.speed.step(self.rows)
        return max(self._now, self._stalled_until) + seconds

    def add(self, now: float, request: R, tokens: int, prefill: int) -> None:
        """Add a request.

        Args:
            now: The current time, in seconds.
            request: The request, which `done` returns at its end.
            tokens: The number of tokens to decode.
            prefill: The number of prompt tokens that are not in the cache.
        """
        self._advance(now)
        self._waiting[request] = (tokens, prefill)
        self._admit()

    def remove(self, now: float, request: R) -> None:
        """Remove a request, waiting or decoded. A request that is done already is ignored."""
        self._advance(now)
        if self._waiting.pop(request, None) is None:
            self._rows = [row for row in self._rows if row[2] != request]
            heapq.heapify(self._rows)
        self._admit()

    def done(self, now: float) -> list[R]:
        """Take out the requests that are done by now, in the order of their ends."""
        done = []
        while self.next_end <= now:
            self._advance(self.next_end)
            self._written = max(self._written, self._rows[0][0])
            done.append(heapq.heappop(self._rows)[2])
            self._admit()
        self._advance(now)
        return done

    def _advance(self, now: float) -> None:
        since = max(self._now, self._stalled_until)
        if self._rows and now > since:
            self._written += (now - since) / self.speed.step(self.rows)
        self._now = max(self._now, now)

    def _admit(self) -> None:
        while self._waiting and self.rows < self.speed.rows:
            request = next(iter(self._waiting))
            tokens, prefill = self._waiting.pop(request)
            seconds = prefill * self.speed.prefill_seconds
            self._stalled_until = max(self._now, self._stalled_until) + seconds
            heapq.heappush(self._rows, (self._written + tokens, next(self._order), request))


class SimulatedPolicy(Policy):
    """Writes turns of random length, each a code block or an answer after filler, at a given speed.

    A turn depends only on its seed. The key-value cache of prompts and earlier turns is assumed to
    last until `update_weights`, so a turn after a call computes only the call's result.

    Args:
        tokenizer: A real tokenizer, the tokenizer of the transcripts.
        speed: The speed of sampling. `None`: `Speed()`.
        habits: The distribution of turns. `None`: `Habits()`.
        context_length: The context length that the policy reports, in tokens.

    Raises:
        ValueError: If a turn in this tokenizer's ids would not end with its closing tag.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        speed: Speed | None = None,
        habits: Habits | None = None,
        context_length: int = 1_000_000,
    ) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.prefilled_tokens: int = 0
        """The number of tokens of prompts and results that were not in the cache."""
        self.habits = Habits() if habits is None else habits
        self._batch: Batch[asyncio.Future[None]] = Batch(Speed() if speed is None else speed)
        self._timer: asyncio.TimerHandle | None = None
        self._cached: set[int] = set()
        (self._filler, *_) = self._encode(".")
        code = f"\n{CODE_OPEN}\n```python\n{self.habits.program}\n```\n{CODE_CLOSE}"
        answer = f"\n{ANSWER_OPEN}\n\\boxed{{{self.habits.answer}}}\n{ANSWER_CLOSE}"
        self._code, self._answer = self._encode(code), self._encode(answer)
        for ids, tag in ((self._code, CODE_CLOSE), (self._answer, ANSWER_CLOSE)):
            if tokens_of_turn(tokenizer, ids, (tag,)) != len(ids):
                raise ValueError(f"{tag} ends before the last token of {ids}: change the tokenizer")

    @override
    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Return the turn of this seed when it would be written.

        Its log-probs are 0, since it was certain.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        chance = np.random.default_rng(seed)
        call = self.habits.is_call(chance) and CODE_CLOSE in stop
        tail = self._code if call else self._answer
        whole = (self._filler,) * (self.habits.length(chance) - len(tail)) + tail
        ids = whole[:budget]
        prefill = len(token_ids) - self._reused(token_ids)
        self.prefilled_tokens += prefill
        version = self.weight_version
        written: asyncio.Future[None] = loop.create_future()
        self._finish(loop)
        self._batch.add(began, written, len(ids), prefill)
        self._schedule(loop)
        try:
            await written
        except asyncio.CancelledError:
            self._finish(loop)
            self._batch.remove(loop.time(), written)
            self._schedule(loop)
            raise
        if call:
            self._cached.add(hash((*token_ids, *ids)))
        reason: TurnEnd = "tag" if len(whole) <= budget else "length"
        return Generation(ids, (0.0,) * len(ids), reason, loop.time() - began, version)

    @override
    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """Note the version and drop the cache. There are no weights to serve."""
        self.weight_version = version
        self._cached.clear()

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _reused(self, token_ids: Sequence[int]) -> int:
        """The number of tokens in the longest prefix that ends with a turn of this policy."""
        last = self._code[-1]
        for end in range(len(token_ids), 0, -1):
            if token_ids[end - 1] == last and hash(tuple(token_ids[:end])) in self._cached:
                return end
        return 0

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        end = self._batch.next_end
        self._timer = None if end == math.inf else loop.call_at(end, self._finish, loop)

    def _finish(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand over the turns that are done by now.

        It also runs before each change of the batch, since a timer may come late.
        """
        for written in self._batch.done(loop.time()):
            if not written.done():  # its caller may have been cancelled at this moment
                written.set_result(None)
        self._schedule(loop)
