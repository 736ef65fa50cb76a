r"""How a program is read from what a model wrote.

`read_program` does it for tags, Hermes' calls and native calls alike.
**A program that compiles as it stands is never changed**; only blank lines around it are dropped.
Otherwise the rules of this table apply in its order, and the first that gives a program which
compiles decides. The form says which it was:

| what was written                     | what is run                        | form             |
|--------------------------------------|------------------------------------|------------------|
| a program that compiles              | it                                 | `plain`          |
| one with a BOM or zero-width marks   | it without them                    | `mended:marks`   |
| fences of `python`, `py` or no tag   | what they hold, joined in order    | `fenced`         |
| such fences, of which none is closed | what follows the first, to the end | `fenced`         |
| `>>> ` and `... ` lines, and output  | these lines, without the prompts   | `mended:prompts` |
| an indented program                  | it without its lines' indentation  | `mended:dedent`  |
| anything else                        | it, as written: its error is shown | `plain`          |
| a call that holds no program         | nothing: the call fails            | `unread`         |

`read_program` itself never finds `unread`: a protocol gives it. The later rules remove marks too,
but only where that makes the program compile. Typographic quotes, NBSP and × are no marks, and stay
errors.

*Fences.* Three or more backticks or tildes open a fence, indented or not, behind prose in their
line or not. It is closed in the same line, or by a line of the same mark that is at least as long:
a "```" inside a line of the program does not close it. A fence with another tag (`output`) is left
out; so is one amid the text of a line, if others are not. Where all from the first fence to the
last mark of the text is a program, the marks between stand in its strings, and it is taken whole. A
mark with nothing behind it closes what stands ahead of it. If what stands in the fences does not
compile, each of them that does not loses its prompts or its indentation. If nothing of this
compiles, what the fences hold is run all the same: its error tells the model more than an error
about a fence.

*What compiles* is decided by the Python of this process. A text that is nested deeper than Python
parses, or needs more memory than there is, does not. A text of more than `MOST_CHARACTERS` is not
compiled; it counts as a program, unless it begins with a fence of backticks.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

Form = Literal["plain", "fenced", "mended:marks", "mended:prompts", "mended:dedent", "unread"]
"""How the program of a call was read; see the module's table."""

FORMS: tuple[Form, ...] = get_args(Form)

MOST_CHARACTERS = 100_000
"""The longest text that is compiled, which takes some tenths of a second: as long as an episode may
be by default."""


class Program(NamedTuple):
    """A program, as it was read."""

    text: str
    """What is to be run."""
    form: Form
    """How it was found in what was written."""


def read_program(written: str) -> Program:
    r"""Read the program of a code block or a call. Never raises; see the module's table.

    Args:
        written: All that stands in the block, or the call's argument.

    Example:
        >>> read_program("Let me see:\n```python\nprint(1)\n```")
        Program(text='print(1)', form='fenced')
        >>> read_program(">>> print(1)\n1")
        Program(text='print(1)', form='mended:prompts')
    """
    return (_read_again if len(written) <= MOST_CHARACTERS else _read)(written)


def _read(written: str) -> Program:
    text = _without_blank_lines(written)
    if compiles(text):
        return Program(text, "plain")
    unmarked = _without_blank_lines(_MARKS.sub("", text))
    if unmarked != text and compiles(unmarked):
        return Program(unmarked, "mended:marks")
    # A joiner in a string is part of a program, where the program does not need to lose it.
    sources = (text, unmarked) if unmarked != text else (text,)
    fenced = [found for each in sources if (found := _fenced(each)) is not None]
    if fenced:
        best = fenced[0] if len(fenced) == 1 or compiles(fenced[0]) else fenced[-1]
        return Program(best, "fenced")
    mended = (better for each in sources if (better := _mended(each)) is not None)
    return next(mended, Program(text, "plain"))


_read_again = lru_cache(maxsize=256)(_read)  # what a turn holds is asked for several times


def read_one_fence(written: str) -> Program:
    """Read a program as before format 3 of transcripts: out of one fence at its beginning.

    It tells what ran in the episodes of that time, and whether it was `fenced` or `plain`.
    """
    opened = re.match(r"\s*```[^\n`]*\n", written)
    text = written
    if opened:
        body = written[opened.end() :]
        closed = body.rfind("```")
        text = body if closed < 0 else body[:closed]
    text = re.sub(r"\A(?:[ \t]*\n)+|(?<!\s)\s+\Z", "", text)
    return Program(text, "fenced" if opened else "plain")


# --- what compiles ------------------------------------------------------------------------------

_NAME = "<a program that is read>"
_SILENT = ("ignore", None, Warning, re.compile(rf"(?:{re.escape(_NAME)}|{__name__})\Z"), 0)
"""A filter of the warnings that compiling these texts raises, and of no others."""


def compiles(text: str) -> bool:
    """Whether a text is a Python program, as far as compiling it tells. Never raises, never warns."""
    if text.lstrip().startswith("```"):  # as many blocks do, and no program
        return False
    return len(text) > MOST_CHARACTERS or _compiled(text, "exec") is not None


def parse_expression(text: str) -> ast.expr | None:
    """The syntax tree of a Python expression; `None` if a text is none or is too long.

    Never raises, never warns.
    """
    if len(text) > MOST_CHARACTERS:
        return None
    tree = _compiled(text, "eval", ast.PyCF_ONLY_AST)
    return None if tree is None else tree.body


