"""ScriptedPolicy: turns from a function instead of a model, for tests and for making traces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import override

from retool_env.episode import Generation, Tokenizer, decode, tokens_of_turn
from retool_env.rollout.policy import Policy, TurnEnd
from retool_env.rollout.weights import Weights

Script = Callable[[str], str]
"""A function from the text of the transcript so far to the text of the next turn."""


class ScriptedPolicy(Policy):
    """Writes the turns that a function returns.

    Args:
        script: Maps the transcript so far, as text, to the text of the next turn. An empty text
            ends the sequence.
        tokenizer: The tokenizer of the transcript.
        context_length: The context length that the policy reports, in tokens.
    """

    def __init__(
        self, script: Script, tokenizer: Tokenizer, context_length: int = 1_000_000
    ) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length
        self._script = script

    @override
    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Return the scripted turn. Its log-probs are 0, since it was certain."""
        text = self._script(decode(self.tokenizer, token_ids))
        ids = list(self.tokenizer.encode(text, add_special_tokens=False))
        tagged = any(tag in text for tag in stop)
        if tagged:
            ids = ids[: tokens_of_turn(self.tokenizer, ids, stop)]
        elif self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        reason: TurnEnd = "length" if len(ids) > budget else "tag" if tagged else "eos"
        ids = ids[:budget]
        return Generation(tuple(ids), (0.0,) * len(ids), reason)

    @override
    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """Note the version. There are no weights to serve."""
        self.weight_version = version
