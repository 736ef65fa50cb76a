"""Damaged evaluations along a training are named, and not overwritten."""

from __future__ import annotations

import json
import os

import pytest

from agents.models.tiny import make_model
from benchmarks import along

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SIZE |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
ENV = {"id": "ReTool-Arithmetic-v0", "interpreter": False, "max_tokens": 4}


@pytest.fixture
def run(tmp_path):
    """A run with one exported model, evaluated."""
    model, tokenizer = make_model(0, **SIZE)
    for folder in ("first", "checkpoints/2"):
        model.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    settings = {"model": str(tmp_path / "first"), "dtype": "float32", "env": ENV}
    config = {"settings": {**settings, "sandbox": "nsjail"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert evaluate(tmp_path) == 0
    return tmp_path


def evaluate(run):
    return along.main([str(run), "--problems", "2", "--k", "2"])


def test_damaged_evaluations_are_named(run, capsys):
    capsys.readouterr()
    lines = (run / "along" / "2.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 4
    whole = {"along/2.jsonl": "".join(lines)}
    whole |= {name: (run / name).read_text() for name in ("along/evaluation.json", "config.json")}
    damages = {
        "along/2.jsonl": {
            "": "it holds 0 of 4 episodes",
            lines[0] + lines[1]: "it holds 2 of 4 episodes",
            lines[0] + lines[1][:50]: ", line 2: not a transcript: not JSON",
            lines[0] + "[]\n": ", line 2: not a transcript: not a JSON object",
            lines[0] + '{"spans": 3}\n': ", line 2: not a transcript: ",
        },
        "along/evaluation.json": {
            "": "it is empty",
            "[]": "not a JSON object",
            '{"problems"': "not JSON",
            "[" * 100_000: "nested too deeply",
        },
        "config.json": {
            "null": "not a JSON object",
            '{"settings": {"model": 3}}': 'settings: "model" is 3',
            '{"settings": {"model": "m"}}': 'settings: it lacks "dtype"',
        },
    }
    for name, texts in damages.items():
        for text, damage in texts.items():
            (run / name).write_text(text)
            assert evaluate(run) == 2
            message = capsys.readouterr().err
            # A progress bar may precede the message.
            assert f"along: {run / name}" in message and damage in message, message
            assert "Restore it, or " in message and (run / name).read_text() == text
        (run / name).unlink()
        os.mkfifo(run / name)
        assert evaluate(run) == 2
        assert f"{run / name}: it is a named pipe, not a file" in capsys.readouterr().err
        (run / name).unlink()
        (run / name).write_text(whole[name])
        assert evaluate(run) == 0
        capsys.readouterr()
