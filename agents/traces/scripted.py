"""Traces for a cold start: from a file of messages, or arithmetic that a script solves here.

A file holds a conversation a line, in the shape of the paper's own set (`messages`: what the user says, and a response with
its tags as they are). Who wrote what of a response follows from its tags, and so does the loss mask.

The paper's cold start (section 2.2) has a language model rewrite text-only solutions (`coldstart.py`); where problems carry
their own expression, a script can. Its styles: with a block that works, of one line or of a line an operation, with one that
fails and is then mended, and in text alone, worked out or answered at once. Its code is executed in the sandbox, and a trace
whose answer the environment does not accept is dropped.
"""

from __future__ import annotations

import ast
import asyncio
import itertools
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retool_env.episode import Tokenizer, encode_result
from retool_env.execution import Sandbox
from retool_env.problem import Problem
from retool_env.problems.rows import read_rows
from retool_env.protocol.tags import RESULT_CLOSE, RESULT_OPEN, Tags, parse_turn
from retool_env.protocol.turn import TurnKind
from retool_env.rollout import RolloutEngine, ScriptedPolicy
from retool_env.rules import Rules
from retool_env.transcript import Author, Span, StopReason, Transcript

Turns = Callable[[str], str]
"""From the transcript so far to the next turn."""

_RESULT = re.compile(rf"\s*{RESULT_OPEN}.*?{RESULT_CLOSE}\n{{0,2}}", re.DOTALL)


def has_messages(path: Path) -> bool:
    """Whether a JSON-lines file holds conversations, by its first line.

    Raises:
        ValueError: If that is no JSON object.
    """
    return any("messages" in row for _, row in itertools.islice(read_rows(path), 1))


def read_messages(path: Path, tokenizer: Tokenizer) -> list[Transcript]:
    """The traces of a file with one `{"messages": [...]}` a line; their answers count as right.

    Each span is encoded on its own, as in an episode, so that the tokens are those which the model meets there.

    Raises:
        ValueError: Naming the file and the line that is no such conversation, has a code block without a result or a result
            without one, or ends without an answer.
    """
    traces = []
    for place, row in read_rows(path):
        try:
            traces.append(_trace(place, *conversation(row), tokenizer))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    return traces


def conversation(row: Mapping[str, Any]) -> tuple[str, str]:
    """What the user and the assistant say in a row's `messages`.

    Raises:
        ValueError: If it holds anything but one message of each, in this order.
    """
    match row.get("messages"):
        case [
            {"role": "user", "content": str(prompt)},
            {"role": "assistant", "content": str(response)},
        ] if prompt.strip():
            return prompt, response
    raise ValueError(
        '"messages" must be one message of the user and one of the assistant: [{"role": "user", "content": ...}, '
        '{"role": "assistant", "content": ...}]'
    )


def authors(response: str) -> list[tuple[Author, str]]:
    r"""Who wrote what of a response, in order; joined, it is the response.

    The environment wrote the `<interpreter>` block behind a code block, with the line breaks around it; what stands in such
    tags elsewhere is the model's. The last part is always the model's.

    Example:
        >>> authors("So <code>print(1)</code>\n<interpreter>\n1\n</interpreter>\n\nOne.")
        [('model', 'So <code>print(1)</code>'), ('env', '\n<interpreter>\n1\n</interpreter>\n\n'), ('model', 'One.')]
    """
    parts: list[tuple[Author, str]] = []
    while True:
        turn = parse_turn(response)
        result = _RESULT.match(response, turn.end) if turn.kind is TurnKind.CODE else None
        if result is None:
            return [*parts, ("model", response)]
        parts += [("model", response[: turn.end]), ("env", result[0])]
        response = response[result.end() :]


def _trace(place: str, prompt: str, response: str, tokenizer: Tokenizer) -> Transcript:
    parts = authors(response.rstrip())
    last = parts[-1][1]
    turn = parse_turn(last)
    if turn.kind is TurnKind.CODE:
        raise ValueError("a code block has no result behind it")
    if turn.kind is not TurnKind.ANSWER or not turn.content or turn.end < len(last):
        raise ValueError("the response does not end with its answer in <answer>...</answer>")
    for author, text in parts:
        if author == "model" and (RESULT_OPEN in text or RESULT_CLOSE in text):
            raise ValueError(
                f"{RESULT_OPEN} stands elsewhere than behind a code block, so it would be trained on"
            )
    spans = [Span("prompt", *Tags().prompt(prompt, tokenizer))]
    for author, text in parts:
        ids = encode_result(tokenizer, text)
        spans.append(Span(author, text, ids, (0.0,) * len(ids) if author == "model" else None))
    return Transcript(
        Problem(id=place, question=prompt, answer=turn.content),
        tuple(spans),
        stop_reason=StopReason.ANSWERED,
        answer=turn.content,
        correct=True,
        reward=1.0,
    )


