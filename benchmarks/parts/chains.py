"""Episodes with fixed lengths and tool times, so that different loops do the same work.

A `Chain` states how many tokens an episode samples before each call, and how long each program
runs. `ChainPolicy` makes a real model sample that many tokens; `ChainTool` makes programs take that
long. Episodes use the Hermes protocol with one of TRL's chat templates. TRL's loop reads this form,
so that all loops run on the same token ids.
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
    """One turn of the model."""

    tokens: int
    """The number of sampled tokens, without the text of the call or answer."""
    tool_seconds: float | None
    """The run time of the program at the end of the turn; `None`: the episode ends."""


Chain = tuple[Turn, ...]
"""The turns of an episode. A program's result stands between two turns."""


@dataclass(frozen=True)
class ToolTimes:
    """The distribution of run times of programs: log-normal, in seconds.

    Raises:
        ValueError: If the median is not above 0, or exceeds the 99th percentile.
    """

    median: float
    """The median."""
    p99: float
    """The 99th percentile."""
    limit: float
    """The time limit; longer times are cut to this limit."""

    def __post_init__(self) -> None:
        if not 0 < self.median <= self.p99:
            raise ValueError(f"the median must be above 0, and p99 not below the median: {self}")

    def draw(self, chance: np.random.Generator) -> float:
        """Draw the run time of a program in seconds."""
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
        chance: The random number generator.
        habits: The distribution of turn lengths and of the number of calls.
        tools: The distribution of the programs' run times.
        max_calls: The maximum number of calls.
        max_tokens: The maximum number of tokens, results included. The episode ends at this limit.
        result_tokens: The number of tokens of each result.
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
    """A problem for each chain. Its text holds the chain's number, which the policy reads."""
    filler = "this text stands for a problem, and is about as long as one"
    return [Problem(str(i), f"episode {i}: {filler}", "1") for i in range(len(chains))]


CHAIN_RULES = Rules(
    protocol="hermes", prompt_template="{query}\n", max_tokens=100_000, max_calls=None
)
"""Rules without words of a prompt template, and without a limit below the length of a chain."""

CHAIN_TOOLS = Hermes().tools
"""The description of the tool in the chat template."""


def call_text(program: str) -> str:
    """A tool call of the interpreter, as the model writes it."""
    call = {"name": TOOL_NAME, "arguments": {"code": program}}
    return f"{CALL_OPEN}\n{json.dumps(call)}\n{CALL_CLOSE}"


@dataclass(frozen=True)
class TurnRequest:
    """One request of a loop to the policy, with its result."""

    number: int
    """The chain's number."""
    turn: int
    """The turn's number, from 0."""
    context: tuple[int, ...]
    """The token ids of the request."""
    sampled: tuple[int, ...]
    """The token ids that the model sampled."""


class WrappedPolicy(Policy):
    """A policy that passes its calls on to another policy.

    Args:
        policy: The other policy.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.tokenizer: Any = policy.tokenizer
        self.context_length = policy.context_length
        self.weight_version = policy.weight_version

    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """Pass new weights on to the other policy."""
        await self.policy.update_weights(version, weights)
        self.weight_version = version


class ChainPolicy(WrappedPolicy):
    """A policy that samples turns of the chains' lengths, and appends a call or an answer.

    The seed of a turn follows from the numbers of chain and turn, so all loops sample alike.

    Args:
        policy: The model. It must not end a turn or write a tag by itself (see `endless`).
        chains: The chains, in the order of the problems' numbers.
    """

    def __init__(self, policy: Policy, chains: Sequence[Chain]) -> None:
        super().__init__(policy)
        self.chains = chains
        self.requests: list[TurnRequest] = []
        """All requests so far, in the order in which they ended."""

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Sample the next turn of the chain that the prompt names.

        Args:
            token_ids: The context.
            stop: Ignored; the chain sets the length.
            budget: Ignored; the chain sets the length.
            seed: Ignored; the numbers of chain and turn give the seed.

        Raises:
            RuntimeError: If the model ended the turn by itself.
        """
        text = self.tokenizer.decode(list(token_ids))
        number, turn = int(NAME.findall(text)[0]), text.count(RESPONSE_OPEN)
        tokens = self.chains[number][turn].tokens
        written = await self.policy.act(token_ids, (), tokens, 1000 * number + turn)
        if len(written.token_ids) != tokens:
            raise RuntimeError(f"the model ended a turn of {tokens} tokens early: {written}")
        self.requests.append(TurnRequest(number, turn, tuple(token_ids), written.token_ids))
        tail = self.tail(number, turn)
        return Generation(
            written.token_ids + tail,
            written.logprobs + (0.0,) * len(tail),
            "eos",
            written.seconds,
            written.weight_version,
        )

    def tail(self, number: int, turn: int) -> tuple[int, ...]:
        """The token ids of the call or answer that ends a turn of a chain."""
        if self.chains[number][turn].tool_seconds is None:
            text = "\\boxed{1}"
        else:
            text = call_text(f"print({number}, {turn})")
        end = self.tokenizer.eos_token
        return tuple(self.tokenizer.encode(text + end, add_special_tokens=False))


