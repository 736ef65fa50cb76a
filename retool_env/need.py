"""The action of token ids, and the needs that an episode returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from retool_env.execution import Execution, Limits
from retool_env.tokens import Runs

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
    before: Execution | None = None
    """The result that was shown last; `None` at the first call, and without a fault."""


@dataclass(frozen=True, slots=True)
class GradeAnswer:
    """A need of the episode: the verdict whether an answer equals the reference mathematically."""

    answer: str
    """The model's answer."""
    gold: str
    """The reference answer of the problem."""


Need = RunProgram | GradeAnswer
