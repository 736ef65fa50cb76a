"""How a prompt is rendered, where a turn stops, how an action is parsed, and how a result is shown.

The format is the paper's (arXiv 2504.11536, section 2.2): a program stands in `<code>`, its output comes back in
`<interpreter>`, the answer stands in `<answer>`. Parsing and rendering are total functions of strings. `TurnProtocol` is
what an episode asks of a format, `Tags` is this one; `retool_env.protocol.hermes` holds another.

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

How a program is found in a block (a fence, prompts, indentation), `retool_env.protocol.program` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retool_env.execution import Execution
from retool_env.protocol.program import read_program
from retool_env.protocol.prompt import default_prompt
from retool_env.protocol.result import Cut, Errors, render_output
from retool_env.protocol.turn import Reader, Said, Turn, TurnKind
from retool_env.tokens import Tokenizer, decode, encode_prompt, encode_result

CODE_OPEN, CODE_CLOSE = "<code>", "</code>"


ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"


RESULT_OPEN, RESULT_CLOSE = "<interpreter>", "</interpreter>"


def closing_tags(interpreter: bool) -> tuple[str, ...]:
    """The strings at which generation stops."""
    return (CODE_CLOSE, ANSWER_CLOSE) if interpreter else (ANSWER_CLOSE,)


def parse_turn(text: str, interpreter: bool = True, read: Reader = read_program) -> Turn:
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


def render_result(
    execution: Execution, limit: int, where: Cut = "middle", errors: Errors = "traceback"
) -> str:
    """The text that a program's result puts into the transcript: `render_output`, in its tags."""
    return _in_tags(render_output(execution, limit, where, errors))


def _in_tags(output: str) -> str:
    return f"\n{RESULT_OPEN}\n{output}{RESULT_CLOSE}\n\n"


VOID_NOTICE = "\n[Neither a complete code block nor an answer. Go on.]\n\n"
"""What the environment says after a void turn, where the setting lets the episode go on."""


TEXT_VOID_NOTICE = "\n[No answer yet. Go on.]\n\n"
"""The same where there is no interpreter."""


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

    def parse(self, text: str, ended: bool = True, read: Reader = read_program) -> Turn:
        """See `parse_turn`: a block that is closed counts, whatever ended the turn."""
        return parse_turn(text, self.interpreter, read)

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
