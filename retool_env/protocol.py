"""How a prompt is rendered, where a turn stops, how an action is parsed, and how a result is shown.

The format is the paper's (arXiv 2504.11536, section 2.2): a program stands in `<code>`, its output comes back in
`<interpreter>`, the answer stands in `<answer>`. Parsing and rendering are total functions of strings. `TurnProtocol` is
what an episode asks of a format, `Tags` is this one; `retool_env.hermes` holds another.

One rule decides a turn: **the first complete closing tag, by position**. Tags are characters and nothing else: one
inside a Python string literal or inside `<think>` counts like any other, because that is where generation stops.

| the model writes                              | the turn is                                     |
|-----------------------------------------------|-------------------------------------------------|
| `<code>…</code>`                              | code: the program that stands between           |
| `<answer>…</answer>`                          | answer: what stands between                     |
| both                                          | the one whose closing tag comes first           |
| two opening tags, then a closing one          | what follows the last opening tag               |
| a closing tag that nothing opened             | void, and ends there                            |
| an opening tag that nothing closes            | void                                            |
| nothing between the tags                      | code or answer, empty: a failed call, a wrong answer |
| `</code>` where there is no interpreter       | text like any other                             |

How a program is found in a block (a fence, prompts, indentation), `retool_env.program` says.
"""

from __future__ import annotations

import enum
import json
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from retool_env.files import file_fault, read_text
from retool_env.program import Form, Program, read_program
from retool_env.sandbox import Execution, Outcome
from retool_env.tokens import Tokenizer, decode, encode_prompt, encode_result

CODE_OPEN, CODE_CLOSE = "<code>", "</code>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
RESULT_OPEN, RESULT_CLOSE = "<interpreter>", "</interpreter>"

Cut = Literal["head", "tail", "middle"]
Errors = Literal["traceback", "last_line"]
ProtocolName = Literal["tags", "hermes"]

_TASK = "Solve the problem below. Reason step by step.\n\n"

_TOOL = """\
You may use a Python interpreter whenever it helps. Write {script}, like this:
<code>
```python
print(6 * 7)
```
</code>
{memory} Whatever it prints{value} comes back to you between <interpreter> and </interpreter>, and you go on from there.

"""

_END = """\
When you are done, give the result like this, and stop:
<answer>
\\boxed{{result}}
</answer>

Problem: {query}
"""


def default_prompt(interpreter: bool = True, session: bool = False, display: bool = False) -> str:
    """The default prompt, a `str.format` template with the one field `query`.

    Args:
        interpreter: Whether there is one.
        session: Whether the code blocks of an episode share a process.
        display: Whether the value of a last expression is shown.
    """
    if not interpreter:
        return _TASK + _END
    tool = _TOOL.format(
        script=script_words(session), memory=memory_words(session), value=value_words(display)
    )
    return _TASK + tool + _END


def script_words(session: bool) -> str:
    """What the model is asked to write."""
    return "code" if session else "a complete script, with its imports"


def memory_words(session: bool) -> str:
    """What a program remembers of those before it, a sentence."""
    if session:
        return "Each block runs in the process of those before it, like a notebook's cell: names and imports last."
    return "Each script runs on its own and remembers nothing of earlier ones."


def value_words(display: bool) -> str:
    """What comes back besides what a program prints, to be put behind it."""
    return ", and the value of a last line that is an expression," if display else ""


class TurnKind(enum.StrEnum):
    """What a turn asks of the environment."""

    CODE = "code"
    ANSWER = "answer"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Turn:
    """One parsed action."""

    kind: TurnKind
    """What it asks for."""
    content: str
    """The program or the answer; empty for a void turn."""
    start: int
    """Index of the opening tag's first character; `end` for a void turn."""
    end: int
    """Number of characters that belong to the turn: up to the closing tag's end, or all of them."""
    error: str = ""
    """Why a call can't be run, in words for the model: it is a failed one. Tags have no such calls."""
    form: Form | None = None
    """How the program of a call was read; `None` for what is no call."""


Said = tuple[str, tuple[int, ...] | None]
"""What the environment says: its text, and its token ids where there is a tokenizer."""


