"""PartialTurn: a turn that new weights may cut, and that goes on under the new weights.

A turn is sampled by one request, or by several if new weights cut it. The tokens of the earlier
requests are then a part of the later request's prompt.

The engine looks for stop strings in one request only. So a request that goes on from the beginning
of a stop string asks for a few tokens, at most as many as the stop string's missing characters, and
the whole turn is looked at after them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from retool_env.episode import Generation, Tokenizer
from retool_env.rollout.policy import TurnEnd
from retool_env.tokens import cut_turn, decode, first_runs


@dataclass(eq=False)
class PartialTurn:
    """The tokens of a turn that its requests have sampled so far."""

    tokenizer: Tokenizer
    """The tokenizer of the model."""
    context: Sequence[int]
    """All tokens before the turn, shape `(P,)`."""
    stop: Sequence[str]
    """The strings that end the turn."""
    budget: int
    """The most tokens of the turn."""
    seed: int
    """The seed of the turn."""
    started: float = field(default_factory=time.monotonic)
    """The time of the turn's first request, in seconds of the monotonic clock."""
    _sampled: list[int] = field(default_factory=list)
    _logprobs: list[float] = field(default_factory=list)
    _runs: list[tuple[int, int]] = field(default_factory=list)
    _requests: int = 0

    @property
    def cut(self) -> bool:
        """Whether a request of the turn was cut."""
        return self._requests > 0

    @property
    def prompt(self) -> list[int]:
        """The prompt of the next request: the context, and the tokens sampled so far."""
        return [*self.context, *self._sampled]

    @property
    def request_budget(self) -> int:
        """The most tokens of the next request."""
        left = self.budget - len(self._sampled)
        if not self._sampled:
            return left
        text = decode(self.tokenizer, self._sampled)
        return min(left, max((_missing(text, tag) for tag in self.stop), default=0) or left)

    @property
    def request_seed(self) -> int:
        """The seed of the next request."""
        # With the seed of an earlier request it would draw the same random numbers again.
        return self.seed + self._requests

    def add(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        version: int,
        reason: TurnEnd | None,
    ) -> Generation | None:
        """Append the tokens of a request.

        Args:
            token_ids: The sampled tokens, shape `(T,)`.
            logprobs: The log-prob of each token, shape `(T,)`.
            version: The version of the weights that sampled them.
            reason: The reason why the request ended; `None`: it was cut.

        Returns:
            The turn; `None` if it goes on.
        """
        self._sampled += token_ids
        self._logprobs += logprobs
        if token_ids:
            self._runs.append((version, len(token_ids)))
        self._requests += 1
        kept = len(self._sampled)
        if reason is None or self._requests > 1:
            kept, text = cut_turn(self.tokenizer, self._sampled, self.stop)
            if any(tag in text for tag in self.stop):
                reason = "tag"
            elif reason in (None, "length"):
                reason = "length" if kept == self.budget else None
        if reason is None:
            return None
        return Generation(
            tuple(self._sampled[:kept]),
            tuple(self._logprobs[:kept]),
            reason,
            time.monotonic() - self.started,
            self._runs[0][0],
            first_runs(self._runs, kept),
        )


def _missing(text: str, tag: str) -> int:
    """The characters of a tag that are missing, if a text ends with its beginning; else 0."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return len(tag) - length
    return 0
