"""Traces for a cold start: from a file of messages, or arithmetic that a script solves here.

A line of the file holds a conversation in the form of the paper's data set: `messages` of the user
and of the assistant, with tags in the response. The tags tell which parts the model wrote and which
the environment, and so give the loss mask.

In the paper's cold start (section 2.2) a language model rewrites text-only solutions
(`coldstart.py`). If problems carry an expression, a script can write the traces. Its styles are a
code block that works (with one line, or one line an operation), a block that fails and is then
repaired, and text alone (worked out, or the answer at once). The code runs in the sandbox. A trace
is dropped if the environment does not accept its answer.
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
"""A function that maps the transcript so far to the next turn."""

_RESULT = re.compile(rf"\s*{RESULT_OPEN}.*?{RESULT_CLOSE}\n{{0,2}}", re.DOTALL)


def has_messages(path: Path) -> bool:
    """Whether a JSON-lines file holds conversations, by its first line.

    Raises:
        ValueError: If the first line is not a JSON object.
    """
    return any("messages" in row for _, row in itertools.islice(read_rows(path), 1))


def read_messages(path: Path, tokenizer: Tokenizer) -> list[Transcript]:
    """The traces of a file with one `{"messages": [...]}` a line; their answers count as right.

    As in an episode, each span is encoded alone, so that the model meets the same tokens there.

    Args:
        path: The file of JSON lines.
        tokenizer: The tokenizer of the model to be trained.

    Raises:
        ValueError: If a line is not such a conversation, has a code block without a result or a
            result without a code block, or ends without an answer. The text names file and line.
    """
    traces = []
    for line, row in read_rows(path):
        try:
            traces.append(_trace(line, *conversation(row), tokenizer))
        except ValueError as error:
            raise ValueError(f"{line}: {error}") from error
    return traces


def conversation(row: Mapping[str, Any]) -> tuple[str, str]:
    """The user's prompt and the assistant's response in a row's `messages`.

    Raises:
        ValueError: If `messages` is not one message of the user and then one of the assistant.
    """
    match row.get("messages"):
        case [
            {"role": "user", "content": str(prompt)},
            {"role": "assistant", "content": str(response)},
        ] if prompt.strip():
            return prompt, response
    raise ValueError(
        '"messages" must be one message of the user and one of the assistant: '
        '[{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]'
    )


def authors(response: str) -> list[tuple[Author, str]]:
    r"""The parts of a response with their authors; joined, the texts are the response.

    The environment wrote an `<interpreter>` block behind a code block, with the line breaks around
    it. The model wrote the rest, also `<interpreter>` blocks elsewhere. The last part is always the
    model's.

    Example:
        >>> response = "So <code>print(1)</code>\n<interpreter>\n1\n</interpreter>\n\nOne."
        >>> [author for author, _ in authors(response)]
        ['model', 'env', 'model']
        >>> authors(response)[1][1]
        '\n<interpreter>\n1\n</interpreter>\n\n'
    """
    parts: list[tuple[Author, str]] = []
    while True:
        turn = parse_turn(response)
        result = _RESULT.match(response, turn.end) if turn.kind is TurnKind.CODE else None
        if result is None:
            return [*parts, ("model", response)]
        parts += [("model", response[: turn.end]), ("env", result[0])]
        response = response[result.end() :]


def _trace(id: str, prompt: str, response: str, tokenizer: Tokenizer) -> Transcript:
    parts = authors(response.rstrip())
    last = parts[-1][1]
    turn = parse_turn(last)
    if turn.kind is TurnKind.CODE:
        raise ValueError("a code block must have a result behind it")
    if turn.kind is not TurnKind.ANSWER or not turn.content or turn.end < len(last):
        raise ValueError("the response must end with its answer in <answer>...</answer>")
    for author, text in parts:
        if author == "model" and (RESULT_OPEN in text or RESULT_CLOSE in text):
            raise ValueError(
                f"{RESULT_OPEN} must stand behind a code block, else it would be trained on"
            )
    spans = [Span("prompt", *Tags().prompt(prompt, tokenizer))]
    for author, text in parts:
        ids = encode_result(tokenizer, text)
        spans.append(Span(author, text, ids, (0.0,) * len(ids) if author == "model" else None))
    return Transcript(
        Problem(id=id, question=prompt, answer=turn.content),
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
    """A program of one line, then the answer."""
    return _then_answer(code(f"print({expression})"))


def mended_turns(expression: str, rng: random.Random) -> Turns:
    """A program that fails, then a program that works, then the answer."""
    broken = rng.choice((f"print({expression}", f"prnt({expression})", f"print({expression}) +"))
    return _then_answer(code(broken), code(f"print({expression})"))


def stepwise_turns(expression: str, rng: random.Random) -> Turns:
    """A program with a line for each operation, then the answer."""
    return _then_answer(code(program_steps(expression)))


def mended_stepwise_turns(expression: str, rng: random.Random) -> Turns:
    """A stepwise program with an undefined name or an open bracket, a right one, the answer."""
    program = program_steps(expression)
    lines = program.splitlines()
    broken = [program.removesuffix(")")]
    if len(lines) > 1:
        broken.append("\n".join([*lines[:-2], lines[-1]]))  # without the last step
    return _then_answer(code(rng.choice(broken)), code(program))


def _then_answer(*blocks: str) -> Turns:
    """The blocks in order, until a block ran without an error; then its output as the answer."""

    def turn(text: str) -> str:
        results = re.findall(r"<interpreter>\n(.*?)\n?</interpreter>", text, flags=re.DOTALL)
        if not results or "Error" in results[-1]:
            return blocks[len(results)]
        return answer(results[-1])

    return turn


def worked_turns(expression: str, rng: random.Random) -> Turns:
    """Text with a line for each operation, innermost first, then the answer."""
    lines, result = text_steps(expression)
    return lambda text: "".join(f"{line}\n" for line in lines) + answer(str(result))


def direct_turns(expression: str, rng: random.Random) -> Turns:
    """The answer without steps."""
    return lambda text: answer(str(text_steps(expression)[1]))


STYLES: Mapping[str, Callable[[str, random.Random], Turns]] = {
    "tool": tool_turns,
    "mended": mended_turns,
    "stepwise": stepwise_turns,
    "mended_stepwise": mended_stepwise_turns,
    "worked": worked_turns,
    "direct": direct_turns,
}
"""The styles by their names: each maps an expression to the turns of a trace."""
WITH_CODE = {"tool", "mended", "stepwise", "mended_stepwise"}
"""The styles that need an interpreter."""


def text_steps(expression: str) -> tuple[list[str], int]:
    """The operations of an integer expression, innermost first, and its value.

    Raises:
        ValueError: If the expression holds anything but integers, `+`, `-`, `*` and brackets.
    """
    apply = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    lines: list[str] = []

    def work_out(left: int, symbol: str, right: int) -> int:
        result = apply[symbol](left, right)
        lines.append(f"{left} {symbol} {right} = {result}")
        return result

    return lines, _fold(expression, int, int.__neg__, work_out)


def program_steps(expression: str) -> str:
    """A program that assigns the result of each operation to a letter and prints the last.

    Raises:
        ValueError: As `text_steps`; or if there are more operations than letters.
    """
    lines: list[str] = []

    def assign(left: str, symbol: str, right: str) -> str:
        if len(lines) == len(string.ascii_lowercase):
            raise ValueError(f"the expression has more operations than letters: {expression}")
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
    """Combine the parts of an integer expression, innermost first."""
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
    """Check the problems and the mix of `make_traces`.

    Args:
        problems: The problems to solve.
        mix: The share of each style.
        rules: The rules of the episodes.

    Returns:
        The shares of the styles that the rules allow.

    Raises:
        ValueError: If a style is unknown, a share is not a number of at least 0, no style is left,
            or a problem lacks an expression.
    """
    if unknown := sorted(map(str, set(mix) - set(STYLES))):
        raise ValueError(f"unknown style {unknown}: take some of {', '.join(STYLES)}")
    for style, share in mix.items():
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not (number and 0 <= share < float("inf")):
            raise ValueError(f"the share of {style} must be a number of at least 0, not {share!r}")
    usable = {s: share for s, share in mix.items() if rules.interpreter or s not in WITH_CODE}
    if not sum(usable.values()):
        raise ValueError(
            f"without an interpreter no style of {sorted(mix)} is left: add one of "
            f"{sorted(set(STYLES) - WITH_CODE)}"
        )
    for problem in problems:
        if "expression" not in problem.metadata:
            raise ValueError(f"{problem.id} can't be solved by a script: it lacks an expression")
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
    """Make a trace of each problem; traces with a wrong answer are left out.

    Args:
        problems: Problems that carry an `expression`.
        mix: The relative share of each style (see `STYLES`). Styles `WITH_CODE` are left out if the
            rules give no interpreter.
        rules: The rules of the episodes; `max_tokens` must be set.
        tokenizer: The tokenizer of the model to be trained.
        sandbox: The sandbox for programs; `None`: there is no interpreter.
        seed: Seed of the choice of styles and errors.
        on_trace: Called when a trace is done; `None`: nothing is called.

    Returns:
        The right traces, in the problems' order.

    Raises:
        ValueError: If the mix or a problem can't be used; see `check_mix`.
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
