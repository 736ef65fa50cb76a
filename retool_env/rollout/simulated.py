"""SimulatedPolicy: turns of stated length at a stated speed, for benchmarks and for planning a machine's load.

Its turns are real token ids, so that episodes run through the real engine and sandbox; only the model is left out. All
rows of a batch gain tokens at one pace, which falls as the batch grows, and stand still while a prompt is read. One number,
the tokens that a row has by now which was there from the beginning, therefore says how far each of them is: `Batch` keeps
it, and needs no step for each token. `benchmarks/capacity.py` uses the same without an event loop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from retool_env.episode import Generation
from retool_env.protocol.tags import ANSWER_CLOSE, ANSWER_OPEN, CODE_CLOSE, CODE_OPEN
from retool_env.rollout.policy import Policy
from retool_env.rollout.weights import Weights
from retool_env.tokens import Tokenizer, tokens_of_turn


@dataclass(frozen=True)
class Speed:
    """What a batch costs. The defaults make a fast small model, so that a benchmark ends soon."""

    seconds_per_token: float = 0.002
    """A decoding step with one row: each row gains one token."""
    seconds_per_row: float = 0.00002
    """What each further row adds to a step."""
    prefill_seconds: float = 0.00001
    """Of each token of a prompt that is in no cache; the whole batch waits meanwhile."""
    rows: int = 256
    """Rows that are decoded together at most; further requests wait, first come, first served."""

    def __post_init__(self) -> None:
        if not (self.seconds_per_token > 0 and self.rows >= 1):
            raise ValueError(f"a step takes time, and a batch has at least one row: {self}")
        if self.seconds_per_row < 0 or self.prefill_seconds < 0:
            raise ValueError(f"no cost is negative: {self}")

    def step(self, rows: int) -> float:
        """Seconds of a decoding step with so many rows."""
        return self.seconds_per_token + (rows - 1) * self.seconds_per_row


@dataclass(frozen=True)
class Habits:
    """What the turns are like."""

    turn_tokens: float = 100.0
    """Tokens of a turn on average. A turn has at least those of its code block or answer."""
    spread: float = 0.8
    """Standard deviation of the logarithm of the length, which is normal; 0: all turns are as long."""
    calls: float = 2.0
    """Calls of an episode on average. Each turn is a call with probability `calls / (1 + calls)`, whatever came before, so
    their number is geometric; the rules' `max_calls` cuts it."""
    program: str = "print(1)"
    """What a call runs."""
    answer: str = "1"
    """What is answered."""

    def __post_init__(self) -> None:
        if not self.turn_tokens > 0 or self.spread < 0 or self.calls < 0:
            raise ValueError(f"lengths are above 0, spread and calls not below it: {self}")

    def length(self, chance: np.random.Generator) -> int:
        """Draw the tokens of a turn."""
        return max(1, round(lognormal(chance, self.turn_tokens, self.spread)))

    def is_call(self, chance: np.random.Generator) -> bool:
        """Draw whether a turn is a call."""
        return bool(chance.random() < self.calls / (1 + self.calls))


def lognormal(chance: np.random.Generator, mean: float, spread: float) -> float:
    """Draw a number of that mean whose logarithm is normal, with the standard deviation `spread`."""
    return mean * math.exp(spread * float(chance.standard_normal()) - spread * spread / 2)


class Batch[R: Hashable]:
    """Requests that are decoded together: who is done when. It knows no clock; whoever uses it says what time it is.

    Args:
        speed: What the batch costs.
    """

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self._now = -math.inf
        self._stalled_until = -math.inf
        self._written = 0.0  # tokens of a row that was there from the beginning
        self._order = itertools.count()
        # A heap, by what `_written` is when the row is done.
        self._rows: list[tuple[float, int, R]] = []
        self._waiting: dict[R, tuple[int, int]] = {}

    @property
    def rows(self) -> int:
        """Requests that are decoded."""
        return len(self._rows)

    @property
    def next_end(self) -> float:
        """When the first row is done if nothing else comes; infinity without one."""
        if not self._rows:
            return math.inf
        seconds = max(0.0, self._rows[0][0] - self._written) * self.speed.step(self.rows)
        return max(self._now, self._stalled_until) + seconds

    def add(self, now: float, request: R, tokens: int, prefill: int) -> None:
        """Take a request for so many tokens, after a prompt of which so many are in no cache."""
        self._advance(now)
        self._waiting[request] = (tokens, prefill)
        self._admit()

    def remove(self, now: float, request: R) -> None:
        """Drop a request, wherever it is; one that is done is none any more."""
        self._advance(now)
        if self._waiting.pop(request, None) is None:
            self._rows = [row for row in self._rows if row[2] != request]
            heapq.heapify(self._rows)
        self._admit()

    def done(self, now: float) -> list[R]:
        """Take out the requests that are done by now, in the order in which they were."""
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
    """Writes turns of drawn length, each a code block or an answer after filler, as fast as a `Speed` says.

    What it writes hangs on a turn's seed alone. The key-value cache of a prompt and of earlier turns is taken as kept until
    `update_weights`, so that a turn after a call reads the call's result alone.

    Args:
        tokenizer: Of the transcripts; a real one.
        speed: Of sampling.
        habits: Lengths and calls.
        context_length: Tokens that it takes.

    Raises:
        ValueError: If a turn of that tokenizer would not end with its closing tag.
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
        """Tokens of prompts and results that it had to read; the rest was in the cache."""
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
                raise ValueError(f"this tokenizer writes {tag} before the last token of {ids}")

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """The turn of this seed, when it would be written; log-probs are 0, since it was certain."""
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
        return Generation(
            ids,
            (0.0,) * len(ids),
            "tag" if len(whole) <= budget else "length",
            loop.time() - began,
            version,
        )

    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """It has no weights; the version is noted, and the cache dropped."""
        self.weight_version = version
        self._cached.clear()

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _reused(self, token_ids: Sequence[int]) -> int:
        """Tokens of the longest beginning that ends with a turn of its own."""
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
        """Hand over what is done by now; also before the batch changes, since a timer may come late."""
        for written in self._batch.done(loop.time()):
            if not written.done():  # whoever awaits it may be cancelled in this very moment
                written.set_result(None)
        self._schedule(loop)