def _compiled(text: str, mode: str, flags: int = 0) -> Any:
    """What `compile` gives; `None` where it raises.

    What is a warning there must neither be shown nor, where the user made warnings errors, decide.
    A filter of our own in front of all others sees to it, without a lock. `catch_warnings` would
    leave the filters of one thread to another; this filter concerns nobody else, wherever a copy of
    it may be left.
    """
    for _ in range(10):
        filters: list[Any] = warnings.filters  # type: ignore[assignment]  # they are one
        filters.insert(0, _SILENT)
        try:
            return compile(text, _NAME, mode, flags, dont_inherit=True)
        except Exception:  # SyntaxError; ValueError of a surrogate; RecursionError, MemoryError
            if warnings.filters is filters and filters[0] is _SILENT:
                break
            # Another thread has put other filters in front meanwhile: it may have been a warning.
        finally:
            with suppress(ValueError):
                filters.remove(_SILENT)
    return None


# --- the rules ----------------------------------------------------------------------------------

_MARKS = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
"""The BOM, zero-width spaces and joiners, marks of direction."""

# Behind a backslash, the end of the line belongs to the program.
_BLANK = re.compile(r"\A(?:[ \t\r\f]*\n)+|(?<![\s\\])[ \t\r\n\f]+\Z")


def _without_blank_lines(text: str) -> str:
    return _BLANK.sub("", text)


def _mended(text: str) -> Program | None:
    """A text without prompts or without its indentation, if that makes it compile."""
    unprompted = _without_prompts(text)
    if unprompted is not None:
        return Program(unprompted, "mended:prompts") if compiles(unprompted) else None
    dedented = _without_blank_lines(textwrap.dedent(text))
    return Program(dedented, "mended:dedent") if compiles(dedented) else None


_PROMPT = re.compile(r"[ \t]*>>> ?")
_CONTINUATION = re.compile(r"[ \t]*\.\.\.(?: |$)")


def _without_prompts(text: str) -> str | None:
    """What was typed in an interactive session; `None` if a text is none from its first line on."""
    lines = text.replace("\r\n", "\n").split("\n")
    if not _PROMPT.match(lines[0]):
        return None
    kept, typed = [], False
    for line in lines:
        prompt = _PROMPT.match(line) or (typed and _CONTINUATION.match(line))
        typed = bool(prompt)
        if prompt:
            kept.append(line[prompt.end() :])
    return _without_blank_lines("\n".join(kept))


_TAGS = ("", "python", "py", "python3")
_MARK = re.compile(r"`{3,}+|~{3,}+")


class _Fence(NamedTuple):
    tag: str
    body: str
    closed: bool
    mark: str
    begin: int
    """Where the mark begins that opens it."""
    inside: int
    """Where its body begins."""
    amid: bool
    """Whether it stands in one line with other text, as code in prose does."""


def _fenced(text: str) -> str | None:
    """The program inside the fences of a text; `None` if it has none."""
    fences = [fence for fence in _fences(text) if fence.tag in _TAGS]
    if any(not fence.amid for fence in fences):
        fences = [fence for fence in fences if not fence.amid]
    if not fences:
        return None
    first, closed = fences[0], [fence for fence in fences if fence.closed]
    bodies = [fence.body for fence in closed] or [first.body]
    if not closed and not first.body.strip():
        return _runnable(text[: first.begin]) or ""
    joined = "\n".join(bodies)
    last = text.rfind(first.mark, first.inside)
    whole = text[first.inside : last] if last >= 0 else joined
    if whole.strip() and compiles(whole):
        return _without_blank_lines(whole)
    if not compiles(joined):
        parts = "\n".join(_runnable(body) or body for body in bodies)
        joined = parts if compiles(parts) else _runnable(whole) or joined
    return _without_blank_lines(joined)


def _runnable(text: str) -> str | None:
    """A part of a text, mended if need be; `None` if that is no program."""
    text = _without_blank_lines(text)
    if compiles(text):
        return text
    mended = _mended(text)
    return None if mended is None else mended.text


def _fences(text: str) -> Iterator[_Fence]:
    """All fences, in order; only the last of them may be open."""
    at = line = 0
    while mark := _MARK.search(text, at):
        line = max(line, text.rfind("\n", at, mark.start()) + 1)
        at, ahead = mark.end(), text[line : mark.start()]
        if ahead.endswith(('"', "'", "\\")):  # it belongs to a string of a program
            continue
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        shut = text.find(mark[0], at, end)
        if shut >= 0 and (shutting := _MARK.match(text, shut)):
            inside = text[at:shut].rstrip()
            tag, body = _tagged(inside)
            begin = at + len(inside) - len(body)
            at = shutting.end()
            amid = bool(ahead.strip() or text[at:end].strip())
            yield _Fence(tag, body, True, mark[0], mark.start(), begin, amid)
            continue
        tag, _, more = text[at:end].strip().strip("{}.").partition(" ")
        if ahead.strip() and (more or tag.lower() not in _TAGS):  # a mark in the midst of prose
            continue
        closing = re.compile(rf"^[ \t]*{mark[0]}{mark[0][0]}*[ \t\r]*$", re.MULTILINE)
        closed = closing.search(text, end)
        body = text[end + 1 : closed.start()].removesuffix("\n") if closed else text[end + 1 :]
        yield _Fence(tag.lower(), body, closed is not None, mark[0], mark.start(), end + 1, False)
        if closed is None:
            return
        at = closed.end()


def _tagged(line: str) -> tuple[str, str]:
    """Tag and program of a fence that is closed in its own line."""
    tag, *program = line.split(None, 1) or [""]
    # `output 42` is no program, and `x = 42` has no tag.
    if tag.lower() in _TAGS or (program and tag.isidentifier() and not compiles(line.strip())):
        return tag.lower(), "".join(program)
    return "", line.strip()
