"""The blocks of one episode for a terminal: escaped texts with colours that repeat their labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from retool_env.printable import one_line, printable

MOST_CHARACTERS = 20_000
"""The largest number of characters of a part; the page shows the rest of a longer part."""

RIGHT, WRONG, NOTE = "#5fd787", "#ff7b72", "#e5c07b"
"""The colours of good news, of bad news and of notes, on the viewer's dark background."""

_AUTHORS = {"prompt": "bold #56d4dd", "model": "bold #6cb6ff", "env": f"bold {NOTE}"}
_CODE = {"k": "#d2a8ff", "s": RIGHT, "m": "#56d4dd", "c": "#9aa4b0", "n": "", "o": "", "p": ""}
"""The colours of Pygments' token classes, by the first letter."""

_LIKELY, _UNLIKELY = -0.1, -1.0
"""Log-probs above the first are not marked; log-probs below the second are marked strongly."""


@dataclass(frozen=True)
class Piece:
    """A block of the episode."""

    kind: str
    """`head`, `span`, `text`, `program`, `answer`, `result`, `failed`, `fault` or `tokens`."""
    text: Text
    """The text, without control characters."""


def blocks(view: Mapping[str, Any]) -> list[Piece]:
    """The blocks of an episode.

    Args:
        view: The view model of the episode, by `retool_env.evaluation.view.episode.episode_view`.
    """
    return [_head(view), *(piece for span in view["spans"] for piece in _span(span))]


def _head(view: Mapping[str, Any]) -> Piece:
    word, style = {True: ("right", RIGHT), False: ("wrong", WRONG)}.get(
        view["right"], ("not graded", NOTE)
    )
    text = Text(one_line(view["address"], 300), "bold")
    text.append(f"\n{word}", style)
    text.append(f" · end: {view['stop'] or 'goes on'} · answer {_value(view['answer'])}")
    text.append(f" · reference answer {_value(view['problem']['answer'])}")
    text.append(f" · reward {_value(view['reward'])}")
    for fork in view["forks"]:
        arm = "control (true result)" if fork["arm"] == "control" else one_line(fork["arm"])
        text.append(f"\nfork at call {fork['call']}, {arm}: ")
        text.append(f"{fork['right']} of {fork['ended']} right")
    return Piece("head", text)


def _value(value: object) -> str:
    return "–" if value is None else one_line(str(value), 100)


def _span(span: Mapping[str, Any]) -> Iterator[Piece]:
    tokens = "" if span["tokens"] is None else f" · {span['tokens']:,} tokens"
    seconds = f" · {span['seconds']:.2f} s" if span["seconds"] else ""
    author = "environment" if span["author"] == "env" else span["author"]
    heading = Text(f"{author}{tokens}{seconds}", _AUTHORS.get(span["author"], "bold"))
    yield Piece("span", heading)
    call = span["call"]
    if call is not None:
        yield _call(call)
    for part in span["parts"]:
        if part["text"].strip():
            yield Piece(part["kind"], _part(part))
    if span["cut"]:
        yield Piece("text", Text(f"[{span['cut']:,} characters more: see the page]", "italic"))
    if call is not None and call["fault"] is not None:
        yield _fault(call["fault"])


def _part(part: Mapping[str, Any]) -> Text:
    if part["kind"] == "program":
        text = _coloured(part["pieces"])
    else:
        style = "bold" if part["kind"] == "answer" else ""
        text = Text(_cut(part["text"]).strip("\n"), style)
    if part["kind"] in ("program", "answer"):
        text = Text.assemble((f"{part['kind']}\n", "italic"), text)
    return text


def _coloured(pieces: Sequence[Sequence[str]]) -> Text:
    text, left = Text(), MOST_CHARACTERS
    for name, piece in pieces:
        text.append(printable(piece[:left]), _CODE.get(name[:1], ""))
        left -= len(piece)
        if left < 0:
            text.append("\n[the rest is not shown: see the page]", "italic")
            break
    text.rstrip()
    return text


def _call(call: Mapping[str, Any]) -> Piece:
    outcome = one_line(str(call["outcome"])).replace("_", " ")
    words = f"call {call['number']}: {outcome} · {call['seconds']:.2f} s"
    if call["ok"]:
        return Piece("result", Text(words, RIGHT))
    return Piece("failed", Text(f"{words} · {one_line(call['error'], 200)}", WRONG))


def _fault(fault: Mapping[str, Any]) -> Piece:
    text = Text(f"fault {one_line(fault['kind'])}", f"bold {NOTE}")
    real = fault["real"]
    if not fault["injected"]:
        text.append(" did not take place: the result is the program's own")
    elif real is None:
        text.append(" was made in the program's process")
    else:
        text.append(f": the model did not see the real result: {one_line(real['outcome'])}\n")
        text.append(_cut(real["stdout"] + real["error"]).strip("\n"))
    return Piece("fault", text)


def _cut(text: str) -> str:
    if len(text) <= MOST_CHARACTERS:
        return printable(text)
    rest = len(text) - MOST_CHARACTERS
    return f"{printable(text[:MOST_CHARACTERS])}\n[{rest:,} characters more: see the page]"


def token_blocks(view: Mapping[str, Any], tokens: Mapping[str, Any]) -> list[Piece]:
    """The tokens of an episode, as blocks at its end.

    Args:
        view: The view model of the episode.
        tokens: The tokens, by `retool_env.evaluation.view.tokens.tokens_view`.
    """
    legend = Text("tokens", "bold")
    legend.append(f" ({one_line(tokens['why'], 200)})")
    legend.append("\nmodel: ")
    for words, style in _LEGEND:
        legend.append(words, style)
        legend.append("  ")
    legend.append("environment, masked out of the loss", _MASKED)
    made = [Piece("tokens", legend)]
    for span, some in zip(view["spans"], tokens["spans"], strict=False):
        if some["ids"]:
            heading = Text(f"{span['author']}, {len(some['ids']):,} tokens\n", "italic")
            made.append(Piece("tokens", Text.assemble(heading, _tokens(some))))
    return made


_MASKED = "dim underline"
_LEGEND = (
    (f"log-prob above {_LIKELY}", ""),
    (f"from {_UNLIKELY} to {_LIKELY}", "black on yellow"),
    (f"below {_UNLIKELY}", "black on red"),
)


def _tokens(span: Mapping[str, Any]) -> Text:
    text, length = Text(), 0
    texts = span["texts"] or [f"{number} " for number in span["ids"]]
    logprobs = span["logprobs"] or [None] * len(texts)
    for shown, logprob, kept in zip(texts, logprobs, span["mask"], strict=False):
        text.append(printable(shown), _token_style(logprob) if kept else _MASKED)
        length += len(shown)
        if length > MOST_CHARACTERS:
            text.append("\n[the rest is not shown: see the page]", "italic")
            break
    return text


def _token_style(logprob: float | None) -> str:
    if logprob is None or logprob > _LIKELY:
        return ""
    return _LEGEND[1][1] if logprob >= _UNLIKELY else _LEGEND[2][1]
