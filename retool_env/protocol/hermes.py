r"""Tool calls in the form of chat templates: `protocol="hermes"`, as in Qwen2.5 and verl's recipe.

The model writes text and ends its turn with the chat's end-of-turn token. A turn with a call runs
a program, whose result comes back as a `tool` message; a turn without a call is the answer:

    <tool_call>
    {"name": "code_interpreter", "arguments": {"code": "print(6 * 7)"}}
    </tool_call>

Other models write the same call in other forms, which `retool_env.protocol.calls` also reads. A
tokenizer is refused before sampling begins if its chat template writes calls in an unknown form. A
template that renders no calls at all reveals no form, and is accepted.

One rule decides a turn: **the first call, by position, and without a call the last box**. Tags are
plain characters: a tag inside a JSON string or inside `<think>` counts like any other tag.

| the model writes                             | the turn is                                       |
|----------------------------------------------|---------------------------------------------------|
| `<tool_call>…</tool_call>`, or another form  | a call: its program is read from `code`           |
| two opening tags, then a closing tag         | a call: the text after the last opening tag       |
| several calls                                | the first call; the other calls never run         |
| text or a box beside a call                  | the call; the text stays, and the box is ignored  |
| an opening tag without a closing tag         | a failed call                                     |
| unescaped line breaks in JSON strings        | the same as with escaped line breaks              |
| a call or its arguments encoded twice        | the same as encoded once                          |
| a call that is not a JSON object             | a failed call                                     |
| a missing name, or another tool's name       | a failed call                                     |
| no object of arguments, or no string `code`  | a failed call; other arguments are ignored        |
| a program of blank lines and comments        | a failed call                                     |
| bare JSON with text before it                | text like any other                               |
| a closing tag without an opening tag         | text like any other                               |
| no call, and a complete `\boxed{…}`          | an answer: the content of the last, outermost box |
| neither a call nor a box                     | void                                              |
| no end, because a budget cut the turn        | void: the model may not have finished             |
| an end without the chat's end-of-turn token  | the same; the environment adds the token          |
| a call where code can't be run               | text like any other                               |

A failed call counts as a call, and the model sees the reason of the failure.
`retool_env.protocol.program` says how a program is found in `code` (fences, prompts, indentation).

Where actions are token ids, the ids between two turns come from the tokenizer's chat template and
are appended to the ids of the conversation: sampled text is never encoded again. Where actions are
text, no template is used: the prompt itself describes the tool, and a result stands in
`<tool_response>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any, Literal

from retool_env.errors import SettingsError
from retool_env.grading import boxed_spans
from retool_env.protocol.calls import TOOL_NAME, first_call
from retool_env.protocol.program import Program, read_program
from retool_env.protocol.prompt import memory_words, script_words, value_words
from retool_env.protocol.turn import EncodedText, Reader, Turn, TurnKind
from retool_env.tokens import Tokenizer, decode, encode_prompt, encode_result

RESPONSE_OPEN, RESPONSE_CLOSE = "<tool_response>", "</tool_response>"

_PROMPT = """\
Solve the problem below. Reason step by step.{tool} When you are done, give the result like this, \
and stop:
\\boxed{{result}}

Problem: {query}
"""

_MAY_CALL = f" You may call {TOOL_NAME} whenever it helps, once a turn."

_TOOLS_AS_TEXT = """\
You may call a tool. This JSON schema describes it:
<tools>
{schema}
</tools>
To call it, end your turn like this:
<tool_call>
{{"name": "{name}", "arguments": {{"code": "print(6 * 7)"}}}}
</tool_call>
What it gives comes back to you between <tool_response> and </tool_response>.

