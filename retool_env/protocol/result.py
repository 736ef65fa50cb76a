"""What is shown of a program's result."""

from __future__ import annotations

from typing import Literal

from retool_env.execution import Execution, Outcome

Cut = Literal["head", "tail", "middle"]


Errors = Literal["traceback", "last_line"]


def is_empty_program(program: str) -> bool:
    """Whether there is nothing to run: blank lines and comments alone."""
    return all(not line.strip() or line.lstrip().startswith("#") for line in program.splitlines())


def cut_text(text: str, limit: int, where: Cut = "middle") -> str:
    """Keep `limit` characters of `text` and say how many were cut, and where.

    Args:
        text: What is to be shown.
        limit: Number of characters (Unicode code points) to keep. The notice about the cut is not counted.
        where: What is *lost*: the `"head"`, the `"tail"`, or the `"middle"` (the first half of `limit` and the
            last are kept, as in the paper's evaluation: 200 and 200).
    """
    if len(text) <= limit:
        return text
    notice = f"[... {len(text) - limit} characters cut ...]"
    if where == "head":
        return f"{notice}\n{text[len(text) - limit :]}"
    if where == "tail":
        return f"{text[:limit]}\n{notice}"
    head = limit - limit // 2
    return f"{text[:head]}\n{notice}\n{text[len(text) - limit // 2 :]}"


def render_output(
    execution: Execution, limit: int, where: Cut = "middle", errors: Errors = "traceback"
) -> str:
    """What is shown of a program's result: nothing, or lines.

    What the program printed comes first. If it failed, the error follows. Where not all of it fits, the error's last line
    is what is kept; of the room that it leaves, the output and the traceback have half each, and what one of them does
    not need goes to the other. A traceback loses whole lines, the outermost first.

    Args:
        execution: The result.
        limit: Characters to keep. The notices about what was cut are not counted.
        where: What is lost of a longer output (see `cut_text`).
        errors: An error's `"traceback"`, or its `"last_line"` alone, as in the paper's evaluation. What has no traceback
            (a time-out, say) is one line in either.

    Raises:
        ValueError: For an infrastructure failure, which is never shown to a model.
    """
    if execution.outcome is Outcome.INFRASTRUCTURE:
        raise ValueError("an infrastructure failure is not the program's result")
    # No tokenizer takes a lone surrogate, which another machine's sandbox may have let through.
    stdout, error, trace = (
        text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
        for text in (execution.stdout, execution.error, execution.traceback)
    )
    # The last line is taken from `error`, which may say more than the program knew: that its session has ended.
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
"""The result of a code block with nothing in it: a failed call. It is not sent to the sandbox."""
