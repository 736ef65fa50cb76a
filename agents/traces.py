"""Traces for a cold start: arithmetic solved by a script, its code executed in the sandbox and its answers checked.

The paper's cold start (section 2.1) has a language model rewrite text-only solutions; here the problems carry their own
expression, so a script can. Four styles: with a block that works, with one that fails and is then mended, and in text
alone, worked out or answered at once. A trace whose answer the environment does not accept is dropped.
"""

from __future__ import annotations

import ast
import asyncio
import random
import re
from collections.abc import Callable, Mapping, Sequence

from retool_env.episode import Rules, Tokenizer
from retool_env.problems import Problem
from retool_env.rollout import RolloutEngine, ScriptedPolicy
from retool_env.sandbox import Sandbox
from retool_env.transcript import Transcript

Turns = Callable[[str], str]
"""From the transcript so far to the next turn."""


def code(program: str) -> str:
    """A turn that runs a program."""
    return f"<code>\n```python\n{program}\n```\n</code>"


def answer(result: str) -> str:
    """A turn that gives an answer."""
    return f"<answer>\n\\boxed{{{result}}}\n</answer>"


def tool_turns(expression: str, rng: random.Random) -> Turns:
    """Compute it, then answer what came out."""

    def turn(text: str) -> str:
        printed = _last_result(text)
        return code(f"print({expression})") if printed is None else answer(printed)

    return turn


def mended_turns(expression: str, rng: random.Random) -> Turns:
    """A block that fails, then one that works, then the answer."""
    broken = rng.choice((f"print({expression}", f"prnt({expression})", f"print({expression}) +"))

    def turn(text: str) -> str:
        printed = _last_result(text)
        if printed is None:
            return code(broken)
        return code(f"print({expression})") if "Error" in printed else answer(printed)

    return turn


def worked_turns(expression: str, rng: random.Random) -> Turns:
    """In text: one line an operation, innermost first, then the answer."""
    lines, result = text_steps(expression)
    return lambda text: "".join(f"{line}\n" for line in lines) + answer(str(result))


def direct_turns(expression: str, rng: random.Random) -> Turns:
    """In text: the answer alone."""
    return lambda text: answer(str(text_steps(expression)[1]))


STYLES: Mapping[str, Callable[[str, random.Random], Turns]] = {
    "tool": tool_turns,
    "mended": mended_turns,
    "worked": worked_turns,
    "direct": direct_turns,
}
WITH_CODE = {"tool", "mended"}
"""The styles that need an interpreter."""


def text_steps(expression: str) -> tuple[list[str], int]:
    """The operations of an integer expression, innermost first, and its value.

    Raises:
        ValueError: If it holds anything but integers, `+`, `-`, `*` and brackets.
    """
    operators = {
        ast.Add: ("+", int.__add__),
        ast.Sub: ("-", int.__sub__),
        ast.Mult: ("*", int.__mul__),
    }
    lines: list[str] = []

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in operators:
            symbol, apply = operators[type(node.op)]
            left, right = value(node.left), value(node.right)
            lines.append(f"{left} {symbol} {right} = {apply(left, right)}")
            return apply(left, right)
        raise ValueError(f"not an integer expression: {expression}")

    return lines, value(ast.parse(expression, mode="eval").body)


def make_traces(
    problems: Sequence[Problem],
    mix: Mapping[str, float],
    rules: Rules,
    tokenizer: Tokenizer,
    sandbox: Sandbox | None,
    seed: int,
    on_trace: Callable[[], None] | None = None,
) -> list[Transcript]:
    """Traces of problems that carry an `expression`, one each, in order, without those that went wrong.

    Args:
        problems: What is solved.
        mix: The share of each style (see `STYLES`); shares are relative. Those `WITH_CODE` are left out where the rules
            give no interpreter.
        rules: Of the episodes; `max_tokens` must be set.
        tokenizer: Of the model to be trained.
        sandbox: Where programs run.
        seed: Of the choice of styles and errors.
        on_trace: Called as each is done.

    Raises:
        ValueError: If a style is unknown, none is left, or a problem has no expression.
    """
    unknown = set(mix) - set(STYLES)
    if unknown:
        raise ValueError(f"unknown style {sorted(unknown)}; there are {', '.join(STYLES)}")
    usable = {s: share for s, share in mix.items() if rules.interpreter or s not in WITH_CODE}
    if not sum(usable.values()):
        raise ValueError(f"without an interpreter, of {sorted(mix)} no style is left")

    async def trace(index: int, slots: asyncio.Semaphore) -> Transcript:
        problem = problems[index]
        if "expression" not in problem.metadata:
            raise ValueError(f"{problem.id} has no expression, so no script can solve it")
        rng = random.Random(f"{seed}/{index}")
        style = rng.choices(list(usable), list(usable.values()))[0]
        turns = STYLES[style](str(problem.metadata["expression"]), rng)
        async with slots:
            engine = RolloutEngine(ScriptedPolicy(turns, tokenizer), rules, sandbox)
            transcript = await engine.episode(problem, (seed, index))
        if on_trace is not None:
            on_trace()
        return transcript

    async def all_traces() -> list[Transcript]:
        slots = asyncio.Semaphore(64)
        return await asyncio.gather(*(trace(index, slots) for index in range(len(problems))))

    return [transcript for transcript in asyncio.run(all_traces()) if transcript.correct]


def _last_result(text: str) -> str | None:
    results = re.findall(r"<interpreter>\n(.*?)\n?</interpreter>", text, flags=re.DOTALL)
    return results[-1] if results else None
