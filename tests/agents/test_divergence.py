"""A training that diverges says so at once, and names the last good checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.small_runs import given, make_small

from agents import ppo
from agents.__main__ import main
from agents.base.stopping import StopCallback


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def spoiled_in_the_second_step(monkeypatch):
    """The weights of a run become NaN in its second step."""
    begin, learn = StopCallback.on_step_begin, ppo.Learner.learn

    def spoil(model, step):
        if step == 1:
            with torch.no_grad():
                next(model.parameters())[0] = torch.nan

    def on_step_begin(self, args, state, control, model=None, **others):
        begin(self, args, state, control, **others)
        spoil(model, state.global_step)

    def learning(self, batch, step):
        figures = learn(self, batch, step)
        spoil(self.model, step)
        return figures

    monkeypatch.setattr(StopCallback, "on_step_begin", on_step_begin)
    monkeypatch.setattr(ppo.Learner, "learn", learning)


@pytest.mark.parametrize("name", ["sft", "grpo", "ppo"])
def test_the_last_checkpoint_is_from_before_the_divergence(name, model, tmp_path, capsys):
    more = {"traces": 4, "batch_size": 2, "micro_batch": 2} if name == "sft" else {}
    pairs = given(name, model=model, **more, save_steps=1)
    assert main([name, *pairs, "--runs", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    folder = tmp_path / name
    assert "the training diverged at step 2: the weight " in said
    assert f"the last good checkpoint is {folder}/trainer/checkpoint-1;" in said
    assert [path.name for path in folder.glob("trainer/checkpoint-*")] == ["checkpoint-1"]
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed" and "checkpoint-1" in status["error"]


def test_weights_that_overflow_while_sampling_are_said_too(model, tmp_path, capsys):
    pairs = given("grpo", model=model, learning_rate=1e38, allow_high_learning_rate=True)
    assert main(["grpo", *pairs, "--runs", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "log-probs are NaN" in said or "diverged at step" in said
    assert "no checkpoint was saved; start again with another name=" in said
