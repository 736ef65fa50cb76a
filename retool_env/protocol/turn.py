"""A turn as it was parsed, and what an episode asks of a format."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from retool_env.protocol.program import Form, Program, read_program
from retool_env.tokens import Tokenizer


class TurnKind(enum.StrEnum):
    """What a turn asks of the environment."""

    CODE = "code"
    ANSWER = "answer"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Turn:
    """One parsed action."""

    kind: TurnKind
    """What it asks for."""
    content: str
    """The program or the answer; empty for a void turn."""
    start: int
    """Index of the opening tag's first character; `end` for a void turn."""
    end: int
    """Number of characters that belong to the turn: up to the closing tag's end, or all of them."""
    error: str = ""
    """Why a call can't be run, in words for the model: it is a failed one. Tags have no such calls."""
    form: Form | None = None
    """How the program of a call was read; `None` for what is no call."""


Reader = Callable[[str], Program]
"""Reads the program in the text of a code block or a call."""

Said = tuple[str, tuple[int, ...] | None]
"""What the environment says: its text, and its token ids where there is a tokenizer."""


class TurnProtocol(Protocol):
    """How model and environment talk: all that an `Episode` knows of a format."""

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end a turn; without one, only the end of the sequence does."""
        ...

    def default_prompt(self) -> str:
        """The default prompt, a template as `PromptTemplate` takes it."""
        ...

    def prompt(self, message: str, tokenizer: Tokenizer | None) -> Said:
        """The first span.

        Args:
            message: What the user says.
            tokenizer: Where actions are token ids.

        Raises:
            ValueError: If the tokenizer's chat template can't carry the protocol.
        """
        ...

    def parse(self, text: str, ended: bool = True, read: Reader = read_program) -> Turn:
        """Parse the text that the model wrote since it last had the word. Never raises.

        Args:
            text: The text.
            ended: Whether the turn came to its own end, rather than to that of a budget.
            read: Reads the program of a call; older transcripts are read as programs were then.
        """
        ...

    def result(
        self, output: str, tokenizer: Tokenizer | None = None, turn_ids: Sequence[int] = ()
    ) -> Said:
        """What the model gets to see of a program's result.

        Args:
            output: As `render_output` gives it.
            tokenizer: Where actions are token ids.
            turn_ids: The tokens of the turn that asked for it.
        """
        ...

    def void(self, tokenizer: Tokenizer | None = None, turn_ids: Sequence[int] = ()) -> Said:
        """What is said after a void turn, where the rules let the episode go on. Arguments as in `result`."""
        ...
