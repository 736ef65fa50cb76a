r"""Tool calls as chat templates write them: `protocol="hermes"`, the form of Qwen2.5 and verl's recipe.

The model says what it likes and ends its turn with the chat's end-of-turn token. A turn with a call
runs a program, whose result comes back as a `tool` message; a turn without one is the answer:

    <tool_call>
    {"name": "code_interpreter", "arguments": {"code": "print(6 * 7)"}}
    </tool_call>

Other models write the same call in other forms, which `retool_env.protocol.calls` reads as well.
A tokenizer whose chat template writes a call in a form that is not among them is refused before
anything is sampled. A template that shows no calls at all says nothing of their form, and is taken.

One rule decides a turn: **the first call, by position, and without one the last box**. Tags are
characters and nothing else: one inside a JSON string or inside `<think>` counts like any other.

| the model writes                               | the turn is                                           |
|------------------------------------------------|-------------------------------------------------------|
| `<tool_call>…</tool_call>`, or another form    | a call: its program is read from `code`               |
| two opening tags, then a closing one           | a call: what follows the last opening tag             |
| several calls                                  | the first of them; the others are never run           |
| text or a box beside a call                    | the call; the text is kept, and the box is no answer  |
| an opening tag that nothing closes             | a failed call                                         |
| line breaks in JSON's strings as they are      | the same as escaped ones                              |
| a call or its arguments encoded twice          | the same as encoded once                              |
| a call that is no JSON object                  | a failed call                                         |
| another tool's name, or none                   | a failed call                                         |
| no object of arguments, or no string `code`    | a failed call; what else they hold is ignored         |
| a program of blank lines and comments          | a failed call                                         |
| JSON alone, with text ahead of it              | text like any other                                   |
| a closing tag that nothing opened              | text like any other                                   |
| no call, and a complete `\boxed{…}`            | an answer: what stands in the last, outermost box     |
| neither                                        | void                                                  |
| no end, because a budget cut it                | void, whatever it holds: it may not have been done    |
| an end without the chat's end-of-turn token    | the same as with it; the environment adds the token   |
| a call where there is no interpreter           | text like any other                                   |

A failed call counts as one, and the model gets to see why it failed. How a program is found in
`code` (a fence, prompts, indentation), `retool_env.protocol.program` says.

Where actions are token ids, all that lies between two turns is what the tokenizer's chat template
puts there, in ids, behind those of the conversation: nothing that was sampled is encoded again.
Where actions are text there is no template: the prompt describes the tool in words of ours, and a
result stands in `<tool_response>`.
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
from retool_env.protocol.turn import Reader, Said, Turn, TurnKind
from retool_env.tokens import Tokenizer, decode, encode_prompt, encode_result

RESPONSE_OPEN, RESPONSE_CLOSE = "<tool_response>", "</tool_response>"

_PROMPT = """\
Solve the problem below. Reason step by step.{tool} When you are done, give the result like this, and stop:
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
"""What the user says after a void turn, where the setting lets the episode go on."""

TEXT_VOID_MESSAGE = "[No result in \\boxed{} yet. Go on.]"
"""The same where there is no interpreter."""


def parse_message(text: str, interpreter: bool = True, read: Reader = read_program) -> Turn:
    r"""Parse a turn that came to its own end. Never raises; see the module's table.

    Args:
        text: What the model wrote.
        interpreter: Whether there is an interpreter.
        read: Reads the program of a call.

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
    """Whether there is one."""
    session: bool = False
    """Whether the programs of an episode share a process."""
    display: bool = False
    """Whether the value of a last expression is shown."""

    @property
    def stop(self) -> tuple[str, ...]:
        """None: a turn ends where the model ends it."""
        return ()

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """The JSON schemas of the tools: one, or none."""
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
        """The user's message, a template with the one field `query`. The tool's description is not in it."""
        return _PROMPT.replace("{tool}", _MAY_CALL if self.interpreter else "")

    def prompt(self, message: str, tokenizer: Tokenizer | None) -> Said:
        """The message with the tool's description: from the chat template, or in our words without a tokenizer.

        Raises:
            ValueError: If the tokenizer's chat template can't carry tool calls. It says what is missing.
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
        """See `parse_message`; a turn that a budget cut is void."""
        if not ended:
            return Turn(TurnKind.VOID, "", len(text), len(text))
        return parse_message(text, self.interpreter, read)

    def result(
        self, output: str, tokenizer: Tokenizer | None = None, turn_ids: Sequence[int] = ()
    ) -> Said:
        """The output as a `tool` message."""
        output = output.removesuffix("\n")
        if tokenizer is None:
            return f"\n{RESPONSE_OPEN}\n{output}\n{RESPONSE_CLOSE}\n", None
        return self._seam(tokenizer, "tool").say(tokenizer, output, turn_ids)

    def void(self, tokenizer: Tokenizer | None = None, turn_ids: Sequence[int] = ()) -> Said:
        """A notice as a `user` message."""
        notice = VOID_MESSAGE if self.interpreter else TEXT_VOID_MESSAGE
        if tokenizer is None:
            return f"\n{notice}\n", None
        return self._seam(tokenizer, "user").say(tokenizer, notice, turn_ids)

    def _seam(self, tokenizer: Tokenizer, role: Role | None = None) -> Seam:
        role = role or ("tool" if self.interpreter else "user")
        return _find_seam(tokenizer, repr(tokenizer.chat_template), tokenizer.eos_token_id, role)


Role = Literal["tool", "user"]


