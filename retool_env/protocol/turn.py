"""A parsed turn, and the interface of a protocol."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from retool_env.protocol.program import Form, Program, read_program
from retool_env.tokens import Tokenizer


class TurnKind(enum.StrEnum):
    """The request that a turn makes of the environment."""

    CODE = "code"
    """Run a program."""
    ANSWER = "answer"
    """Grade an answer."""
    VOID = "void"
    """Nothing: the turn holds neither a program nor an answer."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One parsed action."""

    kind: TurnKind
    """The request of the turn."""
    content: str
    """The program or the answer; empty for a void turn."""
    start: int
    """Index of the first character of the opening tag; equal to `end` for a void turn."""
    end: int
    """Number of characters that belong to the turn: up to and including the closing tag, or all."""
    error: str = ""
    """The reason, in words for the model, why a tool call can't be run. The call then counts as
    a failed call. The tags protocol has no such calls."""
    form: Form | None = None
    """How the program of a call was read; `None` if the turn is not a call."""


Reader = Callable[[str], Program]
"""A function that reads the program in the text of a code block or a tool call."""

EncodedText = tuple[str, tuple[int, ...] | None]
"""A text of the environment and its token ids; the ids are `None` without a tokenizer."""

Said = EncodedText
"""The former name of `EncodedText`."""


class TurnProtocol(Protocol):
    """The format of turns and results: everything that an `Episode` knows about it."""

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end a turn. If empty, only the end of the sequence ends a turn."""

    def default_prompt(self) -> str:
        """The default prompt, as a template for `PromptTemplate`."""

    def prompt(self, message: str, tokenizer: Tokenizer | None) -> EncodedText:
        """Render the first span of an episode.

        Args:
            message: The user's message: the filled-in prompt template.
            tokenizer: The tokenizer of an episode with token ids; `None` for text episodes.

        Raises:
            ValueError: If the tokenizer's chat template can't carry the protocol.
        """

    def parse(self, text: str, ended: bool = True, read: Reader = read_program) -> Turn:
        """Parse one model turn. Never raises.

        Args:
            text: Everything that the model generated since the last environment message.
            ended: Whether the model ended the turn; `False` if a budget cut it.
            read: The reader of a call's program. Transcripts of older formats use an older reader.
        """

    def result(
        self,
        output: str,
        tokenizer: Tokenizer | None = None,
        turn_ids: Sequence[int] = (),
        notice: str = "",
    ) -> EncodedText:
        """Render the message that shows a program's result to the model.

        Args:
            output: The output and error of the program, as `render_output` returns them.
            tokenizer: The tokenizer of an episode with token ids; `None` for text episodes.
            turn_ids: The token ids of the turn that called the interpreter, shape `(T,)`.
            notice: A line of the environment, shown outside of the output. Empty: no notice. An
                episode passes it only with `announce_calls`.
        """

    def void(self, tokenizer: Tokenizer | None = None, turn_ids: Sequence[int] = ()) -> EncodedText:
        """Render the notice after a void turn, where the rules let the episode go on.

        The arguments are the same as in `result`.
        """
