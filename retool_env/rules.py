"""Rules: the settings of an episode."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from retool_env.errors import SettingsError
from retool_env.execution import Limits, check_seconds, check_whole_number
from retool_env.problem import Problem
from retool_env.protocol import PROTOCOLS, ProtocolName
from retool_env.protocol.prompt import PromptTemplate
from retool_env.protocol.result import Cut, Errors
from retool_env.protocol.turn import TurnProtocol
from retool_env.rewards import Reward, get_reward

_NUMBERS: Mapping[str, Callable[[str, object], float]] = {
    "max_calls": functools.partial(check_whole_number, least=0),
    "max_tokens": check_whole_number,
    "max_characters": check_whole_number,
    "max_seconds": check_seconds,
    "output_characters": check_whole_number,
}
"""The settings that are numbers, each with what checks it."""


@dataclass(frozen=True)
class Rules:
    """The settings of an episode."""

    interpreter: bool = True
    """Whether the model can run code. Without, `</code>` is text like any other, and the prompt says nothing of it."""
    protocol: ProtocolName = "tags"
    """How model and environment talk: the paper's `"tags"`, or tool calls in `"hermes"`' form (`retool_env.protocol.hermes`), for which
    a tokenizer must have a chat template that knows tools."""
    session: bool = False
    """Whether an episode's code blocks share a process, as the cells of a notebook do: names, imports and files last from
    one to the next. Without, as in the paper, each is a script of its own."""
    display: bool = False
    """Whether the value of a last line that is an expression is shown, as a REPL does."""
    max_calls: int | None = 8
    """Programs that an episode may run. After the last one's result the model has one more turn, for its answer.
    A void turn that the rules pass over counts as a call. `None`: no limit."""
    max_tokens: int | None = None
    """Token budget of the response, the interpreter's tokens included; needs a tokenizer."""
    max_characters: int | None = 100_000
    """The same in characters (Unicode code points)."""
    max_seconds: float | None = None
    """Wall-clock budget of the episode in seconds, looked at when a turn begins and ends."""
    output_characters: int = 400
    """Characters of a program's output that are shown."""
    output_cut: Cut = "middle"
    """What is lost of a longer output: its `"head"`, its `"tail"` or its `"middle"`."""
    errors: Errors = "traceback"
    """How a program's error is shown: its own frames of the traceback, or the `"last_line"` alone, as in the paper's
    evaluation."""
    void_turn: Literal["end", "continue"] = "end"
    """What a turn with neither a code block nor an answer does: ends the episode, or is told so and goes on."""
    reward: str | Reward = "paper"
    """A preset's name, or a function of the finished transcript."""
    prompt_template: str | None = None
    """A text with `{query}`, or the path of a JSON file in ReTool's format; `None`: our own words."""
    limits: Limits = field(default_factory=Limits)
    """Limits of each program; a mapping of its fields is taken as well, and becomes `Limits`."""

    def __post_init__(self) -> None:
        if isinstance(self.limits, Mapping):
            known = [field.name for field in dataclasses.fields(Limits)]
            if unknown := sorted(map(str, set(self.limits) - set(known))):
                raise SettingsError(f"unknown limit {unknown}; there are {', '.join(known)}")
            object.__setattr__(self, "limits", Limits(**self.limits))
        if not isinstance(self.limits, Limits):
            raise SettingsError(
                "limits must be a Limits, or a mapping of its fields as {'wall_seconds': 2}, "
                f"not {self.limits!r:.60}"
            )
        for name in ("interpreter", "session", "display"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(f"{name} must be true or false, not {getattr(self, name)!r}")
        for name, check in _NUMBERS.items():
            value = getattr(self, name)
            if value is not None or name == "output_characters":  # of the others: no limit
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
        _ = self._template  # what is wrong with it is said now

    @functools.cached_property
    def _template(self) -> PromptTemplate:
        if self.prompt_template is None:
            return PromptTemplate(self.turn_protocol().default_prompt())
        return PromptTemplate.load(self.prompt_template)

    def turn_protocol(self) -> TurnProtocol:
        """What `protocol` names."""
        return PROTOCOLS[self.protocol](self.interpreter, self.session, self.display)

    @property
    def template(self) -> str:
        """The prompt template, as a text with `{query}`."""
        return self._template.template

    def prompt(self, problem: Problem) -> str:
        """The user's message of a problem, before any chat template."""
        return self._template(problem.question)
