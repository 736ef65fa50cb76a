r"""The tokens of one episode: ids, texts, log-probs, loss mask and weight versions.

The texts come from the `tokenizer.json` of the run's model, read by the package `tokenizers`:

| run        | folders, in this order                                                          |
|------------|---------------------------------------------------------------------------------|
| `training` | `checkpoint`, `trainer/checkpoint-*` in the run's folder; the initial model     |
| `eval`,    | the model's folder, or its files in the cache of the Hub                        |
| `recover`  |                                                                                 |

Nothing is downloaded. A token's text is the difference that the token makes to the decoded text, so
the texts join to the span. Where several tokens share a character, each shows its own bytes, as in
`\xc3`; these texts do not join.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retool_env.evaluation.runs import Run
from retool_env.evaluation.view.index import Index
from retool_env.transcript import Span

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"

_WINDOW = 4
"""The number of tokens before a token that are decoded with it, since decoders strip a blank at the
beginning."""
_MOST_SHARING = 4
"""The largest number of tokens that share one character: UTF-8 has four bytes at most."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_LOST = "\N{REPLACEMENT CHARACTER}"


def tokens_view(index: Index, address: str) -> dict[str, Any]:
    """The tokens of an episode as plain JSON values.

    Args:
        index: The index of the run.
        address: The address of the episode.

    Raises:
        SettingsError: The run has no such episode.
        DataError: The episode's line is damaged, or its file was replaced.
    """
    spans = index.episode(address, tokens=True)[1].spans
    if all(span.token_ids is None for span in spans):
        why = "the record holds no tokens: the episode's actions were text"
        return {"known": False, "why": why, "spans": []}
    tokenizer, why = find_tokenizer(index.run)
    views = [_span_view(span, tokenizer) for span in spans]
    if any(view["texts"] is None for view in views) and tokenizer is not None:
        tokenizer, why = None, "the tokens are not of the tokenizer that was found"
        views = [{**view, "texts": None} for view in views]
    return {"known": tokenizer is not None, "why": why, "spans": views}


def _span_view(span: Span, tokenizer: Tokenizer | None) -> dict[str, Any]:
    ids = span.token_ids or ()
    sampled, trained = span.logprobs, span.trained_logprobs
    versions = [version for version, length in span.weights for _ in range(length)]
    return {
        "ids": list(ids),
        "texts": None if tokenizer is None else _checked_texts(tokenizer, ids, span.text),
        "logprobs": sampled and [_rounded(value) for value in sampled],
        "mask": [int(span.author == "model")] * len(ids),
        "versions": versions or None,
        "trained": trained and [_rounded(value) for value in trained],
        "ratio": sampled
        and trained
        and [_ratio(new, old) for new, old in zip(trained, sampled, strict=False)],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _ratio(new: float, old: float) -> float | None:
    """The importance ratio of a token; `None` if it is too large for a number."""
    try:
        return _rounded(math.exp(new - old))
    except OverflowError:
        return None


# --- texts --------------------------------------------------------------------------------------


def _checked_texts(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[str] | None:
    """The texts of the tokens; `None` if they do not decode to the span's text."""
    if any(not 0 <= token < 2**32 for token in ids):
        return None
    decoded = tokenizer.decode(list(ids), skip_special_tokens=False)
    # The text of a span is without a final end-of-sequence token.
    return list(token_texts(tokenizer, ids)) if decoded.startswith(text) else None


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[str]:
    """Yields the text of each token.

    Args:
        tokenizer: The tokenizer.
        ids: The token ids, shape `(T,)`.
    """
    at = 0
    while at < len(ids):
        ends = range(at + 1, min(at + _MOST_SHARING, len(ids)) + 1)
        texts = ((end, _difference(tokenizer, ids, at, end)) for end in ends)
        # Without a whole character in reach, the token shows its bytes.
        end, text = next(((e, t) for e, t in texts if t is not None), (at + 1, None))
        if text is not None and end == at + 1:
            yield text
        else:
            yield from (_bytes(tokenizer, token) for token in ids[at:end])
        at = end


def _difference(tokenizer: Tokenizer, ids: Sequence[int], start: int, end: int) -> str | None:
    """The text that tokens add to the text before them; `None` if it ends inside a character."""
    first = max(start - _WINDOW, 0)
    before = tokenizer.decode(list(ids[first:start]), skip_special_tokens=False)
    whole = tokenizer.decode(list(ids[first:end]), skip_special_tokens=False)
    added = whole[len(before) :]
    complete = _LOST not in added and not whole.endswith(_LOST)
    return added if complete and whole.startswith(before) else None


def _bytes(tokenizer: Tokenizer, token: int) -> str:
    r"""The bytes of a token, as in `\xc3`; the token's name where they are not known."""
    name = tokenizer.id_to_token(token) or ""
    if match := _BYTE.fullmatch(name):
        return rf"\x{match[1].lower()}"
    if name and all(char in _byte_characters() for char in name):
        return "".join(_shown(_byte_characters()[char]) for char in name)
    return name


def _shown(byte: int) -> str:
    return chr(byte) if 0x20 <= byte < 0x7F else rf"\x{byte:02x}"


@functools.cache
def _byte_characters() -> dict[str, int]:
    """The characters that stand for bytes in the names of byte-level tokens, as GPT-2 has them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + at): byte for at, byte in enumerate(others)}


# --- the tokenizer ------------------------------------------------------------------------------


def find_tokenizer(run: Run) -> tuple[Tokenizer | None, str]:
    """The tokenizer of a run's model.

    Args:
        run: The run.

    Returns:
        The tokenizer, or `None`, and in words where it was found or why it was not.
    """
    try:
        import tokenizers  # noqa: F401  # it comes with transformers
    except ImportError:
        return None, "the package tokenizers is not installed: pip install 'retool-env[train]'"
    if run.kind == "file":
        return None, "a file does not name its model: open the folder of the run"
    path = next(filter(os.path.isfile, _candidates(run)), None)
    if path is None:
        return None, f"{TOKENIZER} of the run's model was not found on this machine"
    try:
        return _loaded(path, path.stat().st_mtime_ns), f"the texts are from {path}"
    except Exception as error:  # tokenizers raises its own errors as bare exceptions
        return None, f"{path} can't be read: {error!s:.200}"


@functools.lru_cache(maxsize=8)
def _loaded(path: Path, changed: int) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _candidates(run: Run) -> Iterator[Path]:
    """Yields the paths at which the tokenizer of a run may lie."""
    if run.record is not None:
        yield from _of_model(run.record.model.name, run.record.model.revision)
        return
    yield run.path / "checkpoint" / TOKENIZER
    yield from sorted((run.path / "trainer").glob(f"checkpoint-*/{TOKENIZER}"), reverse=True)
    model = run.config.get("settings", {}).get("model")
    if isinstance(model, str):
        yield from _of_model(model, None)


def _of_model(name: str, revision: str | None) -> Iterator[Path]:
    """Yields the tokenizer of a model's folder, or of a model in the cache of the Hub."""
    yield Path(name) / TOKENIZER
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return
    try:
        cached = try_to_load_from_cache(name, TOKENIZER, revision=revision)
    except HFValidationError:  # the name is a folder's
        return
    if isinstance(cached, str):
        yield Path(cached)