class TurnProtocol(Protocol):
    """How model and environment talk: all that an `Episode` knows of a format."""

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end a turn; without one, only the end of the sequence does."""
        ...

    def default_prompt(self) -> str:
        """The default prompt, a template as `PromptTemplate` takes it."""
        ...

    def prompt(self, message: str, tokenizer: Tokenizer | None) -> Said:
        """The first span.

        Args:
            message: What the user says.
            tokenizer: Where actions are token ids.

        Raises:
            ValueError: If the tokenizer's chat template can't carry the protocol.
        """
        ...

    def parse(self, text: str, ended: bool = True) -> Turn:
        """Parse what the model wrote since it last had the word. Never raises.

        Args:
            text: It.
            ended: Whether the turn came to its own end, rather than to that of a budget.
        """
        ...

    def result(
        self, output: str, tokenizer: Tokenizer | None = None, turn_ids: Sequence[int] = ()
    ) -> Said:
        """What the model gets to see of a program's result.

        Args:
            output: As `render_output` gives it.
            tokenizer: Where actions are token ids.
            turn_ids: The tokens of the turn that asked for it.
        """
        ...

    def void(self, tokenizer: Tokenizer | None = None, turn_ids: Sequence[int] = ()) -> Said:
        """What is said after a void turn, where the rules let the episode go on. Arguments as in `result`."""
        ...


def closing_tags(interpreter: bool) -> tuple[str, ...]:
    """The strings at which generation stops."""
    return (CODE_CLOSE, ANSWER_CLOSE) if interpreter else (ANSWER_CLOSE,)


def parse_turn(
    text: str, interpreter: bool = True, read: Callable[[str], Program] = read_program
) -> Turn:
    """Parse what the model wrote since it last had the word. Never raises; see the module's table.

    Args:
        text: What it wrote.
        interpreter: Whether there is an interpreter.
        read: Reads the program of a code block.

    Example:
        >>> parse_turn("So: <code>print(1)</code> and more").content
        'print(1)'
    """
    found = [(text.find(tag), tag) for tag in closing_tags(interpreter) if tag in text]
    if not found:
        return Turn(TurnKind.VOID, "", len(text), len(text))
    position, tag = min(found)
    end = position + len(tag)
    opening, kind = (
        (CODE_OPEN, TurnKind.CODE) if tag == CODE_CLOSE else (ANSWER_OPEN, TurnKind.ANSWER)
    )
    start = text.rfind(opening, 0, position)
    if start < 0:
        return Turn(TurnKind.VOID, "", end, end)
    content = text[start + len(opening) : position]
    if kind is TurnKind.ANSWER:
        return Turn(kind, content.strip(), start, end)
    program = read(content)
    return Turn(kind, program.text, start, end, form=program.form)


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


def render_result(
    execution: Execution, limit: int, where: Cut = "middle", errors: Errors = "traceback"
) -> str:
    """The text that a program's result puts into the transcript: `render_output`, in its tags."""
    return _in_tags(render_output(execution, limit, where, errors))


def _in_tags(output: str) -> str:
    return f"\n{RESULT_OPEN}\n{output}{RESULT_CLOSE}\n\n"


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

VOID_NOTICE = "\n[Neither a complete code block nor an answer. Go on.]\n\n"
"""What the environment says after a void turn, where the setting lets the episode go on."""

TEXT_VOID_NOTICE = "\n[No answer yet. Go on.]\n\n"
"""The same where there is no interpreter."""


class PromptTemplate:
    """A `str.format` template whose one field is `query`, the problem.

    Args:
        template: The template itself.

    Raises:
        ValueError: If it is no such template.
    """

    def __init__(self, template: str) -> None:
        try:
            fields = {
                name for _, name, _, _ in string.Formatter().parse(template) if name is not None
            }
        except ValueError as error:
            raise ValueError(f"not a format string: {error}; write literal braces twice") from None
        if fields != {"query"}:
            named = ", ".join(sorted(f"{{{name}}}" for name in fields)) or "none"
            raise ValueError(
                "a prompt template has the one field {query}, and literal braces are written twice; "
                f"this one's fields: {named}"
            )
        self.template = template

    def __call__(self, query: str) -> str:
        """The prompt of a problem."""
        return self.template.format(query=query)

    @classmethod
    def load(cls, template: str | Path) -> PromptTemplate:
        """A template from a text that holds `{query}`, or from the path of a JSON file in ReTool's format.

        Such a file holds one object with one key, whose value is the template.

        Raises:
            ValueError: If it is neither.
            FileNotFoundError: If there is no such file, or it is not a regular one.
        """
        if isinstance(template, str) and "{query}" in template:
            return cls(template)
        path = Path(template)
        if fault := file_fault(path):
            raise FileNotFoundError(
                f"prompt template {str(template)!r:.200} holds no {{query}}, and is no file either: {fault}"
            )
        try:
            values = list(json.loads(read_text(path)).values())
        except (ValueError, AttributeError, RecursionError):
            values = []
        if len(values) != 1 or not isinstance(values[0], str):
            raise ValueError(
                f'{path} must hold a JSON object of one template: {{"name": "... {{query}} ..."}}'
            )
        return cls(values[0])


@dataclass(frozen=True)
class Tags:
    """The paper's format."""

    interpreter: bool = True
    """Whether there is one."""
    session: bool = False
    """Whether the code blocks of an episode share a process."""
    display: bool = False
    """Whether the value of a last expression is shown."""

    @property
    def stop(self) -> tuple[str, ...]:
        """The closing tags."""
        return closing_tags(self.interpreter)

    def default_prompt(self) -> str:
        """See the function of this name."""
        return default_prompt(self.interpreter, self.session, self.display)

    def prompt(self, message: str, tokenizer: Tokenizer | None) -> Said:
        """The message alone, or through the chat template, if there is one."""
        if tokenizer is None:
            return message, None
        ids = encode_prompt(tokenizer, message)
        return decode(tokenizer, ids), ids

    def parse(self, text: str, ended: bool = True) -> Turn:
        """See `parse_turn`: a block that is closed counts, whatever ended the turn."""
        return parse_turn(text, self.interpreter)

    def result(
        self, output: str, tokenizer: Tokenizer | None = None, turn_ids: Sequence[int] = ()
    ) -> Said:
        """The output in its tags."""
        return self._said(_in_tags(output), tokenizer)

    def void(self, tokenizer: Tokenizer | None = None, turn_ids: Sequence[int] = ()) -> Said:
        """A notice in brackets."""
        return self._said(VOID_NOTICE if self.interpreter else TEXT_VOID_NOTICE, tokenizer)

    def _said(self, text: str, tokenizer: Tokenizer | None) -> Said:
        return text, None if tokenizer is None else encode_result(tokenizer, text)