"""

VOID_MESSAGE = "[Neither a tool call nor a result in \\boxed{}. Go on.]"
"""The user message after a void turn, if `Rules.void_turn` lets the episode go on."""

TEXT_VOID_MESSAGE = "[No result in \\boxed{} yet. Go on.]"
"""The user message after a void turn of an episode without an interpreter."""


def parse_message(text: str, interpreter: bool = True, read: Reader = read_program) -> Turn:
    r"""Parse a turn that the model ended, by the module's table. Never raises.

    Args:
        text: Everything that the model generated since the last environment message.
        interpreter: Whether the model can run code.
        read: The reader of a call's program.

    Example:
        >>> call = '{"name": "code_interpreter", "arguments": {"code": "print(1)"}}'
        >>> parse_message(f"So: <tool_call>{call}</tool_call>").content
        'print(1)'
        >>> parse_message(r"It is \boxed{1}, no, \boxed{2}.").content
        '2'
    """
    end = len(text)
    call = first_call(text) if interpreter else None
    if call is not None:
        program = Program("", "unread") if call.error else read(call.code)
        return Turn(TurnKind.CODE, program.text, call.start, end, call.error, program.form)
    boxes = boxed_spans(text)
    if not boxes:
        return Turn(TurnKind.VOID, "", end, end)
    start, first, last = boxes[-1]
    return Turn(TurnKind.ANSWER, text[first:last].strip(), start, end)


@dataclass(frozen=True)
class Hermes:
    """Hermes' tool calls, as a `TurnProtocol`."""

    interpreter: bool = True
    """Whether the model can run code."""
    session: bool = False
    """Whether the programs of an episode share a process."""
    display: bool = False
    """Whether the interpreter shows the value of a last expression."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Empty: only the model's end-of-turn token ends a turn."""
        return ()

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """The JSON schema of the interpreter tool; empty without an interpreter."""
        if not self.interpreter:
            return ()
        description = (
            f"Runs {script_words(self.session)}, in Python. {memory_words(self.session)} "
            f"Whatever it prints{value_words(self.display)} comes back."
        )
        code = {"type": "string", "description": "The program."}
        parameters = {"type": "object", "properties": {"code": code}, "required": ["code"]}
        function = {"name": TOOL_NAME, "description": description, "parameters": parameters}
        return ({"type": "function", "function": function},)

    def default_prompt(self) -> str:
        """The template of the user's message, with the one field `query`.

        The chat template, or `prompt`, adds the description of the tool.
        """
        return _PROMPT.replace("{tool}", _MAY_CALL if self.interpreter else "")

    def prompt(self, message: str, tokenizer: Tokenizer | None) -> EncodedText:
        """Render the user's message with the description of the tool.

        The description comes from the chat template or, without a tokenizer, from this module.

        Raises:
            ValueError: If the tokenizer's chat template can't carry tool calls. The message names
                the missing part.
        """
        if tokenizer is None:
            if self.interpreter:
                schema = json.dumps(self.tools[0])
                message = _TOOLS_AS_TEXT.format(schema=schema, name=TOOL_NAME) + message
            return message, None
        self._seam(tokenizer)
        if self.interpreter:
            _check_calls(tokenizer, repr(tokenizer.chat_template), tokenizer.eos_token_id)
        ids = encode_prompt(tokenizer, message, self.tools)
        return decode(tokenizer, ids), ids

    def parse(self, text: str, ended: bool = True, read: Reader = read_program) -> Turn:
        """Parse one model turn with `parse_message`. Never raises.

        Args:
            text: Everything that the model generated since the last environment message.
            ended: Whether the model ended the turn. A turn that a budget cut is void.
            read: The reader of a call's program.
        """
        if not ended:
            return Turn(TurnKind.VOID, "", len(text), len(text))
        return parse_message(text, self.interpreter, read)

    def result(
        self,
        output: str,
        tokenizer: Tokenizer | None = None,
        turn_ids: Sequence[int] = (),
        notice: str = "",
    ) -> EncodedText:
        """Render the output as a `tool` message.

        Args:
            output: The output and error of the program, as `render_output` returns them.
            tokenizer: The tokenizer of an episode with token ids; `None` for text episodes.
            turn_ids: The token ids of the turn that called the interpreter, shape `(T,)`.
            notice: A paragraph at the end of the message. Empty: no notice.
        """
        output = output.removesuffix("\n")
        if notice:
            output = f"{output}\n\n{notice}" if output else notice
        if tokenizer is None:
            return f"\n{RESPONSE_OPEN}\n{output}\n{RESPONSE_CLOSE}\n", None
        return self._seam(tokenizer, "tool").render(tokenizer, output, turn_ids)

    def void(self, tokenizer: Tokenizer | None = None, turn_ids: Sequence[int] = ()) -> EncodedText:
        """Render the notice after a void turn as a `user` message.

        The arguments are the same as in `result`.
        """
        notice = VOID_MESSAGE if self.interpreter else TEXT_VOID_MESSAGE
        if tokenizer is None:
            return f"\n{notice}\n", None
        return self._seam(tokenizer, "user").render(tokenizer, notice, turn_ids)

    def _seam(self, tokenizer: Tokenizer, role: Role | None = None) -> Seam:
        role = role or ("tool" if self.interpreter else "user")
        return _find_seam(tokenizer, repr(tokenizer.chat_template), tokenizer.eos_token_id, role)


Role = Literal["tool", "user"]


@dataclass(frozen=True)
class Seam:
    """The tokens and text that a chat template puts between two assistant messages.

    The text next to the environment's message is encoded together with the message, up to the next
    special token on each side. The ids then equal the template's ids of the whole conversation.
    """

    end: tuple[int, ...]
    """Token ids after the turn, up to and including the end-of-turn token."""
    before: tuple[int, ...]
    """Token ids after `end`, up to and including the last special token before the message."""
    lead: str
    """The ordinary text between `before` and the message."""
    trail: str
    """The ordinary text after the message."""
    after: tuple[int, ...]
    """Token ids after `trail`, up to the beginning of the assistant's next message."""

    def render(self, tokenizer: Tokenizer, message: str, turn_ids: Sequence[int]) -> EncodedText:
        """Render a message after a turn.

        Args:
            tokenizer: The tokenizer of the episode.
            message: The text of the message.
            turn_ids: The token ids of the turn, shape `(T,)`. The end-of-turn token is added if it
                is missing.
        """
        if self.lead.endswith('"') and self.trail.startswith('"'):  # Llama 3: a message is JSON
            message = json.dumps(message, ensure_ascii=False)[1:-1]
        end = () if turn_ids and turn_ids[-1] == self.end[-1] else self.end
        words = encode_result(tokenizer, self.lead + message + self.trail)
        ids = end + self.before + words + self.after
        return decode(tokenizer, ids), ids


