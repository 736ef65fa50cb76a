"""Rules: the settings of an episode."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from retool_env.errors import SettingsError
from retool_env.execution import Limits, check_seconds, check_whole_number
from retool_env.faults import KINDS, Faults
from retool_env.faults.schedule import Hashed, Schedule
from retool_env.problem import Problem
from retool_env.protocol import PROTOCOLS, ProtocolName
from retool_env.protocol.prompt import PromptTemplate
from retool_env.protocol.result import Cut, Errors
from retool_env.protocol.turn import TurnProtocol
from retool_env.rewards import Reward, get_reward

_log = logging.getLogger(__name__)

_NUMBERS: Mapping[str, Callable[[str, object], float]] = {
    "max_calls": functools.partial(check_whole_number, least=0),
    "max_void": check_whole_number,
    "max_tokens": check_whole_number,
    "max_characters": check_whole_number,
    "max_seconds": check_seconds,
    "output_characters": check_whole_number,
}
"""The numeric settings, each with the function that checks its value."""


@dataclass(frozen=True)
class Rules:
    """The settings of an episode.

    Raises:
        ValueError: If the value of a setting is wrong. The message names the setting.
    """

    interpreter: bool = True
    """Whether the model can run code. If not, `</code>` is ordinary text, and the prompt does not
    mention the interpreter."""
    protocol: ProtocolName = "tags"
    """The format of turns and results: the paper's `"tags"`, or the tool calls of `"hermes"`. With
    `"hermes"` (`retool_env.protocol.hermes`), a tokenizer needs a chat template that supports
    tools."""
    session: bool = False
    """Whether the code blocks of an episode share a process, like the cells of a notebook: names,
    imports and files last from block to block. If not, each block is a separate script, as in the
    paper."""
    display: bool = False
    """Whether the interpreter shows the value of a last expression, like a REPL."""
    max_calls: int | None = 8
    """Number of programs that an episode may run. After the last result the model has one more
    turn, for its answer. A void turn that does not end the episode counts as a call. `None`: no
    limit."""
    announce_calls: bool = False
    """Whether each result ends with the number of programs that the episode may still run. Without
    `max_calls` there is no number to announce."""
    max_tokens: int | None = None
    """Budget of the response in tokens, including the interpreter's tokens. It needs a tokenizer.
    `None`: no limit."""
    max_characters: int | None = 100_000
    """Budget of the response in characters (Unicode code points). `None`: no limit."""
    max_seconds: float | None = None
    """Wall-clock budget of the episode in seconds, checked after each turn and each result. `None`:
    no limit."""
    output_characters: int = 400
    """Number of characters of a program's output that the model sees."""
    output_cut: Cut = "middle"
    """The part of a longer output that is cut out: the `"head"`, the `"tail"` or the `"middle"`."""
    errors: Errors = "traceback"
    """The form of a program's error: the `"traceback"` with the program's own frames, or only its
    `"last_line"`, as in the paper's evaluation."""
    void_turn: Literal["end", "continue"] = "end"
    """The effect of a turn with neither a code block nor an answer: `"end"` ends the episode,
    `"continue"` sends the model a notice."""
    max_void: int | None = None
    """Number of invalid turns in a row after which the episode ends, with `void_turn="continue"`. A
    void turn and a call without a readable program are invalid. `None`: no limit."""
    reward: str | Reward = "paper"
    """The name of a preset (`retool_env.rewards`), or a function of the finished transcript."""
    prompt_template: str | None = None
    """A text with `{query}`, or the path of a JSON file in ReTool's format. `None`: the protocol's
    default prompt."""
    limits: Limits = field(default_factory=Limits)
    """The limits of each program: a `Limits`, or a mapping of its fields."""
    faults: Faults | Mapping[str, Any] | None = None
    """The faults in the interpreter's results: a `Faults`, or a mapping of its fields such as
    `{"rate": 0.25, "kinds": ["timeout"]}`. `None`: no faults."""

    def __post_init__(self) -> None:
        if isinstance(self.limits, Mapping):
            known = [field.name for field in dataclasses.fields(Limits)]
            if unknown := sorted(map(str, set(self.limits) - set(known))):
                raise SettingsError(f"unknown limit {unknown}; the limits are {', '.join(known)}")
            object.__setattr__(self, "limits", Limits(**self.limits))
        if not isinstance(self.limits, Limits):
            raise SettingsError(
                "limits must be a Limits, or a mapping of its fields as {'wall_seconds': 2}, "
                f"not {self.limits!r:.60}"
            )
        if self.faults is not None:
            object.__setattr__(self, "faults", Faults.of(self.faults))
        for name in ("interpreter", "session", "display", "announce_calls"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(f"{name} must be true or false, not {getattr(self, name)!r}")
        for name, check in _NUMBERS.items():
            value = getattr(self, name)
            if value is not None or name == "output_characters":  # `None` means no limit elsewhere
                object.__setattr__(self, name, check(name, value))
        choices = {
            "protocol": tuple(PROTOCOLS),
            "output_cut": get_args(Cut),
            "errors": get_args(Errors),
            "void_turn": ("end", "continue"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise SettingsError(
                    f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )
        get_reward(self.reward)
        _ = self._template  # raises now if the template is wrong

    @functools.cached_property
    def _template(self) -> PromptTemplate:
        if self.prompt_template is None:
            return PromptTemplate(self.turn_protocol().default_prompt())
        return PromptTemplate.load(self.prompt_template)

    def schedule(self, problem: Problem, rollout: int) -> Schedule | None:
        """The faults of one episode; `None` without faults.

        Args:
            problem: The problem.
            rollout: The number of the rollout among the rollouts of its problem.
        """
        if self.faults is None:
            return None
        assert isinstance(self.faults, Faults)
        return Hashed(self.faults, problem.id, rollout)

    def for_training(self) -> Rules:
        """These rules, in which all rollouts of a problem meet the same faults.

        Otherwise the advantages within a group would measure luck.
        """
        if self.faults is None:
            return self
        assert isinstance(self.faults, Faults)
        return dataclasses.replace(self, faults=dataclasses.replace(self.faults, by_rollout=False))

    def check_training(self) -> None:
        """Check that all rollouts of a problem meet the same faults. Held-out kinds are a warning.

        Raises:
            SettingsError: If they meet different faults.
        """
        if self != self.for_training():
            raise SettingsError(
                "in training, all rollouts of a problem must meet the same faults: set "
                "faults.by_rollout=false, or pass rules.for_training() to the engine"
            )
        kinds = self.faults.kinds if isinstance(self.faults, Faults) else ()
        if held_out := [kind for kind in kinds if not KINDS[kind].seen]:
            _log.warning(
                "training meets kinds of faults that suites hold out: %s; name the others in "
                "faults.kinds, or the model's recovery from held-out kinds is not comparable",
                ", ".join(held_out),
            )

    def turn_protocol(self) -> TurnProtocol:
        """The protocol that `protocol` names, with the settings of these rules."""
        return PROTOCOLS[self.protocol](self.interpreter, self.session, self.display)

    @property
    def template(self) -> str:
        """The prompt template, as a text with `{query}`."""
        return self._template.template

    def prompt(self, problem: Problem) -> str:
        """The user message of a problem, without a chat template."""
        return self._template(problem.question)
