r"""Reads the program in the text of a code block or a tool call.

Tags, Hermes' calls and native calls all use `read_program`.
**A program that compiles as written is never changed**; only blank lines around it are dropped.
Otherwise the rules of this table are tried in order, and the first rule that yields a compiling
program applies. The form names this rule:

| text of the block or call              | program that runs                  | form             |
|----------------------------------------|------------------------------------|------------------|
| a program that compiles                | the text                           | `plain`          |
| a program with a BOM, zero-width marks | the text without these marks       | `mended:marks`   |
| fences tagged `python`, `py`, or bare  | the bodies of the fences, joined   | `fenced`         |
| such fences, all of them unclosed      | the text after the first fence     | `fenced`         |
| `>>> ` and `... ` lines, and output    | these lines, without the prompts   | `mended:prompts` |
| an indented program                    | the text without the indentation   | `mended:dedent`  |
| any other text                         | the text; the model sees its error | `plain`          |
| a call without a program               | nothing: the call fails            | `unread`         |

A protocol reports `unread`; `read_program` itself never does. The later rules also remove marks,
but only where the program then compiles. Typographic quotes, NBSP and × do not count as marks, and
remain errors.

*Fences.* Three or more backticks or tildes open a fence. It may be indented, and prose may stand
before it in its line. It is closed in the same line, or by a line of the same mark that is at
least as long: a "```" inside a line of the program does not close it. Fences with another tag
(`output`) are ignored; so are fences in the middle of a line, if the text has other fences. If the
whole text from the first fence to the last mark is a program, the marks in between belong to its
strings, and the program is this whole text. If the only mark has no text after it, the program is
the text before it. If the joined bodies do not compile, each body that does not compile loses its
prompts or its indentation. If they still do not compile, they run nevertheless: the error of the
program tells the model more than an error about a fence.

*Compiling* uses the Python of this process. It fails for a text that is nested deeper than Python
can parse, or that needs more memory than is available. A text of more than `MOST_CHARACTERS` is
not compiled; it counts as a program, unless it begins with a fence of backticks.
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
"""The rule by which the program of a call was read; see the module's table."""

FORMS: tuple[Form, ...] = get_args(Form)
"""All forms."""

MOST_CHARACTERS = 100_000
"""The length in characters of the longest text that is compiled. It equals the default
`Rules.max_characters`; compiling such a text takes some tenths of a second."""


class Program(NamedTuple):
    """A program, with the rule by which it was read."""

    text: str
    """The program text to run."""
    form: Form
    """The rule by which the program was read."""


def read_program(written: str) -> Program:
    r"""Read the program of a code block or a call by the module's table. Never raises.

    Args:
        written: The text of the block, or of the call's `code` argument.

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
    # The text with its marks comes first: a joiner in a string is part of the program.
    sources = dict.fromkeys((text, unmarked))
    fenced = [program for source in sources if (program := _fenced(source)) is not None]
    if fenced:
        best = fenced[0] if len(fenced) == 1 or compiles(fenced[0]) else fenced[-1]
        return Program(best, "fenced")
    mended = (better for source in sources if (better := _mended(source)) is not None)
    return next(mended, Program(text, "plain"))


_read_again = lru_cache(maxsize=256)(_read)  # an episode reads the program of a turn several times


def read_one_fence(written: str) -> Program:
    """Read a program as retool-env did before format 3 of transcripts: from one leading fence.

    The result is the program that ran in such an episode; its form is `fenced` or `plain`.
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
"""A warning filter that ignores only the warnings about these compiled texts."""


def compiles(text: str) -> bool:
    """Whether a text compiles as a Python program. Never raises, never warns."""
    if text.lstrip().startswith("```"):  # many blocks do, and no program does
        return False
    return len(text) > MOST_CHARACTERS or _compiled(text, "exec") is not None


def parse_expression(text: str) -> ast.expr | None:
    """The syntax tree of a Python expression; `None` for any other text, or a too long text.

    Never raises, never warns.
    """
    if len(text) > MOST_CHARACTERS:
        return None
    tree = _compiled(text, "eval", ast.PyCF_ONLY_AST)
    return None if tree is None else tree.body


def _compiled(text: str, mode: str, flags: int = 0) -> Any:
    """The result of `compile`; `None` if it raises.

    Warnings of the compiled text must stay silent, and must not count as errors where the user
    turned warnings into errors. A filter in front of all other filters ensures both, without a
    lock. `catch_warnings` could leave the filters of one thread to another thread; a leftover copy
    of this filter does no harm, because it matches only these texts.
    """
    for _ in range(10):
        filters: list[Any] = warnings.filters  # type: ignore[assignment]  # it is a list
        filters.insert(0, _SILENT)
        try:
            return compile(text, _NAME, mode, flags, dont_inherit=True)
        except Exception:  # SyntaxError; ValueError of a surrogate; RecursionError, MemoryError
            if warnings.filters is filters and filters[0] is _SILENT:
                break
            # Another thread has put a filter in front meanwhile: a warning may have been raised.
        finally:
            with suppress(ValueError):
                filters.remove(_SILENT)
    return None


# --- the rules ----------------------------------------------------------------------------------

_MARKS = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
"""The BOM, zero-width spaces and joiners, and marks of the text direction."""

# After a backslash, the end of the line belongs to the program.
_BLANK = re.compile(r"\A(?:[ \t\r\f]*\n)+|(?<![\s\\])[ \t\r\n\f]+\Z")


def _without_blank_lines(text: str) -> str:
    return _BLANK.sub("", text)


def _mended(text: str) -> Program | None:
    """The text without its prompts or without its indentation; `None` if it does not compile."""
    unprompted = _without_prompts(text)
    if unprompted is not None:
        return Program(unprompted, "mended:prompts") if compiles(unprompted) else None
    dedented = _without_blank_lines(textwrap.dedent(text))
    return Program(dedented, "mended:dedent") if compiles(dedented) else None


_PROMPT = re.compile(r"[ \t]*>>> ?")
_CONTINUATION = re.compile(r"[ \t]*\.\.\.(?: |$)")


def _without_prompts(text: str) -> str | None:
    """The input lines of an interactive session; `None` if the text begins without a prompt."""
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
    """Index of the opening mark."""
    inside: int
    """Index of the body's first character."""
    amid: bool
    """Whether the fence shares its line with other text, like inline code in prose."""


def _fenced(text: str) -> str | None:
    """The program inside the fences of a text; `None` if the text has no fences."""
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
    """A part of a text, mended if necessary; `None` if it does not compile."""
    text = _without_blank_lines(text)
    if compiles(text):
        return text
    mended = _mended(text)
    return None if mended is None else mended.text


def _fences(text: str) -> Iterator[_Fence]:
    """All fences of a text, in order; only the last fence may be unclosed."""
    at = line = 0
    while mark := _MARK.search(text, at):
        line = max(line, text.rfind("\n", at, mark.start()) + 1)
        at, ahead = mark.end(), text[line : mark.start()]
        if ahead.endswith(('"', "'", "\\")):  # the mark belongs to a string of a program
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
    """The tag and the program of a fence that is closed in its opening line."""
    tag, *program = line.split(None, 1) or [""]
    # `output 42` is not a program, and `x = 42` has no tag.
    if tag.lower() in _TAGS or (program and tag.isidentifier() and not compiles(line.strip())):
        return tag.lower(), "".join(program)
    return "", line.strip()