@lru_cache(maxsize=64)
def _find_seam(tokenizer: Any, template: str, eos: int | None, role: Role) -> Seam:
    """The seam around a message of this role.

    The chat template and the end-of-turn id are arguments only as keys of the cache: a tokenizer
    may change both.

    Raises:
        ValueError: If the tokenizer has no chat template, or the template leaves out such a
            message, or doesn't end a turn with the tokenizer's `eos_token`.
    """
    if not tokenizer.chat_template:
        raise SettingsError(
            'protocol="hermes" needs a tokenizer with a chat template: set '
            'tokenizer.chat_template, use the model\'s Instruct variant, or set protocol="tags"'
        )
    turn, message, description = "assistantsaidthis", "thiscameback", "thisisthetool"
    tool = {"name": TOOL_NAME, "description": description, "parameters": {"type": "object"}}
    conversation = [
        {"role": "user", "content": "a question"},
        {"role": "assistant", "content": turn},
        {"role": role, "content": message},
    ]
    tools = [{"type": "function", "function": tool}] if role == "tool" else None
    try:
        text = tokenizer.apply_chat_template(
            conversation, tools=tools, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # a template is a program, which may raise any exception
        raise SettingsError(
            f"the tokenizer's chat template accepts no {role} message after an assistant message "
            f"({error}): {_TEMPLATE_CURE}"
        ) from error
    if tools and description not in text:
        raise SettingsError(
            f"the tokenizer's chat template doesn't show tools to the model: {_TEMPLATE_CURE}"
        )
    before, separator, after = text.partition(turn)[2].partition(message)
    if not separator:
        raise SettingsError(
            f"the tokenizer's chat template leaves out a {role} message: {_TEMPLATE_CURE}"
        )
    names = [re.escape(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special]
    special = re.compile("|".join(names) or r"(?!)")
    cut = max((token.end() for token in special.finditer(before)), default=0)
    rest = next((token.start() for token in special.finditer(after)), len(after))
    ids = _template_ids(tokenizer, before[:cut])
    if eos not in ids:
        raise SettingsError(
            f"the tokenizer's chat template ends a turn with {before[:20]!r}, which does not hold "
            f"the tokenizer's eos_token, {tokenizer.eos_token!r}: set tokenizer.eos_token to the "
            "token that ends a turn"
        )
    end = ids.index(eos) + 1
    after_ids = _template_ids(tokenizer, after[rest:])
    return Seam(ids[:end], ids[end:], before[cut:], after[:rest], after_ids)


_TEMPLATE_CURE = (
    "set tokenizer.chat_template to a template that does (Qwen2.5's template, for example), or set "
    'protocol="tags"'
)
_PROBE = """print('a' + "b")\nif 1 < 2:\n    print('\\n')"""


@lru_cache(maxsize=64)
def _check_calls(tokenizer: Any, template: str, eos: int | None) -> None:
    """Check that `retool_env.protocol.calls` reads the calls that the chat template writes.

    The chat template and the end-of-turn id are arguments only as keys of the cache.

    Raises:
        ValueError: If the form of the calls is unknown, or the template accepts no call.
    """
    turn = "assistantsaidthis"
    function = {"name": TOOL_NAME, "arguments": {"code": _PROBE}}
    calls = [{"type": "function", "id": "call00001", "function": function}]
    cure = (
        "set tokenizer.chat_template to a template whose calls are JSON or XML in <tool_call>, "
        "bare JSON, or Python in <|tool_call_start|> (Qwen2.5's template, for example), or set "
        'protocol="tags"'
    )

    def rendered(message: dict[str, Any]) -> str:
        conversation = [{"role": "user", "content": "a question"}, {"role": "assistant", **message}]
        return tokenizer.apply_chat_template(
            conversation, tools=list(Hermes().tools), tokenize=False
        )

    ahead = rendered({"content": turn}).partition(turn)[0]
    try:
        text = rendered({"content": "", "tool_calls": calls})
    except Exception as error:  # a template is a program, which may raise any exception
        raise SettingsError(
            f"the tokenizer's chat template accepts no tool calls ({error!r:.200}): {cure}"
        ) from error
    same = takewhile(lambda pair: pair[0] == pair[1], zip(ahead, text, strict=False))
    text = text[len([*same]) :].partition(tokenizer.eos_token)[0]
    if TOOL_NAME in text and parse_message(text).content != _PROBE:
        raise SettingsError(
            f"the tokenizer's chat template writes a call as {text!r:.400}, an unknown form: {cure}"
        )


def _template_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))
