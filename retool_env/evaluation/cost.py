"""The cost of an evaluation: prices of an API's tokens, and an estimate beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from retool_env.errors import SettingsError
from retool_env.problem import Problem
from retool_env.rollout.policy import Usage
from retool_env.rules import Rules

_MILLION = 1_000_000
_MOST_DOLLARS = 1e9
_CHARACTERS_A_TOKEN = 3.5
"""A cautious figure for English and code; it serves for prompts whose tokenizer is not at hand."""


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens."""

    prompt: float
    """Dollars for a million tokens read."""
    completion: float
    """Dollars for a million tokens written."""
    cached: float | None = None
    """Dollars for a million tokens read from the API's cache; `None`: as much as `prompt`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a price from a command line.

        Args:
            text: `in,out` or `in,out,cached`, in dollars for a million tokens.

        Raises:
            SettingsError: The text is not two or three numbers from 0 to a billion.
        """
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (2, 3) or not all(0 <= n <= _MOST_DOLLARS for n in numbers):
            raise SettingsError(
                "--price must be in,out or in,out,cached in dollars for a million tokens, as in "
                f"--price 2.5,10, not {text!r:.60}"
            )
        return cls(*numbers)

    def of(self, usage: Usage) -> float:
        """The dollars that tokens cost."""
        cached = self.prompt if self.cached is None else self.cached
        fresh = usage.prompt_tokens - usage.cached_tokens
        paid = fresh * self.prompt + usage.cached_tokens * cached
        return (paid + usage.completion_tokens * self.completion) / _MILLION

    def estimated(self, usage: Usage) -> float:
        """The dollars of all answers, where an answer without figures costs as much as the others.

        Returns:
            Infinity, if answers were given and none of them has figures.
        """
        if usage.uncounted < usage.requests:
            return self.of(usage) * usage.requests / (usage.requests - usage.uncounted)
        return math.inf if usage.requests else 0.0


@dataclass(frozen=True)
class Estimate:
    """The most that an evaluation can take, before its first request."""

    episodes: int
    """Number of episodes still to run."""
    turns: int
    """Number of turns, at most."""
    usage: Usage
    """Tokens, at most. Every turn of an API reads the whole conversation again."""
    turns_limited: bool = True
    """Whether the rules limit the calls of an episode. If not, the numbers are for 8 calls."""
    tokens_limited: bool = True
    """Whether the rules limit the tokens that the model writes. If not, their number is 0 for a
    local model."""

    @classmethod
    def of(
        cls, problems: Sequence[Problem], rules: Rules, turn_tokens: int | None, episodes: int
    ) -> Self:
        """Estimates an evaluation.

        Args:
            problems: The problem of each episode.
            rules: The settings of the episodes.
            turn_tokens: The most tokens of one turn of an API; `None` for a local model, whose
                response has `rules.max_tokens` in all.
            episodes: Number of episodes.
        """
        calls_limited = not rules.interpreter or rules.max_calls is not None
        turns = (
            1 if not rules.interpreter else 1 + (8 if rules.max_calls is None else rules.max_calls)
        )
        prompt = sum(len(rules.prompt(a)) for a in problems) / _CHARACTERS_A_TOKEN
        prompt = prompt / max(len(problems), 1)
        if turn_tokens is None:
            total = Usage(episodes, round(episodes * prompt), episodes * (rules.max_tokens or 0))
            limited = rules.max_tokens is not None
            return cls(episodes, episodes * turns, total, calls_limited, limited)
        shown = rules.output_characters / _CHARACTERS_A_TOKEN
        read = sum(prompt + turn * (turn_tokens + shown) for turn in range(turns))
        total = Usage(episodes * turns, round(episodes * read), episodes * turns * turn_tokens)
        return cls(episodes, episodes * turns, total, calls_limited, calls_limited)

    def text(self, price: Price | None) -> str:
        """One line for a reader; it ends with the price, where there is one."""
        usage = self.usage
        turns = f"at most {self.turns:,} turns"
        if not self.turns_limited:
            turns = f"{self.turns:,} turns with 8 calls an episode (max_calls sets no limit)"
        out = f"{usage.completion_tokens:,} tokens out"
        if not (self.tokens_limited or usage.completion_tokens):
            out = "any number of tokens out (max_tokens sets no limit)"
        line = f"{self.episodes:,} episodes, {turns}, {usage.prompt_tokens:,} tokens in and {out}"
        if price is None:
            return line
        return f"{line}: {dollars(price.of(usage))}{' at most' * self.tokens_limited}"


def dollars(amount: float) -> str:
    """A sum of money for a reader.

    Example:
        >>> dollars(1234.5), dollars(0.001), dollars(0)
        ('$1,234.50', 'less than $0.01', '$0.00')
    """
    return "less than $0.01" if 0 < amount < 0.01 else f"${amount:,.2f}"


def duration(seconds: float) -> str:
    """A time for a reader, in the largest unit that gives at least 1.

    Example:
        >>> duration(5400), duration(90), duration(0.2), duration(0)
        ('1.5 hours', '1.5 minutes', 'less than 1 second', '0 seconds')
    """
    if 0 < seconds < 1:
        return "less than 1 second"
    for unit, size in (("hour", 3600), ("minute", 60), ("second", 1)):
        if (number := round(seconds / size, 1)) >= 1:
            return f"{number:,g} {unit}{'s' * (number != 1)}"
    return "0 seconds"
