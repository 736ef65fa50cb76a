"""Episodes whose lengths and tool times are fixed beforehand, so that different loops do the same work.

A `Chain` says how much an episode writes before each call and how long each program runs. `ChainPolicy` makes a real model
write just that, `ChainTool` lets the programs take that long. Episodes are in Hermes' form, with one of TRL's chat templates:
the form that TRL's own loop reads, so that it, too, can run them, on the same ids.
"""

import asyncio
import importlib.resources
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.models.tiny import make_model
from retool_env.episode import Generation
from retool_env.execution import Execution, Limits, Outcome
from retool_env.problem import Problem
from retool_env.protocol.calls import CALL_CLOSE, CALL_OPEN, TOOL_NAME
from retool_env.protocol.hermes import RESPONSE_OPEN, Hermes
from retool_env.rollout import Policy
from retool_env.rollout.simulated import Habits, lognormal
from retool_env.rollout.weights import Weights
from retool_env.rules import Rules

Z99 = 2.326347874
"""The 99th percentile of the standard normal distribution."""

NAME = re.compile(r"episode (\d+)")


@dataclass(frozen=True)
class Turn:
    """What the model writes at a stretch."""

    tokens: int
    """How much it samples; the text of the call or the answer comes on top."""
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
    """A problem for each chain, by whose number the policy and the tool know it."""
    filler = "this text stands for a problem, and is about as long as one"
    return [Problem(str(i), f"episode {i}: {filler}", "1") for i in range(len(chains))]


CHAIN_RULES = Rules(
    protocol="hermes", prompt_template="{query}\n", max_tokens=100_000, max_calls=None
)
"""A prompt without words of its own, and no limit that would end an episode before its chain does."""

CHAIN_TOOLS = Hermes().tools
"""What the chains' tokenizer says of tools."""


def call_text(program: str) -> str:
    """A call of the interpreter, as the model writes it."""
    call = {"name": TOOL_NAME, "arguments": {"code": program}}
    return f"{CALL_OPEN}\n{json.dumps(call)}\n{CALL_CLOSE}"


@dataclass(frozen=True)
class Asked:
    """One turn, as a loop asked the policy for it."""

    number: int
    """Of the chain."""
    turn: int
    """Counted from 0."""
    context: tuple[int, ...]
    """The ids that it was given."""
    sampled: tuple[int, ...]
    """The ids that the model wrote."""


class ChainPolicy(Policy):
    """A model that writes turns of the chains' lengths: its own tokens, then a call or an answer.

    A turn's seed is the chain's, so that all loops ask for the same sampling.

    Args:
        policy: The model. It must not end a turn by itself, nor write a tag (see `endless`).
        chains: By the problem's number.
    """

    def __init__(self, policy: Policy, chains: Sequence[Chain]) -> None:
        self.policy = policy
        self.chains = chains
        self.tokenizer: Any = policy.tokenizer
        self.context_length = policy.context_length
        self.weight_version = policy.weight_version
        self.asked: list[Asked] = []
        """All turns so far, as they came to their end."""

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """The next turn of the chain that the prompt names.

        Raises:
            RuntimeError: If the model ended the turn by itself.
        """
        text = self.tokenizer.decode(list(token_ids))
        number, turn = int(NAME.findall(text)[0]), text.count(RESPONSE_OPEN)
        tokens = self.chains[number][turn].tokens
        written = await self.policy.act(token_ids, (), tokens, 1000 * number + turn)
        if len(written.token_ids) != tokens:
            raise RuntimeError(f"the model ended a turn of {tokens} tokens by itself: {written}")
        self.asked.append(Asked(number, turn, tuple(token_ids), written.token_ids))
        tail = self.tail(number, turn)
        return Generation(
            written.token_ids + tail,
            written.logprobs + (0.0,) * len(tail),
            "eos",
            written.seconds,
            written.weight_version,
        )

    def tail(self, number: int, turn: int) -> tuple[int, ...]:
        """Token ids of the call or the answer that ends a turn of a chain."""
        if self.chains[number][turn].tool_seconds is None:
            text = "\\boxed{1}"
        else:
            text = call_text(f"print({number}, {turn})")
        end = self.tokenizer.eos_token
        return tuple(self.tokenizer.encode(text + end, add_special_tokens=False))

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


def speak_of_tools(tokenizer: Any) -> Any:
    """Give a tokenizer the chat template of Qwen2.5, as TRL has it, which knows tools."""
    templates = importlib.resources.files("trl") / "chat_templates"
    tokenizer.chat_template = (templates / "qwen2_5.jinja").read_text()
    return tokenizer


def make_chat_model(seed: int) -> tuple[Any, Any]:
    """The tiny model, with a tokenizer for conversations that call tools.

    What the chat template says of tools, and the head of a call, are a token each, so that these take no more tokens than they
    do a large vocabulary.
    """
    model, tokenizer = make_model(seed)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    speak_of_tools(tokenizer)
    conversation = [{"role": "user", "content": ""}]
    text = str(
        tokenizer.apply_chat_template(
            conversation, tools=[dict(each) for each in CHAIN_TOOLS], tokenize=False
        )
    )
    lines = [line for line in text.split("\n") if len(line) > 20 and "<|im" not in line]
    call = call_text("").splitlines()[1].removesuffix('"}}')
    tags = [f"<{slash}{tag}>" for tag in ("tool_call", "tool_response") for slash in ("", "/")]
    tokenizer.add_tokens([*tags, *lines, call])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def endless(model: Any, tokenizer: Any) -> Any:
    """Give a model of transformers a bias against all that could end a turn: special tokens, and any that holds a `<`."""
    special = set(tokenizer.all_special_ids)
    size = model.get_output_embeddings().out_features
    # A backslash would make no box of the one that ends the chain.
    barred = [i in special or bool({"<", "\\"} & set(tokenizer.decode([i]))) for i in range(size)]
    return add_bias(model, [-1e4 if each else 0.0 for each in barred])


def add_bias(model: Any, bias: Sequence[float]) -> Any:
    """Give a model of transformers a bias of each token, in its output layer, so that it costs nothing where tokens are sampled."""
    import torch

    head = model.get_output_embeddings()
    biased = torch.nn.Linear(head.in_features, head.out_features, device="meta")
    biased.weight = head.weight
    biased.bias = torch.nn.Parameter(
        torch.tensor(bias, device=head.weight.device, dtype=head.weight.dtype)
    )
    model.set_output_embeddings(biased)
    return model
