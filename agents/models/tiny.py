"""A model of about one million parameters and its tokenizer, made on the spot.

The tokenizer works on bytes, so it can write anything that an interpreter prints. Each tag of the
protocol and each common error is one token, so that a turn takes about a dozen tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TAGS = (
    "<code>\n```python\n",
    "\n```\n</code>",
    "\n<interpreter>\n",
    "</interpreter>\n\n",
    "<answer>\n\\boxed{",
    "}\n</answer>",
    "print(",
    "Compute ",
    "SyntaxError: ",
    "NameError: name '",
    "' is not defined",
    "'(' was never closed",
    "invalid syntax",
    "unmatched ')'",
    " (line 1)\n",
)
"""Strings of which each is one token."""

SPACE = "Ġ"
"""The character for a space in the byte-level alphabet."""


CONTEXT = 512
"""The context length in tokens."""


def make_tokenizer(words: Sequence[str] = (), context: int = CONTEXT) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are all 256 bytes, signs between spaces, the tags, and more words.

    Args:
        words: More strings of which each is one token. Their ids come last.
        context: The context length in tokens that the tokenizer reports.
    """
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for sign in "+-*=":
        merges += [(SPACE, sign), (SPACE + sign, SPACE)]
    tokens += [a + b for a, b in merges]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|pad|>", "<|end|>"])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in (*TAGS, *words)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        model_max_length=context,
    )


def make_model(seed: int, **others: Any) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A randomly initialised model and its tokenizer.

    Args:
        seed: Seed of the weights.
        **others: Fields of `LlamaConfig` that replace the usual values.
    """
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    # A Llama: for some other kinds AutoTokenizer replaces a saved tokenizer's way of splitting.
    usual = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": CONTEXT,
        # About 1 / sqrt(hidden_size). With 0.02 the model learns to copy much later.
        "initializer_range": 0.08,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**usual | others)), tokenizer


def make_checkpoint(folder: Path, seed: int) -> Path:
    """Write a randomly initialised model and its tokenizer to a folder; returns the folder."""
    model, tokenizer = make_model(seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
