"""A random model and settings for runs of a few steps that take a second."""

from __future__ import annotations

import importlib
import json

from agents.base.presets import load_settings
from agents.models.tiny import make_model

SMALL = {
    "steps": 4,
    "prompts": 2,
    "rollouts": 4,
    "micro_batch": 8,
    "mini_batch": 8,
    "critic_warmup": 1,
    "save_steps": 100,
    "entropy": 0.05,  # gives a gradient although no answer is right
    "env.interpreter": False,
    "env.max_tokens": 12,
}

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}


def make_small(folder, change=lambda tokenizer: None, seed=1, **others):
    """Write a very small random model and its tokenizer; returns the folder's path.

    Args:
        folder: The folder of the checkpoint.
        change: A function that changes the tokenizer first.
        seed: The seed of the weights.
        **others: Settings of the model's size, instead of `SIZE`.
    """
    model, tokenizer = make_model(seed, **SIZE | others)
    change(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def given(algorithm, /, **overrides):
    """`SMALL` as `key=value` pairs, without settings that the algorithm lacks."""
    cls = importlib.import_module(f"agents.{algorithm}").Settings
    known = {field for field in cls.__dataclass_fields__}
    values = {key: value for key, value in SMALL.items() if key.partition(".")[0] in known}
    return [f"{key}={json.dumps(value)}" for key, value in {**values, **overrides}.items()]


def settings(algorithm, /, **overrides):
    """An algorithm's settings."""
    module = importlib.import_module(f"agents.{algorithm}")
    return load_settings(module.Settings, algorithm, "tiny", given(algorithm, **overrides))


def records(folder):
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]
