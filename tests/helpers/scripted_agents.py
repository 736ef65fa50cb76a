"""Agents whose figures under faults are known: they call, retry, check and give up by chance.

An agent reads its whole state from the text of the transcript, and draws each decision from the
seed of the turn. So a forked episode goes on like any other, and equal seeds give equal turns.

One turn of an agent, by the last result that it saw:

| last result                    | turn                                                            |
|--------------------------------|-----------------------------------------------------------------|
| no result yet                  | with `p_call` the program of the first step, else alone         |
| no integer, program of a step  | with `p_retry` that program, with `p_give_up` the end, or alone |
| an integer, program of a step  | with `p_check` a check of it, else on                           |
| a check, with another integer  | a third program, whose integer is taken, then on                |
| a check, with the same or none | on                                                              |

*On* means the program of the next step, which uses the values as they were shown, or the answer:
with `p_right` the last value, else a wrong answer. An answer *alone* is right with `p_alone`. The
result is the last line that is an integer, so notices and errors around it do not matter. `p_slip`
is the chance that a program of a step holds a mistake.

The values of the figures follow from these rules. `s` counts the steps for which a value is still
missing, `n` the calls that are left, `rho` is the fault rate. A step has no result with
`x = 1 - (1 - rho) (1 - p_slip)`; the fall-back has `b = 1 - p_retry - p_give_up`:

    A(s, n) = (1 - x) G(s - 1, n - 1) + x F(s, n - 1),  A(s, 0) = 0    a program is needed
    F(s, n) = p_retry A(s, n) + b p_alone                              it had no result
    G(s, n) = (1 - p_check) N(s, n) + p_check N(s, n - 1)              it had a result
    N(s, n) = A(s, n), N(0, n) = p_right, N(s, -1) = 0                 on
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from retool_env.episode import Generation
from retool_env.problem import Problem
from retool_env.problems.staged import read_stages
from retool_env.rollout import ScriptedPolicy, TextGeneration, TextPolicy

GAVE_UP = "I can't solve this."
"""The last turn of an agent that gives up. It is void, which ends the episode by default."""
WRONG = 1_000_003
"""The difference between a wrong answer and the value that the agent holds."""
_CALL = re.compile(
    r"<code>\n# (compute|check|decide) (\w+)\n.*?</code>\s*<interpreter>\n(.*?)</interpreter>",
    re.DOTALL,
)
_INTEGER = re.compile(r"-?[0-9]+")
_FORMS = {
    "compute": "print({})",
    "check": "results = [{}]\nprint(results[-1])",
    "decide": "print(max([{}]))",
}
"""Three programs that compute the same value and differ in their text."""


@dataclass(frozen=True)
class Agent:
    """The chances of an agent's decisions."""

    p_right: float = 1.0
    p_alone: float = 0.0
    p_call: float = 1.0
    p_check: float = 0.0
    p_retry: float = 0.0
    p_give_up: float = 0.0
    p_slip: float = 0.0

    def turn(self, problem: Problem, text: str, seed: int, offered: bool = True) -> str:
        """The next turn, after a transcript's text."""
        chance = random.Random(seed)
        steps = _steps(problem)
        history = _CALL.findall(text.rpartition(problem.question)[2])
        values, kind, state = _state(history)
        first = chance.random()
        if state == "begin" and not (offered and first < self.p_call):
            return self._alone(problem, chance)
        if state == "failed":
            if self.p_retry <= first < self.p_retry + self.p_give_up:
                return GAVE_UP
            if first >= self.p_retry:
                return self._alone(problem, chance)
        if state == "differs":
            return _program("decide", *_at(steps, history), values)
        if state == "fresh" and kind == "compute" and first < self.p_check:
            return _program("check", *_at(steps, history), values)
        missing = [step for step in steps if step[0] not in values]
        if missing:
            return _program("compute", *missing[0], values, chance.random() < self.p_slip)
        value = values[steps[-1][0]]
        return _answer(value if chance.random() < self.p_right else value + WRONG)

    def _alone(self, problem: Problem, chance: random.Random) -> str:
        right = int(problem.answer)
        return _answer(right if chance.random() < self.p_alone else right + WRONG)

    # --- the values of the figures, by the module's formulas -------------------------------------

    @property
    def _fall_back(self) -> float:
        return (1 - self.p_retry - self.p_give_up) * self.p_alone

    def accuracy(self, steps: int, calls: int, rate: float = 0.0) -> float:
        """A of the formulas: the accuracy where a program is needed, at a rate of explicit faults.

        With `p_call` = 1 it is the accuracy of whole episodes: the dose curve.
        """
        if calls < 1:
            return 0.0
        fails = 1 - (1 - rate) * (1 - self.p_slip)
        well = self.control(steps - 1, calls - 1, rate)
        return (1 - fails) * well + fails * self.after_error(steps, calls - 1, rate)

    def control(self, steps: int, calls: int, rate: float = 0.0) -> float:
        """G: the accuracy after a true result of a step's program, the control arm of a fork."""
        checked = self._on(steps, calls - 1, rate)
        return (1 - self.p_check) * self._on(steps, calls, rate) + self.p_check * checked

    def after_error(self, steps: int, calls: int, rate: float = 0.0) -> float:
        """F: the accuracy after a transient explicit fault, or an empty output."""
        return self.p_retry * self.accuracy(steps, calls, rate) + self._fall_back

    def after_persistent_error(self, calls: int) -> float:
        """The accuracy after an explicit fault of this and all later calls.

        P(n) = b p_alone + p_retry P(n - 1) and P(-1) = 0: after each retry comes the same choice.
        """
        return self._fall_back * sum(self.p_retry**retries for retries in range(calls + 1))

    def after_false_value(self, steps: int, calls: int) -> float:
        """The accuracy after a wrong value of a step's program: p_check N(s, n - 2).

        Only a check finds the true value, by two further calls. Holds where the implied answer is
        not the right one. At a check, two true values stand against the false value: N(s, n - 1).
        """
        return self.p_check * self._on(steps, calls - 2)

    def contagion(self, steps: int, calls: int) -> float:
        """The share of forks with a wrong value that end with the implied answer.

        It is (1 - p_check) N(s, n) with p_alone = 0: later steps are computed from the false value,
        and their checks agree. A control fork never gives the implied answer.
        """
        return (1 - self.p_check) * dataclasses.replace(self, p_alone=0.0)._on(steps, calls)

    def tool_gain(self, steps: int, calls: int) -> float:
        """Accuracy with the tool minus accuracy in text: p_call (A(s, n) - p_alone)."""
        return self.p_call * (self.accuracy(steps, calls) - self.p_alone)

    def price_of_the_offer(self, calls: int) -> float:
        """Accuracy in text minus accuracy with a tool that is gone.

        It is p_call (p_alone - P(n - 1)): whoever calls goes on from a persistent error.
        """
        return self.p_call * (self.p_alone - self.after_persistent_error(calls - 1))

    def _on(self, steps: int, calls: int, rate: float = 0.0) -> float:
        if calls < 0:
            return 0.0
        return self.accuracy(steps, calls, rate) if steps else self.p_right


