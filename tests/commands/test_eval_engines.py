"""`retool eval --engine`: the same evaluation by transformers, vLLM, or servers."""

import json
from pathlib import Path

import pytest
from helpers.vllm_models import needs_vllm

from agents.models.tiny import make_checkpoint, make_tokenizer
from retool_env.cli import main
from retool_env.evaluation import read_episodes
from retool_env.rollout import ScriptedPolicy, named

COMMAND = ["eval", "--env", "ReTool-Arithmetic-v0", "--text-only", "--problems", "2", "--k", "2"]


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(make_checkpoint(tmp_path / "tiny", seed=0))


@pytest.fixture
def made(monkeypatch):
    """The settings that policies were made with, and whether they were closed."""
    made = []

    class Policy(ScriptedPolicy):
        def close(self):
            made.append("closed")

    def maker(name):
        def make(model, **settings):
            made.append((name, model, settings))
            return Policy(lambda _: "<answer>1</answer>", make_tokenizer())

        return make

    for name in ("vllm", "vllm_server"):
        monkeypatch.setitem(named.POLICIES, name, maker(name))
    return made


def test_an_engine_gets_its_arguments_and_is_closed(checkpoint, made):
    options = ["--engine", "vllm", "--engine-arg", "tensor_parallel_size=2"]
    options += ["--engine-arg", "enforce_eager=true", "--dtype", "float32", "--top-p", "0.5"]
    assert main([*COMMAND, "--model", checkpoint, "--out", "found", *options]) == 0
    [(name, model, settings), closed] = made
    assert (name, model.name, closed) == ("vllm", checkpoint, "closed")
    engine = {"tensor_parallel_size": 2, "enforce_eager": True, "dtype": "float32"}
    assert settings == {"temperature": 1.0, "top_p": 0.5, **engine}
    assert json.loads(Path("found/eval.json").read_text())["sampling"]["engine"] == "vllm"


def test_several_servers_are_asked_with_the_models_own_tokenizer(checkpoint, made):
    urls = "http://a:8000,http://b:8000"
    options = ["--engine", urls, "--engine-arg", "timeout=5"]
    assert main([*COMMAND, "--model", checkpoint, "--out", "found", *options]) == 0
    [(name, model, settings), _] = made
    assert name == "vllm_server" and settings["urls"] == urls and settings["timeout"] == 5
    assert len(model.tokenizer) == len(make_tokenizer())
    assert len(list(read_episodes("found"))) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "vlm"], "--engine 'vlm' is unknown: choose transformers, vllm, or the URLs"),
        (["--engine", "openai"], "--engine 'openai' is unknown"),
        (["--engine", "vllm", "--api", "http://h/v1"], "are for local models: leave --api out"),
        (["--engine-arg", "max_batch"], "max_batch"),
        (["--engine-arg", "no_such=1"], "no_such"),
    ],
)
def test_a_wrong_engine_is_named(options, words, checkpoint, capsys):
    assert main([*COMMAND, "--model", checkpoint, *options]) == 1
    assert words in capsys.readouterr().err and not Path("runs").exists()


@needs_vllm
def test_vllm_evaluates_a_model(checkpoint, capsys):
    options = ["--engine", "vllm", "--engine-arg", "enforce_eager=true", "--dtype", "float32"]
    options += ["--engine-arg", "gpu_memory_utilization=0.1", "--max-tokens", "16"]
    assert main([*COMMAND, "--model", checkpoint, "--out", "found", *options]) == 0
    assert len(list(read_episodes("found"))) == 4
    assert "| tiny, text-only |" in capsys.readouterr().out
