"""The paper's format (arXiv 2504.11536, section 2.2): tags around programs, results and answers.

A program stands in `<code>`, its output comes back in `<interpreter>`, and the answer stands in
`<answer>`. Parsing and rendering are total functions of strings. `Tags` implements
`TurnProtocol`; `retool_env.protocol.hermes` holds another format.

One rule decides a turn: **the first complete closing tag, by position**. Tags are plain
characters: a tag inside a Python string literal or inside `<think>` counts like any other tag,
because generation stops there.

| the model writes                        | the turn is                                          |
|-----------------------------------------|------------------------------------------------------|
| `<code>…</code>`                        | code: the program between the tags                   |
| `<answer>…</answer>`                    | answer: the text between the tags                    |
| both                                    | the block whose closing tag comes first              |
| two opening tags, then a closing tag    | the text after the last opening tag                  |
| a closing tag without an opening tag    | void, and ends there                                 |
| an opening tag without a closing tag    | void                                                 |
| nothing between the tags                | code or answer, empty: a failed call, a wrong answer |
| `</code>` where code can't be run       | text like any other                                  |

`retool_env.protocol.program` says how a program is found in a block (fences, prompts,
indentation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retool_env.execution import Execution
from retool_env.protocol.program import read_program
from retool_env.protocol.prompt import default_prompt
from retool_env.protocol.result import Cut, Errors, render_output
from retool_env.protocol.turn import EncodedText, Reader, Turn, TurnKind
from retool_env.tokens import Tokenizer, decode, encode_prompt, encode_result

CODE_OPEN, CODE_CLOSE = "<code>", "</code>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
RESULT_OPEN, RESULT_CLOSE = "<interpreter>", "</interpreter>"


def closing_tags(interpreter: bool) -> tuple[str, ...]:
    """The strings at which generation stops.

    Args:
        interpreter: Whether the model can run code.
    """
    return (CODE_CLOSE, ANSWER_CLOSE) if interpreter else (ANSWER_CLOSE,)


def parse_turn(text: str, interpreter: bool = True, read: Reader = read_program) -> Turn:
    """Parse one model turn by the module's table. Never raises.

    Args:
        text: Everything that the model generated since the last environment message.
        interpreter: Whether the model can run code.
        read: The reader of a code block's program.

    Example:
        >>> parse_turn("So: <code>print(1)</code> and more").content
        'print(1)'
    """
    closings = [(text.find(tag), tag) for tag in closing_tags(interpreter) if tag in text]
    if not closings:
        return Turn(TurnKind.VOID, "", len(text), len(text))
    position, tag = min(closings)
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
    """Render the text that shows a program's result in the transcript: its output, in tags.

    Args:
        execution: The result.
        limit: Number of characters to keep, the notices about cuts not counted.
        where: The part of a longer output that is cut out (see `cut_text`).
        errors: Whether an error shows its `"traceback"`, or only its `"last_line"`.
    """
    return _in_tags(render_output(execution, limit, where, errors))


def _in_tags(output: str, notice: str = "") -> str:
    return f"\n{RESULT_OPEN}\n{output}{RESULT_CLOSE}\n{notice}\n" + "\n" * bool(notice)


VOID_NOTICE = "\n[Neither a complete code block nor an answer. Go on.]\n\n"
"""The environment's notice after a void turn, if `Rules.void_turn` lets the episode go on."""

TEXT_VOID_NOTICE = "\n[No answer yet. Go on.]\n\n"
"""The notice after a void turn of an episode without an interpreter."""


@dataclass(frozen=True)
class Tags:
    """The paper's format."""

    interpreter: bool = True
    """Whether the model can run code."""
    session: bool = False
    """Whether the code blocks of an episode share a process."""
    display: bool = False
    """Whether the interpreter shows the value of a last expression."""

    @property
    def stop(self) -> tuple[str, ...]:
        """The closing tags."""
        return closing_tags(self.interpreter)

    def default_prompt(self) -> str:
        """The default prompt; see `retool_env.protocol.prompt.default_prompt`."""
        return default_prompt(self.interpreter, self.session, self.display)

    def prompt(self, message: str, tokenizer: Tokenizer | None) -> EncodedText:
        """The message alone or, with a tokenizer, through its chat template if it has one."""
        if tokenizer is None:
            return message, None
        ids = encode_prompt(tokenizer, message)
        return decode(tokenizer, ids), ids

    def parse(self, text: str, ended: bool = True, read: Reader = read_program) -> Turn:
        """Parse one model turn with `parse_turn`. Never raises.

        Args:
            text: Everything that the model generated since the last environment message.
            ended: Not used: a closed block counts, also if a budget cut the turn.
            read: The reader of a code block's program.
        """
        return parse_turn(text, self.interpreter, read)

    def result(
        self,
        output: str,
        tokenizer: Tokenizer | None = None,
        turn_ids: Sequence[int] = (),
        notice: str = "",
    ) -> EncodedText:
        """Render the output in its tags.

        Args:
            output: The output and error of the program, as `render_output` returns them.
            tokenizer: The tokenizer of an episode with token ids; `None` for text episodes.
            turn_ids: Not used.
            notice: A line behind the tags. Empty: no notice.
        """
        return _encoded(_in_tags(output, notice), tokenizer)

    def void(self, tokenizer: Tokenizer | None = None, turn_ids: Sequence[int] = ()) -> EncodedText:
        """Render the notice after a void turn. The arguments are the same as in `result`."""
        return _encoded(VOID_NOTICE if self.interpreter else TEXT_VOID_NOTICE, tokenizer)


def _encoded(text: str, tokenizer: Tokenizer | None) -> EncodedText:
    return text, None if tokenizer is None else encode_result(tokenizer, text)
