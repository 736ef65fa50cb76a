"""Policy: what the engine asks of a model. Token ids in, token ids out; text where a model gives no ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from retool_env.episode import Generation, Tokenizer
from retool_env.protocol.program import Form
from retool_env.rollout.weights import Weights
from retool_env.transcript import Transcript


class PolicyUnavailable(RuntimeError):
    """No turn can be had for now: servers are down, a connection broke. The engine tries the episode again."""


def check_sampling(temperature: float, top_p: float) -> None:
    """What every policy's settings of sampling must be.

    Raises:
        ValueError: If one is out of range.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must not be negative, not {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")


def check_room(token_ids: Sequence[int], budget: int, context_length: int) -> None:
    """What a turn must be for a model to take it.

    Raises:
        ValueError: If there are no tokens, the budget is below 1, or both together do not fit into the context.
    """
    if not token_ids or budget < 1 or len(token_ids) + budget > context_length:
        raise ValueError(
            f"{len(token_ids)} tokens and a budget of {budget} don't fit a context of {context_length}"
        )


class Policy(Protocol):
    """A source of turns. Many `act` calls are in flight at once; how they are batched is the policy's own matter."""

    tokenizer: Tokenizer
    """Encodes prompts and results, and decodes what was sampled."""
    context_length: int
    """Tokens of prompt and response together that the model can take."""
    weight_version: int
    """Which weights it serves; 0 at first."""

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Sample one turn. Cancelling this ends the request: nothing more is sampled for it.

        Args:
            token_ids: All that the model has seen and written so far, shape `(P,)`.
            stop: Strings that end the turn. The token that completes one is kept whole.
            budget: The most tokens to sample, at least 1.
            seed: Of this turn's sampling. Same ids, seed and weights: the same turn, up to the arithmetic's
                rounding, which may differ with what else is in a batch.

        Returns:
            The sampled tokens, each with its log-prob under the distribution that it was sampled from.

        Raises:
            PolicyUnavailable: It can't be had for now.
        """
        ...

    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """Serve new weights from here on, and nothing from a cache of older ones. Has returned when it does.

        Args:
            version: The new weights' number.
            weights: All of the model's, by the names of transformers, adapters merged. `None`: they are where the policy
                finds them by itself.
        """
        ...


@dataclass(frozen=True)
class TextGeneration:
    """One turn of a model that gives no token ids."""

    text: str
    """What it wrote, the closing tag included."""
    stop_reason: Literal["tag", "eos", "length"]
    """Why it stopped: a closing tag, its own end, or a limit on its length."""
    seconds: float = field(default=0.0, compare=False)
    """Wall-clock seconds it took."""
    form: Form | None = None
    """How its program was read, where the policy made the code block of a native call; `None`: the text
    shows it."""


class TextPolicy(Protocol):
    """A source of turns as text, for evaluation: what it writes can't be trained on."""

    async def write(self, transcript: Transcript, stop: Sequence[str], seed: int) -> TextGeneration:
        """Write one turn. Cancelling this ends the request.

        Args:
            transcript: All that the model has seen and written so far, without token ids.
            stop: Strings that end the turn, which holds the one that ended it.
            seed: Of this turn's sampling, for models that take one.

        Raises:
            PolicyUnavailable: It can't be had for now.
        """
        ...
