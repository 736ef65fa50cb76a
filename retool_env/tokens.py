"""Tokens: what is used of a tokenizer. Text becomes ids once, and ids become text; nothing is ever encoded again."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

Runs = tuple[tuple[int, int], ...]
"""Weight versions of tokens, run-length: pairs of a version and the number of tokens that it sampled, in order."""


class Tokenizer(Hashable, Protocol):
    """What is used of a tokenizer of transformers."""

    eos_token_id: int | None
    chat_template: Any

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, token_ids: Sequence[int], **kwargs: Any) -> str:
        """The text of token ids."""
        ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **kwargs: Any) -> Any:
        """A conversation as token ids or, with `tokenize=False`, as text."""
        ...


def _backend(tokenizer: Tokenizer) -> Any:
    """What a fast tokenizer of transformers wraps, if the wrapper is the plain one; `None` otherwise.

    The wrapper takes several times as long as what it wraps, and much of a turn's time.
    """
    kind = type(tokenizer)
    plain = _plain.get(kind)
    if plain is None:
        own = ("encode", "_encode_plus", "decode", "_decode")
        modules = {getattr(getattr(kind, name, None), "__module__", "") for name in own}
        plain = _plain[kind] = modules <= _WRAPPERS
    return tokenizer.backend_tokenizer if plain else None  # type: ignore[attr-defined]  # a fast one has it


_WRAPPERS = {"transformers.tokenization_utils_base", "transformers.tokenization_utils_tokenizers"}
_plain: dict[type, bool] = {}


class _Spellers:
    """Copies of tokenizers that spell special tokens out.

    Copies, since that is a switch of the tokenizer itself, which others use, in other threads too.
    """

    def __init__(self) -> None:
        self._made: WeakKeyDictionary[Any, tuple[int, Any]] = WeakKeyDictionary()

    def of(self, tokenizer: Tokenizer) -> Any:
        """The copy of a fast tokenizer; `None` if it has none."""
        backend = _backend(tokenizer)
        if backend is None:
            return None
        size = backend.get_vocab_size()
        made = self._made.get(tokenizer)
        if made is None or made[0] != size:  # tokens may be added
            copied = copy.deepcopy(backend)
            copied.encode_special_tokens = True
            copied.no_padding()
            copied.no_truncation()
            made = self._made[tokenizer] = size, copied
        return made[1]


_spellers = _Spellers()


def encode_prompt(
    tokenizer: Tokenizer, prompt: str, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[int, ...]:
    """Token ids of a prompt: one user message through the chat template, or the bare text without one.

    Args:
        tokenizer: Its chat template is used.
        prompt: The message.
        tools: JSON schemas of the tools that the template shows to the model.
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
    """Token ids of what the environment writes.

    A special token's name that a program prints is spelled out, so that no program can end the sequence or begin another
    speaker's turn. (A token that was added without being special, as `<tool_call>` in Qwen2.5, is not: it ends nobody's turn.)
    """
    speller = _spellers.of(tokenizer)
    if speller is not None:
        return tuple(speller.encode(text, add_special_tokens=False).ids)
    return tuple(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def decode(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """The text of token ids: special tokens shown, spaces left alone."""
    backend = _backend(tokenizer)
    if backend is not None:
        return backend.decode(list(token_ids), skip_special_tokens=False)
    return tokenizer.decode(
        list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def _first_end(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of some strings to be complete ends; `None` if none is there."""
    found = [at + len(each) for each in stop if (at := text.find(each)) >= 0]
    return min(found) if found else None


def cut_turn(
    tokenizer: Tokenizer, token_ids: Sequence[int], stop: Sequence[str]
) -> tuple[int, str]:
    """Number of tokens up to and with the one that completes the first stop string, all of them without one; and their text."""
    text = decode(tokenizer, token_ids)
    low, high = 0, len(token_ids)
    end = _first_end(text, stop)
    if end is None:
        return high, text
    # Mostly it is the last, since policies stop there; and where its text is ASCII, the others' is what stands before it.
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
    """Number of tokens up to and with the one that completes the first stop string; all of them without one."""
    return cut_turn(tokenizer, token_ids, stop)[0]


def first_runs(runs: Runs, tokens: int) -> Runs:
    """The runs of the first so many tokens; none where these are of one version, which needs no runs."""
    versions = [version for version, length in runs for _ in range(length)][:tokens]
    kept = tuple((version, len(list(run))) for version, run in itertools.groupby(versions))
    return kept if len(kept) > 1 else ()
