r"""An episode, rendered in another protocol or through another chat template, as text.

| part of the episode | under another protocol                                                     |
|---------------------|----------------------------------------------------------------------------|
| prompt              | the default prompt of that protocol                                        |
| call                | the words before the call, then the program as the protocol writes it      |
| result              | rendered by the protocol, from the recorded result                         |
| answer, to `hermes` | the words before it, then the content of the tag in `\boxed{}`             |
| answer, to `tags`   | all words, then the content of the last box in the tag                     |
| void turn           | unchanged                                                                  |

Under the same protocol only the chat template changes. Token ids and log-probs are not kept, since
no model sampled the tokens of this text. Where a rendered turn would be read as another turn, a
note says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retool_env.errors import MissingPackage, SettingsError
from retool_env.evaluation.rows import clean
from retool_env.evaluation.runs import Run
from retool_env.files import read_text
from retool_env.grading import extract_boxed
from retool_env.protocol import PROTOCOLS, ProtocolName
from retool_env.protocol.calls import CALL_CLOSE, CALL_OPEN, TOOL_NAME
from retool_env.protocol.prompt import PromptTemplate
from retool_env.protocol.result import calls_notice, render_output
from retool_env.protocol.tags import ANSWER_CLOSE, ANSWER_OPEN
from retool_env.protocol.turn import Turn, TurnKind, TurnProtocol
from retool_env.rollout.openai.chat import call_text
from retool_env.rules import Rules
from retool_env.tokens import Tokenizer
from retool_env.transcript import Author, Span, Transcript


@dataclass(frozen=True)
class Rendered:
    """An episode as text."""

    parts: list[tuple[Author, str]]
    """The texts in their order, each with its author."""
    notes: list[str]
    """Turns that would be read as another turn in this form."""

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(text for _, text in self.parts)

    def to_json(self) -> dict[str, Any]:
        """The texts as plain JSON values."""
        spans = [{"author": author, "text": text} for author, text in self.parts]
        return clean({"spans": spans, "notes": self.notes})


def rendered(
    transcript: Transcript,
    rules: Rules,
    protocol: ProtocolName,
    tokenizer: Tokenizer | None = None,
) -> Rendered:
    """Renders an episode.

    Args:
        transcript: The episode.
        rules: The rules of the episode.
        protocol: The protocol of the text.
        tokenizer: The tokenizer whose chat template renders prompt and results; `None`: the text
            has no chat template.

    Raises:
        SettingsError: The protocol can't write turns, or the chat template can't carry it.
    """
    same = protocol == transcript.protocol
    if not same and protocol not in _WRITERS:
        raise SettingsError(
            f"turns can't be written in the protocol {protocol!r:.40}; take {', '.join(_WRITERS)}"
        )
    form = PROTOCOLS[protocol](transcript.interpreter, rules.session, rules.display)
    template = rules.template if same else form.default_prompt()
    prompt, _ = form.prompt(PromptTemplate(template)(transcript.problem.question), tokenizer)
    unchanged = same and tokenizer is None
    parts: list[tuple[Author, str]] = [
        ("prompt", transcript.spans[0].text if unchanged else prompt)
    ]
    notes: list[str] = []
    turns, results = iter(transcript.turns), 0
    for number, span in enumerate(transcript.response, 1):
        text = span.text
        if span.author == "model" and not same:
            turn = next(turns)
            text = _WRITERS[protocol](span.text, turn)
            read = form.parse(text)
            if not _alike(read, turn):
                notes.append(f"span {number} is read as {read.kind}: {read.content!r:.60}")
        elif span.author == "env":
            results += 1
            text = span.text if unchanged else _shown(span, rules, form, tokenizer, results)
        parts.append((span.author, text))
    return Rendered(parts, notes)


def chat_tokenizer(template: str, run: Run) -> Any:
    """The tokenizer whose chat template renders episodes.

    Args:
        template: The folder or Hub id of a model; or a file with a chat template, which is used
            with the tokenizer of the run's own model.
        run: The run.

    Raises:
        SettingsError: The tokenizer can't be loaded, or the run's own model is not at hand.
        MissingPackage: transformers is not installed.
    """
    if not Path(template).is_file():
        return _load(template)
    tokenizer = _load(_model_of(run, template))
    tokenizer.chat_template = read_text(template)
    return tokenizer


def _model_of(run: Run, template: str) -> str:
    """The model of a run, whose tokenizer a template needs."""
    model = str(run.path / "checkpoint") if run.record is None else run.record.model.name
    if not Path(model).is_dir():
        raise SettingsError(
            f"the template {template} needs the tokenizer of the run's model, and {model} was not "
            "found: name the folder of a model with this template"
        )
    return model


def _load(model: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingPackage("--template needs transformers: pip install 'transformers'") from None
    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"--template {model}: no tokenizer can be loaded: {reason}") from None


def _alike(read: Turn, turn: Turn) -> bool:
    """Whether a rendered turn makes the same request as the recorded turn."""
    if read.kind is not turn.kind or turn.kind is TurnKind.VOID:
        return read.kind is turn.kind
    boxed = (extract_boxed(each.content) or each.content for each in (read, turn))
    return read.content == turn.content or len({*boxed}) == 1


def _shown(
    span: Span, rules: Rules, form: TurnProtocol, tokenizer: Tokenizer | None, results: int
) -> str:
    """The text of a result, or of the notice after a void turn.

    Args:
        span: The recorded span.
        rules: The rules of the episode.
        form: The protocol of the text.
        tokenizer: The tokenizer with the chat template; `None`: no chat template.
        results: The number of results and notices up to this one.
    """
    if not span.text:  # there was no room to show it
        return ""
    if span.execution is None:
        return form.void(tokenizer)[0]
    limit = max(rules.output_characters, len(span.execution.stdout))  # the record is cut already
    output = render_output(span.execution, limit, rules.output_cut, rules.errors)
    announced = rules.announce_calls and rules.max_calls is not None
    notice = calls_notice((rules.max_calls or 0) - results) if announced else ""
    return form.result(output, tokenizer, notice=notice)[0]


def _as_tags(text: str, turn: Turn) -> str:
    if turn.kind is TurnKind.CODE:
        return call_text(text[: turn.start].rstrip(), TOOL_NAME, {"code": turn.content})
    if turn.kind is TurnKind.ANSWER:
        return f"{text}\n{ANSWER_OPEN}\n\\boxed{{{turn.content}}}\n{ANSWER_CLOSE}"
    return text


def _as_hermes(text: str, turn: Turn) -> str:
    if turn.kind is TurnKind.CODE:
        call = json.dumps({"name": TOOL_NAME, "arguments": {"code": turn.content}})
        return f"{text[: turn.start]}{CALL_OPEN}\n{call}\n{CALL_CLOSE}"
    if turn.kind is TurnKind.ANSWER:
        boxed = extract_boxed(turn.content) is not None
        return text[: turn.start] + (turn.content if boxed else f"\\boxed{{{turn.content}}}")
    return text


_WRITERS: Mapping[ProtocolName, Callable[[str, Turn], str]] = {
    "tags": _as_tags,
    "hermes": _as_hermes,
}
"""For each protocol, a function that writes a turn: the recorded text and the turn it makes."""
