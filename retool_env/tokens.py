"""Tokens: what is used of a tokenizer. Text becomes ids once, and ids become text; nothing is ever encoded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
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
    speaker's turn.
    """
    return tuple(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def decode(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """The text of token ids: special tokens shown, spaces left alone."""
    return tokenizer.decode(
        list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def cut_turn(
    tokenizer: Tokenizer, token_ids: Sequence[int], stop: Sequence[str]
) -> tuple[int, str]:
    """Number of tokens up to and with the one that completes the first stop string, all of them without one; and their text."""

    def complete(text: str) -> bool:
        return any(tag in text for tag in stop)

    text = decode(tokenizer, token_ids)
    low, high = 0, len(token_ids)
    if not complete(text):
        return high, text
    middle = high - 1  # mostly it is the last, since policies stop there
    while high - low > 1:
        shorter = decode(tokenizer, token_ids[:middle])
        if complete(shorter):
            high, text = middle, shorter
        else:
            low = middle
        middle = (low + high) // 2
    return high, text


def tokens_of_turn(tokenizer: Tokenizer, token_ids: Sequence[int], stop: Sequence[str]) -> int:
    """Number of tokens up to and with the one that completes the first stop string; all of them without one."""
    return cut_turn(tokenizer, token_ids, stop)[0]
