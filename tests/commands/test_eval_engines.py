"""`retool eval --engine`: the same evaluation by transformers, vLLM, or servers."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.vllm_models import CALLS, make_writer, needs_vllm

from agents.models.tiny import make_checkpoint, make_tokenizer
from retool_env.cli import main
from retool_env.evaluation import read_episodes
from retool_env.evaluation.recover.records import read_arms
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
        (["--engine-arg", "model=m"], "--engine-arg model can't be set: give --model"),
        (["--engine-arg", "temperature=0"], "temperature can't be set: give --temperature"),
        (["--engine-arg", "top_p=0.5"], "top_p can't be set: give --top-p"),
        (["--engine", "vllm", "--engine-arg", "dtype=half"], "dtype can't be set: give --dtype"),
        (["--engine", "http://h:1", "--engine-arg", "urls=u"], "urls can't be set: give --engine"),
        (["--dtype", "float99"], "--dtype 'float99' is unknown: choose float32"),
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


@needs_vllm
def test_vllm_continues_episodes_with_faults(tmp_path, monkeypatch, sandbox):
    """The tiny model has learned to solve `CALLS`, so that its episodes have calls to fork."""
    monkeypatch.chdir(tmp_path)
    tokenizer = make_tokenizer()
    make_writer(tokenizer, sandbox).save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    suite = SimpleNamespace(problems=CALLS[:4], hash="0", kinds=("gone", "slow"), rates=(0.0, 1.0))
    suite.seed, suite.fork_call = 0, lambda problem, parent: 1
    module = "retool_env.evaluation.recover"
    monkeypatch.setattr(f"{module}.suite.load_suite", lambda name, part, quick: suite)
    monkeypatch.setattr(f"{module}.page.draw", lambda results: {})
    monkeypatch.setattr("retool_env.interpreter.open_sandbox", lambda *_: nullcontext(sandbox))
    options = ["--engine", "vllm", "--engine-arg", "enforce_eager=true", "--dtype", "float32"]
    options += ["--engine-arg", "gpu_memory_utilization=0.1", "--max-tokens", "200", "--quick"]
    options += ["--temperature", "0", "prompt_template={query}\n"]
    command = ["recover", "--env", "ReTool-Arithmetic-v0", "--model", "tiny", "--out", "found"]
    assert main([*command, *options]) == 0
    results = json.loads(Path("found/results.json").read_text())
    found = {figure["key"]: figure["mean"] for figure in results["figures"]}
    assert found["dose/0/accuracy"] == found["control/gone"] == 1.0
    assert found["effect/slow"] == 0.0 and results["counts"]["prefixes"]["fork"] == 8
    arms = {record.key: record.transcript for record in read_arms("found")}
    for key, fork in arms.items():
        if key[1] in ("control", "slow"):
            parent = arms["dose", "0", key[2], None, 0, key[3]]
            assert fork.completion_ids == parent.completion_ids
