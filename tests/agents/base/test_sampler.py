"""The policy of the setting `engine`, and runs of GRPO with engines besides the default."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT
from transformers import AutoModelForCausalLM

from agents import grpo
from agents.base import sampler as engine
from agents.base.config import begin_config
from agents.base.presets import load_settings
from agents.base.settings import SettingsError
from agents.models.tiny import make_checkpoint
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.transcript import check_transcript, read_transcripts


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("initial"), seed=1))


SMALL = {
    "name": "g",
    "steps": 3,
    "prompts": 2,
    "rollouts": 4,
    "micro_batch": 4,
    "save_steps": 1,
    "env.max_tokens": 60,
    "sandbox": {"name": "nsjail", "guests": 1},
}


def overrides(initial, **more):
    values = {"model": initial, **SMALL, **more}
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def settings(initial, **more):
    return load_settings(grpo.Settings, "grpo", "tiny", overrides(initial, **more))


@pytest.mark.parametrize(
    ("setting", "processes", "message"),
    [
        ("vllms", 1, "'vllms' is unknown; choose from transformers, vllm, or give the URLs"),
        ({"max_batch": 4}, 1, "None is unknown"),
        ("vllm", 2, "start `vllm serve` and give the URLs"),
    ],
)
def test_an_engine_that_is_unknown_or_does_not_suit_is_refused(setting, processes, message):
    with pytest.raises(SettingsError, match=message):
        engine.check_engine(setting, processes, 8)


@pytest.mark.parametrize("more", [{"at_update": "wait"}, {"weights": "adapter"}])
def test_shared_servers_that_wait_for_turns_allow_one_batch_ahead(more):
    for processes, staleness in ((1, 2), (2, 1)):
        _, arguments = engine.check_engine({"name": "http://h:1", **more}, processes, 8)
        engine.check_for_training(arguments, staleness)
    with pytest.raises(SettingsError, match="staleness=2 is too large for servers"):
        engine.check_for_training(arguments, 2)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("transformers", {"max_batch": 0}, "max_batch must be"),
        ("transformers", {"rows": 4}, "unexpected keyword argument 'rows'"),
        (
            "http://h:1",
            {"weights_folder": "w", "token_env": "NO_TOKEN"},
            "engine.token_env: the variable 'NO_TOKEN' is not set",
        ),
        ("http://h:0", {"weights_folder": "w"}, "not a URL of a server"),
        ("http://h:1", {}, "set engine.weights_folder"),
        ("http://h:1", {"weights": "adapter"}, "set engine.weights_folder"),
        ("http://h:1", {"weights": "delta"}, "set engine.weights_folder"),
        ("http://h:1", {"weights": "adapter", "weights_folder": "w"}, "this model has none"),
        ("http://h:1", {"weights": "mail"}, "must be files, delta, adapter, nccl or gloo"),
    ],
)
def test_wrong_arguments_of_a_policy_are_settings_errors(initial, name, arguments, message):
    model = AutoModelForCausalLM.from_pretrained(initial)
    with pytest.raises(SettingsError, match=message):
        engine.make_policy(name, arguments, model, object(), initial, 1.0, True)


def test_a_model_that_is_sampled_from_while_it_is_trained_is_another(initial):
    trained = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float64)
    policy = engine.make_policy("transformers", {"max_batch": 3}, trained, None, initial, 0.9, True)
    assert isinstance(policy, TransformersPolicy) and policy.model is not trained
    assert (policy.max_batch, policy.temperature) == (3, 0.9)
    copy, original = next(policy.model.parameters()), next(trained.parameters())
    assert copy.dtype == original.dtype and torch.equal(copy, original)
    assert not copy.requires_grad


def test_a_run_that_samples_ahead_keeps_its_records_and_goes_on(initial, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    grpo.train(settings(initial, staleness=1), whole)
    transcripts = list(read_transcripts(whole / "transcripts.jsonl"))
    lags = [(t.trained_version, t.trained_version - t.weight_version) for t in transcripts]
    assert set(lags) == {(0, 0), (1, 1), (2, 1)} and len(lags) == 3 * 8

    def stop(trainer, *_):
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt

    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        original = grpo.EngineGRPOTrainer.training_step
        patch.setattr(
            grpo.EngineGRPOTrainer,
            "training_step",
            lambda self, *args, **kw: (stop(self), original(self, *args, **kw))[1],
        )
        with pytest.raises(KeyboardInterrupt):
            grpo.train(settings(initial, staleness=1), cut)
    grpo.train(settings(initial, staleness=1), cut, resume=True)
    again = list(read_transcripts(cut / "transcripts.jsonl"))
    # The batch after a resumption is sampled with the newest weights; no episode is kept twice.
    lags = [(t.trained_version, t.trained_version - t.weight_version) for t in again]
    assert set(lags) == {(0, 0), (1, 1), (2, 0)} and len(lags) == 3 * 8
    assert [t.problem.id for t in again] == [t.problem.id for t in transcripts]


@pytest.mark.slow
def test_two_processes_keep_one_run_with_transcripts_of_each(initial, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = ["-m", "agents", "grpo", "--preset", "tiny", "--runs", str(tmp_path), "--resume"]

    def run(steps):
        return subprocess.run(
            [*launch, *command, *overrides(initial, steps=steps, prompts=4)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=250,
        )

    # A run that was stopped after its first step, and had already written records of the second.
    first = run(1)
    assert first.returncode == 0, first.stderr[-3000:]
    folder = tmp_path / "g"
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["steps"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "done").unlink()
    for name in ("transcripts.jsonl", "transcripts-1.jsonl"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        later = [json.dumps({**json.loads(line), "trained_version": 1}) + "\n" for line in lines]
        (folder / name).write_text("".join(lines + later))
    second = run(2)
    assert second.returncode == 0, second.stderr[-6000:]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [record["step"] for record in records] == [1, 2]
    seen = []
    for name in ("transcripts.jsonl", "transcripts-1.jsonl"):
        transcripts = list(read_transcripts(folder / name))
        assert len(transcripts) == 2 * 8
        for transcript in transcripts:
            check_transcript(transcript)
        seen.append({t.problem.id for t in transcripts})
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 2 * 4
    assert AutoModelForCausalLM.from_pretrained(folder / "checkpoint").num_parameters() > 1000
    assert second.stdout.count("rl: 2/2") == 1  # only the first process prints


def test_a_run_has_a_folder_of_weights_of_its_own_and_empties_it_when_it_goes_on(tmp_path):
    weights = tmp_path / "weights"
    runs = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        begin_config(tmp_path / name, "grpo", {}, 1)
        run = SimpleNamespace(folder=tmp_path / name, main=True)
        made = engine.own_weights_folder(run, {"weights_folder": str(weights), "attempts": 3})
        own = Path(made["weights_folder"])
        assert own.parent == weights and made["attempts"] == 3
        (own / "4-0123").mkdir(parents=True)  # a killed process leaves it
        runs.append((run, own))
    (run, own), (_, kept) = runs
    again = engine.own_weights_folder(run, {"weights_folder": str(weights)})
    assert again == {"weights_folder": str(own)} and own != kept
    assert not own.exists() and (kept / "4-0123").exists()
    assert engine.own_weights_folder(run, {"attempts": 3}) == {"attempts": 3}


def test_a_run_of_an_older_version_uses_the_common_folder_and_empties_nothing(tmp_path):
    (tmp_path / "config.json").write_text('{"settings": {}}')
    weights = tmp_path / "weights"
    (weights / "4-0123").mkdir(parents=True)
    run = SimpleNamespace(folder=tmp_path, main=True)
    made = engine.own_weights_folder(run, {"weights_folder": str(weights)})
    assert made == {"weights_folder": str(weights)} and (weights / "4-0123").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prompts": 3, "rollouts": 8, "micro_batch": 4}, "prompts=3 problems"),
        (
            {"prompts": 2, "rollouts": 4, "micro_batch": 8},
            "micro_batch=8 does not divide: take micro_batch=4",
        ),
        ({"staleness": -1}, "staleness must be at least 0"),
        ({"oversample": 0.5}, "oversample must be at least 1"),
        ({"transcripts_every": 0}, "transcripts_every must be at least 1"),
    ],
)
def test_batches_that_can_not_be_shared_out_are_refused(initial, more, message):
    with pytest.raises(SettingsError, match=message):
        grpo.check_batch(settings(initial, **more), 2)
