"""ScriptedPolicy: turns written beforehand, for tests and for making traces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from retool_env.episode import Generation, Tokenizer, decode, tokens_of_turn
from retool_env.rollout.policy import Policy
from retool_env.rollout.weights import Weights

Script = Callable[[str], str]


class ScriptedPolicy(Policy):
    """Writes what a function says.

    Args:
        script: From the transcript so far, as text, to the next turn's text. An empty text ends the sequence.
        tokenizer: Of the transcript.
        context_length: Tokens that it claims to be able to take.
    """

    def __init__(
        self, script: Script, tokenizer: Tokenizer, context_length: int = 1_000_000
    ) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length
        self._script = script

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """The scripted turn; log-probs are 0, since it was certain."""
        text = self._script(decode(self.tokenizer, token_ids))
        ids = list(self.tokenizer.encode(text, add_special_tokens=False))
        tagged = any(tag in text for tag in stop)
        if tagged:
            ids = ids[: tokens_of_turn(self.tokenizer, ids, stop)]
        elif self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        reason: Literal["tag", "eos", "length"]
        reason = "length" if len(ids) > budget else "tag" if tagged else "eos"
        ids = ids[:budget]
        return Generation(tuple(ids), (0.0,) * len(ids), reason)

    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """It has no weights; the version is noted."""
        self.weight_version = version
