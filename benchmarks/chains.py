"""Episodes whose lengths and tool times are fixed beforehand, so that two ways to run them do the same work.

A `Chain` says how much an episode writes before each call and how long each program runs. `ChainPolicy` makes a real model
write just that, `ChainTool` lets the programs take that long.
"""

import asyncio
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retool_env.episode import Generation, Rules
from retool_env.problems import Problem
from retool_env.protocol import ANSWER_CLOSE, ANSWER_OPEN, CODE_CLOSE, CODE_OPEN
from retool_env.rollout import Policy
from retool_env.rollout.simulated import Habits, lognormal
from retool_env.rollout.weights import Weights
from retool_env.sandbox import Execution, Limits, Outcome

Z99 = 2.326347874
"""The 99th percentile of the standard normal distribution."""

NAME = re.compile(r"episode (\d+)")


@dataclass(frozen=True)
class Turn:
    """What the model writes at a stretch."""

    tokens: int
    """How much."""
    tool_seconds: float | None
    """How long the program at its end runs; `None`: the episode ends here."""


Chain = tuple[Turn, ...]
"""An episode's turns; a program's result stands between each two."""


@dataclass(frozen=True)
class ToolTimes:
    """How long programs run, in seconds; the logarithm is normal."""

    median: float
    """Half of them are shorter."""
    p99: float
    """One of a hundred is longer."""
    limit: float
    """What is longer is cut to this."""

    def __post_init__(self) -> None:
        if not 0 < self.median <= self.p99:
            raise ValueError(f"the median is above 0, and not above the 99th percentile: {self}")

    def draw(self, chance: np.random.Generator) -> float:
        """Draw the seconds of a program."""
        spread = math.log(self.p99 / self.median) / Z99
        return min(lognormal(chance, self.median * math.exp(spread**2 / 2), spread), self.limit)


def draw_chain(
    chance: np.random.Generator,
    habits: Habits,
    tools: ToolTimes,
    max_calls: int,
    max_tokens: int,
    result_tokens: int,
) -> Chain:
    """Draw an episode.

    Args:
        chance: The generator.
        habits: Lengths and number of calls.
        tools: Times of the programs.
        max_calls: Calls at most.
        max_tokens: Tokens at most, results included; it ends where they do.
        result_tokens: Of each result.
    """
    turns: list[Turn] = []
    left = max_tokens
    while True:
        tokens = habits.length(chance)
        call = habits.is_call(chance) and len(turns) < max_calls
        if not call or tokens + result_tokens >= left:
            return (*turns, Turn(min(tokens, left), None))
        turns.append(Turn(tokens, tools.draw(chance)))
        left -= tokens + result_tokens


def make_problems(chains: Sequence[Chain]) -> list[Problem]:
    """A problem for each chain, by whose number the policy and the tool know it.

    The number comes first, so that no two prompts have their beginning in common, and no cache serves one with another's.
    """
    filler = "this text stands for a problem, and is about as long as one; " * 3
    return [Problem(str(i), f"episode {i}: {filler}", "1") for i in range(len(chains))]


CHAIN_RULES = Rules(prompt_template="{query}\n", max_tokens=100_000, max_calls=None)
"""A prompt without tags of its own, and no limit that would end an episode before its chain does."""


class ChainPolicy:
    """A model that writes turns of the chains' lengths: its own tokens, then a code block or an answer.

    Args:
        policy: The model. It must not end a turn by itself, nor write a tag (see `endless`).
        chains: By the problem's number.
    """

    def __init__(self, policy: Policy, chains: Sequence[Chain]) -> None:
        self.policy = policy
        self.chains = chains
        self.tokenizer = policy.tokenizer
        self.context_length = policy.context_length
        self.weight_version = policy.weight_version

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """The next turn of the chain that the prompt names.

        Raises:
            RuntimeError: If the model ended the turn by itself.
        """
        text = self.tokenizer.decode(list(token_ids))
        number, turn = int(NAME.search(text)[1]), text.count(CODE_CLOSE)  # type: ignore[index]
        tail = self.tail(number, turn)
        free = max(1, self.chains[number][turn].tokens - len(tail))
        written = await self.policy.act(token_ids, (), free, seed)
        if len(written.token_ids) != free:
            raise RuntimeError(f"the model ended a turn of {free} tokens by itself: {written}")
        return Generation(
            written.token_ids + tail,
            written.logprobs + (0.0,) * len(tail),
            "tag",
            written.seconds,
            written.weight_version,
        )

    def tail(self, number: int, turn: int) -> tuple[int, ...]:
        """Token ids of the code block or the answer that ends a turn of a chain."""
        if self.chains[number][turn].tool_seconds is None:
            text = f"{ANSWER_OPEN}1{ANSWER_CLOSE}"
        else:
            text = f"{CODE_OPEN}\nprint({number}, {turn})\n{CODE_CLOSE}"
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """Passed on to the model."""
        await self.policy.update_weights(version, weights)
        self.weight_version = version


class ChainTool:
    """A sandbox in which programs only take their time.

    Args:
        chains: By the problem's number.
        scale: Of the times; 0: each program ends at once.
    """

    def __init__(self, chains: Sequence[Chain], scale: float = 1.0) -> None:
        self.chains = chains
        self.scale = scale

    async def run_async(self, code: str, limits: Limits | None = None, **_: Any) -> Execution:
        """Wait as long as the chain says."""
        number, turn = (int(part) for part in re.findall(r"\d+", code))
        seconds = self.scale * (self.chains[number][turn].tool_seconds or 0.0)
        if seconds:
            await asyncio.sleep(seconds)
        return Execution(Outcome.OK, f"{number} {turn}\n", duration=seconds)


def endless(model: Any, tokenizer: Any) -> Any:
    """Give a model of transformers a bias against all that could end a turn: special tokens, and any that holds a `<`.

    The bias is one of its output layer, so that it costs nothing where tokens are sampled.
    """
    import torch

    head = model.get_output_embeddings()
    special = set(tokenizer.all_special_ids)
    tokens = [tokenizer.decode([i]) for i in range(head.out_features)]
    barred = [i in special or "<" in text for i, text in enumerate(tokens)]
    biased = torch.nn.Linear(head.in_features, head.out_features, device="meta")
    biased.weight = head.weight
    biased.bias = torch.nn.Parameter(
        torch.where(torch.tensor(barred, device=head.weight.device), -1e4, 0.0).to(
            head.weight.dtype
        )
    )
    model.set_output_embeddings(biased)
    return model
