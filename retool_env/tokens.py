"""Tokens: encoding and decoding. Each text is encoded once; no text is ever encoded again."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

Runs = tuple[tuple[int, int], ...]
"""Weight versions of tokens, run-length encoded: pairs of a version and its number of tokens."""


class Tokenizer(Hashable, Protocol):
    """The interface of a transformers tokenizer, as far as this package uses it."""

    eos_token_id: int | None
    """The id of the end-of-sequence token."""
    chat_template: Any
    """The chat template; empty or `None` for a base model."""

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        """The token ids of a text, shape `(T,)`."""

    def decode(self, token_ids: Sequence[int], **kwargs: Any) -> str:
        """The text of token ids, shape `(T,)`."""

    def apply_chat_template(self, conversation: list[dict[str, str]], **kwargs: Any) -> Any:
        """A conversation as token ids or, with `tokenize=False`, as text."""


def _backend(tokenizer: Tokenizer) -> Any:
    """The Rust tokenizer inside a fast tokenizer; `None` if a subclass overrides its methods.

    Calls of the Rust tokenizer are several times faster than calls through transformers, which take
    much of a turn's time.
    """
    if not _is_plain(type(tokenizer)):
        return None
    return tokenizer.backend_tokenizer  # type: ignore[attr-defined]  # a fast tokenizer has it


@functools.cache
def _is_plain(kind: type) -> bool:
    methods = ("encode", "_encode_plus", "decode", "_decode")
    return {getattr(getattr(kind, name, None), "__module__", "") for name in methods} <= _WRAPPERS


_WRAPPERS = {"transformers.tokenization_utils_base", "transformers.tokenization_utils_tokenizers"}


_spelling_copies: WeakKeyDictionary[Any, tuple[int, Any]] = WeakKeyDictionary()


def _spelling_copy(tokenizer: Tokenizer) -> Any:
    """A copy of a fast tokenizer that spells special tokens out; `None` for other tokenizers.

    This is a switch of the tokenizer itself, which other threads use: hence the copy.
    """
    backend = _backend(tokenizer)
    if backend is None:
        return None
    size = backend.get_vocab_size()
    known_size, copied = _spelling_copies.get(tokenizer, (None, None))
    if known_size != size:  # new, or the user has added tokens since
        copied = copy.deepcopy(backend)
        copied.encode_special_tokens = True
        copied.no_padding()
        copied.no_truncation()
        _spelling_copies[tokenizer] = size, copied
    return copied


def encode_prompt(
    tokenizer: Tokenizer, prompt: str, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[int, ...]:
    """Encode a prompt: one user message through the chat template, or bare text without a template.

    Args:
        tokenizer: The tokenizer.
        prompt: The text of the message.
        tools: JSON schemas of the tools that the template shows to the model.

    Returns:
        The token ids, shape `(P,)`.
    """
    if not tokenizer.chat_template:
        return tuple(tokenizer.encode(prompt, add_special_tokens=True))
    return tuple(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tools=[dict(tool) for tool in tools] or None,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    )


def encode_result(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Encode a text of the environment.

    The name of a special token in the text is spelled out, so that no program can end the sequence
    or forge a turn. Added tokens that are not special, such as `<tool_call>` in Qwen2.5, stay
    whole: they end no turn.

    Args:
        tokenizer: The tokenizer.
        text: The text.

    Returns:
        The token ids, shape `(T,)`.
    """
    spelling = _spelling_copy(tokenizer)
    if spelling is not None:
        return tuple(spelling.encode(text, add_special_tokens=False).ids)
    return tuple(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def decode(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """Decode token ids, shape `(T,)`, with special tokens shown and spaces unchanged."""
    backend = _backend(tokenizer)
    if backend is not None:
        return backend.decode(list(token_ids), skip_special_tokens=False)
    return tokenizer.decode(
        list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def _first_end(text: str, stop: Sequence[str]) -> int | None:
    """The end of the stop string that is complete first; `None` if the text has no stop string."""
    ends = [at + len(tag) for tag in stop if (at := text.find(tag)) >= 0]
    return min(ends, default=None)


def cut_turn(
    tokenizer: Tokenizer, token_ids: Sequence[int], stop: Sequence[str]
) -> tuple[int, str]:
    """Cut a turn after the token that completes its first stop string.

    Args:
        tokenizer: The tokenizer.
        token_ids: The token ids of the turn, shape `(T,)`.
        stop: The stop strings.

    Returns:
        The number of tokens to keep, all if the turn holds no stop string, and their text.
    """
    text = decode(tokenizer, token_ids)
    low, high = 0, len(token_ids)
    end = _first_end(text, stop)
    if end is None:
        return high, text
    # Policies stop at a stop string, so the last token usually completes it. If the last token is
    # ASCII, the text without it is the text of the other tokens.
    last = decode(tokenizer, token_ids[-1:])
    if last.isascii() and text.endswith(last) and end > len(text) - len(last):
        return high, text
    middle = high - 1
    while high - low > 1:
        shorter = decode(tokenizer, token_ids[:middle])
        if _first_end(shorter, stop) is not None:
            high, text = middle, shorter
        else:
            low = middle
        middle = (low + high) // 2
    return high, text


def tokens_of_turn(tokenizer: Tokenizer, token_ids: Sequence[int], stop: Sequence[str]) -> int:
    """The number of tokens that `cut_turn` keeps.

    Args:
        tokenizer: The tokenizer.
        token_ids: The token ids of the turn, shape `(T,)`.
        stop: The stop strings.
    """
    return cut_turn(tokenizer, token_ids, stop)[0]


def first_runs(runs: Sequence[tuple[int, int]], tokens: int) -> Runs:
    """The runs of the first tokens; empty if one weight version sampled all of them.

    Args:
        runs: The runs of all tokens.
        tokens: The number of first tokens.
    """
    versions = [version for version, length in runs for _ in range(length)][:tokens]
    kept = tuple((version, len(list(run))) for version, run in itertools.groupby(versions))
    return kept if len(kept) > 1 else ()