@dataclass(frozen=True)
class Seam:
    """What a chat template puts between the end of one assistant's message and the beginning of the next.

    The text next to the message is encoded together with it, as far as no special token stands between: so are ids those
    that the template gives the whole conversation.
    """

    end: tuple[int, ...]
    """Up to the end-of-turn token and with it."""
    before: tuple[int, ...]
    """Then up to the last special token ahead of the message."""
    lead: str
    """Then ordinary text, up to the message."""
    trail: str
    """Ordinary text behind the message."""
    after: tuple[int, ...]
    """Then the rest, where the assistant has the word."""

    def say(self, tokenizer: Tokenizer, message: str, turn_ids: Sequence[int]) -> Said:
        """Text and ids of a message, behind a turn that may have ended itself or not."""
        if self.lead.endswith('"') and self.trail.startswith('"'):  # Llama 3: a message is JSON
            message = json.dumps(message, ensure_ascii=False)[1:-1]
        end = () if turn_ids and turn_ids[-1] == self.end[-1] else self.end
        words = encode_result(tokenizer, self.lead + message + self.trail)
        ids = end + self.before + words + self.after
        return decode(tokenizer, ids), ids


@lru_cache(maxsize=64)
def _find_seam(tokenizer: Any, template: str, eos: int | None, role: Role) -> Seam:
    """The seam around a message of that role. What may change of a tokenizer is an argument for the cache's sake.

    Raises:
        ValueError: If there is no chat template, or it has no room for such a message, or doesn't end a turn with the
            tokenizer's `eos_token`.
    """
    if not tokenizer.chat_template:
        raise SettingsError(
            'protocol="hermes" needs a tokenizer with a chat template, and this one has none: set '
            'tokenizer.chat_template, take the model\'s Instruct variant, or protocol="tags"'
        )
    said, answered, described = "assistantsaidthis", "thiscameback", "thisisthetool"
    tool = {"name": TOOL_NAME, "description": described, "parameters": {"type": "object"}}
    conversation = [
        {"role": "user", "content": "a question"},
        {"role": "assistant", "content": said},
        {"role": role, "content": answered},
    ]
    tools = [{"type": "function", "function": tool}] if role == "tool" else None
    try:
        text = tokenizer.apply_chat_template(
            conversation, tools=tools, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # a template is a program: what it raises is its author's choice
        raise SettingsError(
            f"the tokenizer's chat template takes no {role} message behind an assistant's ({error}): set "
            'tokenizer.chat_template to one that does (that of Qwen2.5, say), or take protocol="tags"'
        ) from error
    if tools and described not in text:
        raise SettingsError(
            "the tokenizer's chat template doesn't show tools to the model: set tokenizer.chat_template to one that does "
            '(that of Qwen2.5, say), or take protocol="tags"'
        )
    behind = text.partition(said)[2]
    before, found, after = behind.partition(answered)
    if not found:
        raise SettingsError(
            f"the tokenizer's chat template leaves out a {role} message: set tokenizer.chat_template to one that shows it "
            '(that of Qwen2.5, say), or take protocol="tags"'
        )
    names = [re.escape(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special]
    special = re.compile("|".join(names) or r"(?!)")
    cut = max((token.end() for token in special.finditer(before)), default=0)
    first = special.search(after)
    rest = len(after) if first is None else first.start()
    ids = _template_ids(tokenizer, before[:cut])
    if eos not in ids:
        raise SettingsError(
            f"the tokenizer's chat template ends a turn with {before[:20]!r}, which does not hold its eos_token, "
            f"{tokenizer.eos_token!r}: set tokenizer.eos_token to the token that ends a turn"
        )
    end = ids.index(eos) + 1
    after_ids = _template_ids(tokenizer, after[rest:])
    return Seam(ids[:end], ids[end:], before[cut:], after[:rest], after_ids)


_PROBE = """print('a' + "b")\nif 1 < 2:\n    print('\\n')"""


@lru_cache(maxsize=64)
def _check_calls(tokenizer: Any, template: str, eos: int | None) -> None:
    """Check that a call can be read in the form in which the chat template writes it.

    What may change of a tokenizer is an argument for the cache's sake.

    Raises:
        ValueError: If it can't, or the template takes no call.
    """
    said = "assistantsaidthis"
    question = {"role": "user", "content": "a question"}
    plain = {"role": "assistant", "content": said}
    function = {"name": TOOL_NAME, "arguments": {"code": _PROBE}}
    calls = [{"type": "function", "id": "call00001", "function": function}]
    called = {"role": "assistant", "content": "", "tool_calls": calls}
    cure = (
        "set tokenizer.chat_template to one whose calls are JSON or XML in <tool_call>, JSON alone, "
        'or Python in <|tool_call_start|> (that of Qwen2.5, say), or take protocol="tags"'
    )

    def rendered(message: dict[str, Any]) -> str:
        return tokenizer.apply_chat_template(
            [question, message], tools=list(Hermes().tools), tokenize=False
        )

    ahead = rendered(plain).partition(said)[0]
    try:
        text = rendered(called)
    except Exception as error:  # a template is a program: what it raises is its author's choice
        raise SettingsError(
            f"the tokenizer's chat template takes no call of a tool ({error!r:.200}): {cure}"
        ) from error
    same = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ahead, text, strict=False))
    )
    text = text[same:].partition(tokenizer.eos_token)[0]
    if TOOL_NAME in text and parse_message(text).content != _PROBE:
        raise SettingsError(
            f"the tokenizer's chat template writes a call as {text!r:.400}, a form that is not read "
            f"here: {cure}"
        )


def _template_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))
