"""StopReason: why an episode ended."""

from __future__ import annotations

import enum


class StopReason(enum.StrEnum):
    """Why an episode ended: a closed set of terminations and truncations."""

    ANSWERED = "answered"
    """The model gave an answer."""
    STOPPED = "stopped"
    """The model wrote an empty turn: it stopped without an answer."""
    VOID_TURN = "void_turn"
    """A turn held neither a code block nor an answer, and `Rules.void_turn` is `"end"`; or
    `Rules.max_void` invalid turns came in a row."""
    CALL_LIMIT = "call_limit"
    """The model used its last allowed call, saw the result, and did not answer in the next turn."""
    TOKEN_BUDGET = "token_budget"
    """The response reached `Rules.max_tokens`, or the policy's context is full."""
    CHARACTER_BUDGET = "character_budget"
    """The response reached `Rules.max_characters`."""
    TIME_BUDGET = "time_budget"
    """The episode took longer than `Rules.max_seconds`."""
    CANCELLED = "cancelled"
    """The episode was cut from outside, by a deadline for example. It has no score if the model had
    written nothing yet."""
    INFRASTRUCTURE = "infrastructure_failure"
    """The sandbox or the policy failed. Such an episode has no score and is never trained on."""

    @property
    def terminated(self) -> bool:
        """Whether the episode ended by its own rules, rather than by a cut from outside."""
        return self in (self.ANSWERED, self.STOPPED, self.VOID_TURN, self.CALL_LIMIT)
