"""The action of token ids, and the needs that an episode returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from retool_env.execution import Execution, Limits
from retool_env.faults.kinds import SESSION_ENDED
from retool_env.protocol.result import EMPTY_PROGRAM, Cut, Errors, hidden_part, render_output
from retool_env.tokens import Runs
from retool_env.transcript import Span

TurnEnd = Literal["tag", "eos", "length"]
"""Why sampling of a turn stopped: a closing tag, the end of the sequence, or the budget."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One turn that a policy sampled: the id action."""

    token_ids: tuple[int, ...]
    """The sampled tokens, shape `(T,)`, including the end-of-sequence token if it was sampled."""
    logprobs: tuple[float, ...]
    """The log-prob of each token under the sampling distribution, shape `(T,)`."""
    stop_reason: TurnEnd
    """Why sampling stopped."""
    seconds: float = field(default=0.0, compare=False)
    """Wall-clock seconds that the generation took."""
    weight_version: int | None = None
    """The version of the weights that sampled the first token. `None`: a policy without weights."""
    weight_runs: Runs = ()
    """The weight version of each token, run-length encoded. Empty if the weights did not change
    during the turn; see `Span.weight_runs`."""


@dataclass(frozen=True, slots=True)
class RunProgram:
    """A need of the episode: the result of this program."""

    program: str
    """The program text."""
    limits: Limits
    """The limits of the program."""
    session: bool = False
    """Whether the program runs in the episode's session, which keeps earlier programs' names."""
    display: bool = False
    """Whether the interpreter shows the value of the program's last expression."""
    fault: str | None = None
    """The kind of the fault that is ordered for this call; `None` without one."""
    problem: str = ""
    """The id of the problem, on which the change of a wrong value depends."""
    block: int = 1
    """In a session, under a fault: the number of the block in the session's process, from 1; see
    `next_block`."""
    before: Execution | None = None
    """The result that was shown last, its output cut as it was shown; `None` at the first call, and
    without a fault."""
    view: tuple[int, Cut, Errors] = (400, "middle", "traceback")
    """How much of a result the model sees: `output_characters`, `output_cut` and `errors` of the
    rules. A fault changes a part that the model sees."""

    def hidden(self, length: int) -> tuple[int, int]:
        """The characters of an output that the model does not see: the first, and the one after.

        Args:
            length: Number of characters of the output.
        """
        return hidden_part(length, *self.view[:2])

    def seen(self, execution: Execution, recorded: bool = False) -> str:
        """A result as the model sees it.

        Args:
            execution: The result.
            recorded: Whether the result is from a record, in which a long output is cut already.
        """
        limit, cut, errors = self.view
        limit = max(limit, len(execution.stdout) if recorded else 0)
        return render_output(execution, limit, cut, errors)


def next_block(spans: Iterable[Span]) -> int:
    """The number of the next block in a session's process, from 1: tracebacks name the block by it.

    Args:
        spans: The spans of the episode so far.
    """
    number = 1
    for span in spans:
        shown = span.execution
        if shown is not None and span.form != "unread" and shown != EMPTY_PROGRAM:
            number = 1 if SESSION_ENDED in shown.error else number + 1
    return number


@dataclass(frozen=True, slots=True)
class GradeAnswer:
    """A need of the episode: the verdict whether an answer equals the reference mathematically."""

    answer: str
    """The model's answer."""
    gold: str
    """The reference answer of the problem."""


Need = RunProgram | GradeAnswer