class ChainTool:
    """A sandbox whose programs only wait.

    Args:
        chains: The chains, in the order of the problems' numbers.
        scale: The factor of all run times; 0: programs end at once.
    """

    def __init__(self, chains: Sequence[Chain], scale: float = 1.0) -> None:
        self.chains = chains
        self.scale = scale

    async def run_async(self, code: str, limits: Limits | None = None, **_: Any) -> Execution:
        """Wait for the run time that the chain gives."""
        number, turn = (int(part) for part in re.findall(r"\d+", code))
        seconds = self.scale * (self.chains[number][turn].tool_seconds or 0.0)
        if seconds:
            await asyncio.sleep(seconds)
        return Execution(Outcome.OK, f"{number} {turn}\n", duration=seconds)


def speak_of_tools(tokenizer: Any) -> Any:
    """Give a tokenizer TRL's chat template of Qwen2.5, which supports tools."""
    templates = importlib.resources.files("trl") / "chat_templates"
    tokenizer.chat_template = (templates / "qwen2_5.jinja").read_text()
    return tokenizer


def make_chat_model(seed: int) -> tuple[Any, Any]:
    """The tiny model, with a tokenizer for conversations with tool calls.

    Each line of the template's tool description is one token, and so is the head of a call. So they
    take no more tokens than in a large vocabulary.
    """
    model, tokenizer = make_model(seed)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    speak_of_tools(tokenizer)
    conversation = [{"role": "user", "content": ""}]
    text = str(
        tokenizer.apply_chat_template(
            conversation, tools=[dict(tool) for tool in CHAIN_TOOLS], tokenize=False
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
    """Stop a model from ending a turn by itself, and return the model.

    A bias suppresses special tokens and all tokens that contain `<` or a backslash.

    Args:
        model: A transformers model; its output layer is replaced.
        tokenizer: The model's tokenizer.
    """
    special = set(tokenizer.all_special_ids)
    size = model.get_output_embeddings().out_features
    # A sampled backslash could spoil the box of the answer that ends the chain.
    barred = [i in special or bool({"<", "\\"} & set(tokenizer.decode([i]))) for i in range(size)]
    return add_bias(model, [-1e4 if bar else 0.0 for bar in barred])


def add_bias(model: Any, bias: Sequence[float]) -> Any:
    """Add a bias per token to the output layer of a model, and return the model.

    The bias is a part of the layer, so sampling does not become slower.

    Args:
        model: A transformers model; its output layer is replaced.
        bias: The bias of each token, shape `(vocabulary,)`.
    """
    import torch

    head = model.get_output_embeddings()
    biased = torch.nn.Linear(head.in_features, head.out_features, device="meta")
    biased.weight = head.weight
    biased.bias = torch.nn.Parameter(
        torch.tensor(bias, device=head.weight.device, dtype=head.weight.dtype)
    )
    model.set_output_embeddings(biased)
    return model
