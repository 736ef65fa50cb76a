"""The text that shows a program's result."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from retool_env.execution import Execution, Outcome

Cut = Literal["head", "tail", "middle"]
"""The part of a long output that is cut out."""

Errors = Literal["traceback", "last_line"]
"""How much of an error is shown: the traceback, or its last line."""


_NOTICE = re.compile(r"\[\.\.\. [0-9]+ characters cut \.\.\.\]")


def is_empty_program(program: str) -> bool:
    """Whether a program holds only blank lines and comments."""
    return all(not line.strip() or line.lstrip().startswith("#") for line in program.splitlines())


def cut_text(text: str, limit: int, where: Cut = "middle") -> str:
    """Keep `limit` characters of a text, with a notice of how many were cut out.

    Args:
        text: The text to shorten.
        limit: Number of characters (Unicode code points) to keep, the notice not counted.
        where: The part that is cut out: the `"head"`, the `"tail"`, or the `"middle"`. With
            `"middle"`, the first and the last half of `limit` stay, as in the paper's
            evaluation (200 and 200).
    """
    first, last = hidden_part(len(text), limit, where)
    if first == last:
        return text
    notice = f"[... {last - first} characters cut ...]"
    before = "" if where == "head" else f"{text[:first]}\n"
    after = "" if where == "tail" else f"\n{text[last:]}"
    return f"{before}{notice}{after}"


def without_notice(text: str) -> str:
    """A text without the notices of `cut_text`, whose numbers are not part of the output."""
    return _NOTICE.sub("", text)


def hidden_part(length: int, limit: int, where: Cut = "middle") -> tuple[int, int]:
    """The first character of a text that `cut_text` cuts out, and the first one after them.

    Args:
        length: Number of characters of the text.
        limit: Number of characters to keep.
        where: The part that is cut out.

    Returns:
        The two positions; both are 0 if nothing is cut out.
    """
    if length <= limit:
        return 0, 0
    first = {"head": 0, "tail": limit, "middle": limit - limit // 2}[where]
    return first, first + length - limit


def cut_output(execution: Execution, limit: int, where: Cut = "middle") -> Execution:
    """The result as it is recorded: its output is cut as the model sees it.

    Args:
        execution: The result.
        limit: Number of characters of the output to keep.
        where: The part that is cut out (see `cut_text`).
    """
    stdout = cut_text(execution.stdout, limit, where)
    unchanged = stdout == execution.stdout
    return execution if unchanged else dataclasses.replace(execution, stdout=stdout)


def calls_notice(remaining: int) -> str:
    """The notice of how many programs the episode may still run.

    Args:
        remaining: The number of programs.

    Example:
        >>> calls_notice(3)
        '[3 executions remain.]'
    """
    return (
        f"[{remaining} execution remains.]"
        if remaining == 1
        else f"[{remaining} executions remain.]"
    )


def render_output(
    execution: Execution, limit: int, where: Cut = "middle", errors: Errors = "traceback"
) -> str:
    """Render a program's result: empty, or lines that each end in a line break.

    The printed output comes first, then the error of a failed program. If they exceed the limit,
    the last line of the error is kept first. Output and traceback then get half of the remaining
    room each, and room that one of the two does not need goes to the other. A traceback loses
    whole lines, the outermost frames first.

    Args:
        execution: The result.
        limit: Number of characters to keep, the notices about cuts not counted.
        where: The part of a longer output that is cut out (see `cut_text`).
        errors: Whether an error shows its `"traceback"`, or only its `"last_line"` as in the
            paper's evaluation. An error without a traceback (a time-out, for example) is one line.

    Raises:
        ValueError: For an infrastructure failure, which the model must never see.
    """
    if execution.outcome is Outcome.INFRASTRUCTURE:
        raise ValueError(
            "an infrastructure failure is not a program's result: don't show it to the model"
        )
    # A remote sandbox may let a lone surrogate through, and no tokenizer accepts it.
    stdout, error, trace = (
        text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
        for text in (execution.stdout, execution.error, execution.traceback)
    )
    # The last line comes from `error`, which may add a fact that the program did not know: that
    # its session has ended.
    frames = trace.rpartition("\n")[0] if errors == "traceback" else ""
    room = max(limit - len(error), 0)
    kept = _last_lines(frames, max(room - len(stdout), room // 2))
    parts = (
        cut_text(stdout, room - len(kept), where),
        cut_text(frames, len(kept), "head"),
        cut_text(error, limit, "tail"),
    )
    return "".join(part if part.endswith("\n") else part + "\n" for part in parts if part)


def _last_lines(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return text[len(text) - limit - 1 :].partition("\n")[2]


EMPTY_PROGRAM = Execution(Outcome.SYNTAX_ERROR, "", "SyntaxError: the code block holds no program")
"""The result of an empty code block: a failed call that is not sent to the sandbox."""
