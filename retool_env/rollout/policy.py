"""Policy: what the engine asks of a model. Token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from retool_env.episode import Generation, Tokenizer


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
        """Sample one turn.

        Args:
            token_ids: All that the model has seen and written so far, shape `(P,)`.
            stop: Strings that end the turn. The token that completes one is kept whole.
            budget: The most tokens to sample, at least 1.
            seed: Of this turn's sampling. Same ids, seed and weights: the same turn, up to the arithmetic's
                rounding, which may differ with what else is in a batch.

        Returns:
            The sampled tokens, each with its log-prob under the distribution that it was sampled from.
        """
        ...

    async def update_weights(self, version: int) -> None:
        """Serve new weights from here on, and nothing from a cache of older ones."""
        ...