class TextAgent(TextPolicy):
    """An agent as a policy of text."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    async def write(self, transcript, stop, seed) -> TextGeneration:
        text = self.agent.turn(transcript.problem, transcript.text, seed, "</code>" in stop)
        return TextGeneration(text, "eos" if text == GAVE_UP else "tag")


class TokenAgent(ScriptedPolicy):
    """An agent as a policy of token ids. It finds its problem by the question in the prompt."""

    def __init__(self, agent: Agent, problems: Sequence[Problem], tokenizer) -> None:
        super().__init__(lambda text: self._turn(text), tokenizer)
        self.agent = agent
        self._problems = problems
        self._now = (0, True)

    async def act(self, token_ids, stop, budget, seed) -> Generation:
        self._now = seed, "</code>" in stop
        return await super().act(token_ids, stop, budget, seed)  # never suspends before it is done

    def _turn(self, text: str) -> str:
        problem = next(problem for problem in self._problems if problem.question in text)
        return self.agent.turn(problem, text, *self._now)


@functools.cache
def _steps(problem: Problem) -> list[tuple[str, str]]:
    """The steps of a problem: name and expression."""
    if stages := read_stages(problem):
        return [(stage.name, stage.expression) for stage in stages]
    return [("x", str(problem.metadata.get("expression", problem.answer)))]


def steps_of(problem: Problem) -> int:
    """The number of programs that an agent needs for a problem."""
    return len(_steps(problem))


def _at(steps, history) -> tuple[str, str]:
    """The step of the last call."""
    name = history[-1][1]
    return name, dict(steps)[name]


def _state(history) -> tuple[dict[str, int], str, str]:
    """The values so far, the kind of the last call, and what its result means."""
    values: dict[str, int] = {}
    kind, state = "", "begin"
    for kind, name, output in history:
        lines = [line for line in output.splitlines() if _INTEGER.fullmatch(line.strip())]
        number = int(lines[-1]) if lines else None
        if number is None:
            state = "failed" if kind == "compute" else "kept"
        elif kind == "check":
            state = "kept" if number == values.get(name, number) else "differs"
        else:
            values[name] = number
            state = "fresh"
    return values, kind, state


def _program(kind: str, name: str, expression: str, values, slip: bool = False) -> str:
    """A turn that runs a program for a step. A mistake is a name that does not exist."""
    lines = [f"# {kind} {name}"]
    for module, functions in (("math", ("gcd", "lcm")), ("sympy", ("divisor_count", "factorint"))):
        if used := [function for function in functions if f"{function}(" in expression]:
            lines.append(f"from {module} import {', '.join(used)}")
    lines += [f"{other} = {value}" for other, value in values.items() if other < name]
    lines.append(_FORMS[kind].format(f"{expression} + missing" if slip else expression))
    return "<code>\n{}\n</code>".format("\n".join(lines))


def _answer(value: int) -> str:
    return f"<answer>{value}</answer>"
