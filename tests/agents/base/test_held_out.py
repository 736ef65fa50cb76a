"""A run evaluates its model on held-out problems, and trains the same as without evaluations."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from helpers.small_runs import given, make_small, records, settings
from transformers import AutoModelForCausalLM

from agents import grpo, ppo
from agents.base.held_out import held_out_env, held_out_task
from agents.base.settings import SettingsError
from retool_env.integrations.trl import EngineRollouts
from retool_env.rules import Rules
from retool_env.training.rollouts import Rollouts
from retool_env.transcript import check_transcript, read_transcripts

ARITHMETIC = {"id": "ReTool-Arithmetic-v0", "max_tokens": 12, "difficulty": 4, "interpreter": False}
EVALUATED = {"eval_every": 2, "eval_problems": 3, "eval_k": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("model"))


def weights(folder):
    return list(AutoModelForCausalLM.from_pretrained(folder).parameters())


def evaluated(folder):
    return [record["step"] for record in records(folder) if "eval/accuracy" in record]


def ids(folder, step):
    path = folder / f"eval-{step}.jsonl"
    return [(t.problem.id, t.completion_ids) for t in read_transcripts(path)]


@pytest.mark.parametrize("module", [grpo, ppo], ids=["grpo", "ppo"])
def test_the_trained_weights_are_bitwise_those_of_a_run_without_evaluations(
    module, model, tmp_path
):
    name = module.__name__.removeprefix("agents.")
    # One sequence in a batch: rounding does not depend on the times of requests.
    made = {"model": model, "sample_batch": 1, "steps": 3}
    without = module.train(settings(name, **made), tmp_path / "without")
    folder = tmp_path / "with"
    checkpoint = module.train(settings(name, **made, **EVALUATED), folder)
    for one, other in zip(weights(without), weights(checkpoint), strict=True):
        assert torch.equal(one, other)
    assert not all(map(torch.equal, weights(checkpoint), weights(model)))
    assert evaluated(folder) == [0, 2, 3]
    assert sorted(r["step"] for r in records(folder)) == [0, 1, 2, 2, 3, 3]
    assert not list((tmp_path / "without").glob("eval-*"))
    for step in (0, 2, 3):
        transcripts = list(read_transcripts(folder / f"eval-{step}.jsonl"))
        assert [t.problem.id for t in transcripts] == [
            t.problem.id for t in transcripts[::2] for _ in range(2)
        ]
        assert len(transcripts) == 6 and "/test-" in transcripts[0].problem.id
        for transcript in transcripts:
            check_transcript(transcript)
            assert transcript.trained_version is None
            assert {v for span in transcript.spans for v, _ in span.weights} == {step}
    [record] = [r for r in records(folder) if r["step"] == 2 and "eval/failed" in r]
    assert record["eval/failed"] == 0.0 and record["eval/code_ratio"] == 0.0
    assert 0 <= record["eval/void_turns"] <= 1 and record["eval/seconds"] > 0


def test_a_stopped_run_evaluates_at_the_same_steps_and_none_twice(model, tmp_path, monkeypatch):
    made = {"model": model, "sample_batch": 1, "steps": 4, "save_steps": 1, **EVALUATED}
    grpo.train(settings("grpo", **made), tmp_path / "whole")
    original, evaluations = EngineRollouts.__call__, []
    evaluate = Rollouts.evaluate

    def counting(self, step, *more):
        evaluations.append(step.number)
        return evaluate(self, step, *more)

    def stopping(self, prompts, trainer):
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt
        return original(self, prompts, trainer)

    monkeypatch.setattr(Rollouts, "evaluate", counting)
    with monkeypatch.context() as patch:
        patch.setattr(EngineRollouts, "__call__", stopping)
        with pytest.raises(KeyboardInterrupt):
            grpo.train(settings("grpo", **made), tmp_path / "cut")
    assert evaluations == [0, 2]
    grpo.train(settings("grpo", **made), tmp_path / "cut", resume=True)
    assert evaluations == [0, 2, 4]
    for step in (0, 2, 4):
        assert ids(tmp_path / "whole", step) == ids(tmp_path / "cut", step)
    assert evaluated(tmp_path / "cut") == evaluated(tmp_path / "whole") == [0, 2, 4]


def test_evaluations_after_the_checkpoint_are_dropped_and_made_again(model, tmp_path, monkeypatch):
    made = {"model": model, "steps": 4, "save_steps": 1, **EVALUATED, "eval_every": 1}
    folder = tmp_path / "run"
    grpo.train(settings("grpo", **made), folder)
    (folder / "done").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    later = [line for line in lines if json.loads(line)["step"] == 4 and "eval/failed" in line]
    (folder / "metrics.jsonl").write_text(
        "".join(f"{line}\n" for line in lines if line not in later)
    )
    (folder / "eval-5.jsonl").write_text("of a step that the run has not reached\n")
    before = ids(folder, 4)
    (folder / "eval-4.jsonl").unlink()
    grpo.train(settings("grpo", **made), folder, resume=True)  # only the last evaluation is missing
    assert evaluated(folder) == [0, 1, 2, 3, 4] and len(ids(folder, 4)) == len(before)
    assert not (folder / "eval-5.jsonl").exists()


def test_the_test_split_is_held_out_and_another_environment_keeps_the_rules():
    env = {**ARITHMETIC, "split": "train"}
    assert held_out_env(env, {}) == {**ARITHMETIC, "split": "test"}
    assert held_out_env(env, {"difficulty": 6, "max_tokens": 20}) == {
        **ARITHMETIC,
        "difficulty": 6,
        "max_tokens": 20,
        "split": "test",
    }
    faults = {"rate": 0.5}
    assert held_out_env({**env, "faults": {"rate": 1}}, {}) == {**ARITHMETIC, "split": "test"}
    assert held_out_env({**env, "faults": {"seed": 1}}, {"faults": faults})["faults"] == faults
    other = {"id": "ReTool-AIME24-v0", "max_tokens": 12, "interpreter": False}
    assert held_out_env(env, {"id": "ReTool-AIME24-v0"}) == other
    file = {"id": "ReTool-JSONL-v0", "path": "a.jsonl"}
    assert held_out_env(file, {"path": "b.jsonl"}) == {**file, "path": "b.jsonl"}


@pytest.mark.parametrize(
    ("env", "cause"),
    [
        ({"id": "ReTool-DAPO-v0"}, "ReTool-DAPO-v0, which has no split"),
        ({"id": "ReTool-GSM8K-v0", "path": "mine.jsonl"}, "its own file"),
    ],
)
def test_without_held_out_problems_a_run_is_refused(env, cause):
    with pytest.raises(SettingsError, match=rf"{cause}.* eval_env\.path .* eval_every=0"):
        held_out_env(env, {"max_tokens": 100})


def test_a_wrong_setting_is_refused_before_there_is_a_folder(model, tmp_path):
    for wrong, message in (
        ({"eval_every": -1}, "eval_every must be at least 0"),
        ({"eval_every": 2, "eval_k": 0}, "eval_k must be at least 1"),
        ({"eval_env": {"difficulty": 2}}, "eval_env has no effect without eval_every"),
        ({"eval_every": 2, "eval_env": {"dificulty": 2}}, "eval_env: unknown setting"),
        ({"eval_every": 2, "eval_env": {"interpreter": True}}, "needs a sandbox"),
        ({"eval_every": 2, "eval_env": {"id": "ReTool-None-v0"}}, "eval_env: no environment"),
    ):
        with pytest.raises(SettingsError, match=message):
            grpo.train(settings("grpo", model=model, **wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert held_out_task(settings("grpo", model=model), Rules()) is None


@pytest.mark.slow
def test_two_processes_share_the_episodes_of_an_evaluation(model, tmp_path):
    made = {"eval_every": 1, "eval_problems": 3, "eval_k": 1, "sample_batch": 1, "steps": 1}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, algorithm, command in (
        ("one", "grpo", [sys.executable]),
        ("two", "grpo", launch),
        ("ppo", "ppo", launch),
    ):
        more = {"name": name, "model": model, **made}
        more |= {"micro_batch": 4, **({"critic_warmup": 0} if algorithm == "ppo" else {})}
        pairs = given(algorithm, **more)
        ran = subprocess.run(
            [*command, "-m", "agents", algorithm, "--runs", str(tmp_path), *pairs],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        assert evaluated(tmp_path / name) == [0, 1]
    assert ids(tmp_path / "one", 0) == ids(tmp_path / "two", 0) == ids(tmp_path / "ppo", 0)
    assert len(ids(tmp_path / "two", 1)) == 3