def code(program: str) -> str:
    """A turn that runs a program."""
    return f"<code>\n```python\n{program}\n```\n</code>"


def answer(result: str) -> str:
    """A turn that gives an answer."""
    return f"<answer>\n\\boxed{{{result}}}\n</answer>"


def tool_turns(expression: str, rng: random.Random) -> Turns:
    """Compute it, then answer what came out."""
    return _then_answer(code(f"print({expression})"))


def mended_turns(expression: str, rng: random.Random) -> Turns:
    """A block that fails, then one that works, then the answer."""
    broken = rng.choice((f"print({expression}", f"prnt({expression})", f"print({expression}) +"))
    return _then_answer(code(broken), code(f"print({expression})"))


def stepwise_turns(expression: str, rng: random.Random) -> Turns:
    """A program of a line an operation, then the answer."""
    return _then_answer(code(program_steps(expression)))


def mended_stepwise_turns(expression: str, rng: random.Random) -> Turns:
    """Such a program with a name that stands for nothing, or a bracket left open; then one that works, then the answer."""
    program = program_steps(expression)
    lines = program.splitlines()
    broken = [program.removesuffix(")")]
    if len(lines) > 1:
        broken.append("\n".join([*lines[:-2], lines[-1]]))  # forgot the last step
    return _then_answer(code(rng.choice(broken)), code(program))


def _then_answer(*blocks: str) -> Turns:
    """These blocks, until one printed what is no error; then that."""

    def turn(text: str) -> str:
        results = re.findall(r"<interpreter>\n(.*?)\n?</interpreter>", text, flags=re.DOTALL)
        if not results or "Error" in results[-1]:
            return blocks[len(results)]
        return answer(results[-1])

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
    "stepwise": stepwise_turns,
    "mended_stepwise": mended_stepwise_turns,
    "worked": worked_turns,
    "direct": direct_turns,
}
WITH_CODE = {"tool", "mended", "stepwise", "mended_stepwise"}
"""The styles that need an interpreter."""


def text_steps(expression: str) -> tuple[list[str], int]:
    """The operations of an integer expression, innermost first, and its value.

    Raises:
        ValueError: If it holds anything but integers, `+`, `-`, `*` and brackets.
    """
    apply = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    lines: list[str] = []

    def work_out(left: int, symbol: str, right: int) -> int:
        result = apply[symbol](left, right)
        lines.append(f"{left} {symbol} {right} = {result}")
        return result

    return lines, _fold(expression, int, int.__neg__, work_out)


def program_steps(expression: str) -> str:
    """A program of the same operations: a name for what each gives, and the last one printed.

    Raises:
        ValueError: As `text_steps`; and if there are more operations than letters.
    """
    lines: list[str] = []

    def assign(left: str, symbol: str, right: str) -> str:
        if len(lines) == len(string.ascii_lowercase):
            raise ValueError(f"too long for a letter an operation: {expression}")
        name = string.ascii_lowercase[len(lines)]
        lines.append(f"{name} = {left} {symbol} {right}")
        return name

    lines.append(f"print({_fold(expression, str, '-{}'.format, assign)})")
    return "\n".join(lines)


def _fold[T](
    expression: str,
    number: Callable[[int], T],
    negated: Callable[[T], T],
    combine: Callable[[T, str, T], T],
) -> T:
    """What comes of an integer expression, innermost first."""
    symbols = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}

    def value(node: ast.expr) -> T:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return number(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return negated(value(node.operand))
        if isinstance(node, ast.BinOp) and type(node.op) in symbols:
            return combine(value(node.left), symbols[type(node.op)], value(node.right))
        raise ValueError(f"not an integer expression: {expression}")

    return value(ast.parse(expression, mode="eval").body)


def check_mix(
    problems: Sequence[Problem], mix: Mapping[str, float], rules: Rules
) -> dict[str, float]:
    """Check what `make_traces` is asked for.

    Returns:
        The shares of the styles that the rules leave.

    Raises:
        ValueError: If a style is unknown, a share is no number or negative, none is left, or a problem has no expression.
    """
    unknown = sorted(map(str, set(mix) - set(STYLES)))
    if unknown:
        raise ValueError(f"unknown style {unknown}; there are {', '.join(STYLES)}")
    for style, share in mix.items():
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not (number and 0 <= share < float("inf")):
            raise ValueError(f"the share of {style} must be a number of at least 0, not {share!r}")
    usable = {s: share for s, share in mix.items() if rules.interpreter or s not in WITH_CODE}
    if not sum(usable.values()):
        raise ValueError(f"without an interpreter, of {sorted(mix)} no style is left")
    for problem in problems:
        if "expression" not in problem.metadata:
            raise ValueError(f"{problem.id} has no expression, so no script can solve it")
    return usable


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
        ValueError: See `check_mix`.
    """
    usable = check_mix(problems, mix, rules)

    async def trace(index: int, slots: asyncio.Semaphore) -> Transcript:
        problem = problems[index]
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
