"""A run with more steps goes on like a run that was planned with them from the start."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch
from helpers.small_runs import given, make_small, records, settings
from transformers import AutoModelForCausalLM

from agents import dapo, grpo, ppo, rft, sft
from agents.__main__ import main
from agents.base import session
from agents.base.selection import chosen_ids
from agents.base.settings import SettingsError
from retool_env.problems import Problem, ProblemList
from retool_env.rules import Rules
from retool_env.transcript import Span, StopReason, Transcript, read_transcripts, write_transcripts

pytestmark = pytest.mark.usefixtures("one_thread")

SFT = {"traces": 24, "batch_size": 8, "env.interpreter": False, "env.max_tokens": 60}
CONSTANT = {"logging_steps": 1, "lr_scheduler_type": "constant", "lr_scheduler_kwargs": None}
CONSTANT |= {"warmup_steps": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("model"))


def weights(folder):
    return list(AutoModelForCausalLM.from_pretrained(folder).parameters())


def figures(folder):
    """The log, without times and without figures that depend on the number of steps."""
    # An epoch of GRPO is all of its steps.
    timed = ("seconds", "rollout/seconds", "rollout/waited", "step_time", "epoch", "num_tokens")
    return [
        {name: value for name, value in record.items() if name not in timed}
        for record in records(folder)
    ]


def same_run(model, one, other):
    """The same weights, bit for bit, which have moved, the same figures and the same episodes."""
    moved = 0.0
    each = (weights(folder) for folder in (model, one / "checkpoint", other / "checkpoint"))
    for start, a, b in zip(*each, strict=True):
        assert torch.equal(a, b)
        moved = max(moved, (a - start).abs().max().item())
    assert moved > 1e-4
    assert figures(one) == figures(other)
    paths = [folder / "transcripts.jsonl" for folder in (one, other)]
    if paths[0].exists():
        a, b = (list(read_transcripts(path)) for path in paths)
        assert [t.completion_ids for t in a] == [t.completion_ids for t in b]


@pytest.mark.some(1)
@pytest.mark.parametrize(
    ("module", "more"),
    [
        (grpo, {}),
        (grpo, {"save_steps": 2, "lora_rank": 2}),
        pytest.param(dapo, {}, marks=pytest.mark.slow),
        (ppo, {}),
        (ppo, {"save_steps": 2, "lora_rank": 2}),
    ],
    ids=["grpo", "grpo, LoRA", "dapo", "ppo", "ppo, LoRA"],
)
def test_a_finished_run_goes_on_to_what_a_longer_one_comes_to(module, more, model, tmp_path):
    name = module.__name__.removeprefix("agents.")
    run, whole = tmp_path / "run", tmp_path / "whole"
    more = {"model": model, "in_flight": 1, **more}  # the rounding hangs on what shares a batch
    few, many = (settings(name, steps=steps, **more) for steps in (3, 5))
    module.train(few, run)
    assert module.train(few, run, resume=True) == run / "checkpoint"
    assert [record["step"] for record in records(run)] == [1, 2, 3]
    before = (run / "checkpoint" / "model.safetensors").read_bytes()
    module.train(many, run, resume=True)
    assert (run / "checkpoint" / "model.safetensors").read_bytes() != before
    assert (run / "done").exists()
    module.train(many, whole)
    same_run(model, run, whole)
    config = json.loads((run / "config.json").read_text())
    assert config["settings"] == json.loads((whole / "config.json").read_text())["settings"]
    [change] = config["changes"]
    assert change.pop("versions") == config["versions"] and change.pop("time")
    assert change == {"setting": "steps", "from": 3, "to": 5, "at": 3}


def test_more_epochs_at_a_constant_rate_come_to_what_a_longer_cold_start_does(model, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    few, many = (
        settings("sft", model=model, **SFT, epochs=epochs, trl=CONSTANT) for epochs in (1.5, 3)
    )
    sft.train(few, run)
    assert len(records(run)) == 5
    sft.train(many, run, resume=True)
    sft.train(many, whole)
    same_run(model, run, whole)
    [change] = json.loads((run / "config.json").read_text())["changes"]
    assert (change["setting"], change["from"], change["to"]) == ("epochs", 1.5, 3)
    assert change["at"] == pytest.approx(5 / 3)
    with pytest.raises(
        SettingsError, match=r"has already done epochs=3.0.*epochs=2.0: set epochs to 3.0"
    ):
        sft.train(settings("sft", model=model, **SFT, epochs=2, trl=CONSTANT), run, resume=True)


def test_where_the_rate_depends_on_the_number_of_steps_it_follows_the_new_one(
    model, tmp_path, capsys
):
    """The run says so, and the log shows the rate of step 4 of 6, not of 3."""
    more = {"model": model, **SFT, "trl": {"logging_steps": 1, "lr_scheduler_type": "linear"}}
    more["trl"] |= {"lr_scheduler_kwargs": None, "warmup_steps": 0}
    run = tmp_path / "run"
    sft.train(settings("sft", **more, epochs=1), run)
    assert "schedule" not in capsys.readouterr().out
    sft.train(settings("sft", **more, epochs=2), run, resume=True)
    said = "changes from 0 to 0.00075: from here on the schedule (linear) has 6 steps instead of 3"
    assert said in capsys.readouterr().out
    rates = [record["learning_rate"] for record in records(run)]
    peak = rates[0]
    shares = [rate / peak for rate in rates]
    assert shares == pytest.approx([1, 2 / 3, 1 / 3, 1 / 2, 1 / 3, 1 / 6])


def test_more_rounds_of_rft_sample_on(model, tmp_path, monkeypatch):
    rules = Rules(interpreter=False, max_tokens=2, prompt_template="{query}")
    problems = ProblemList(Problem(str(i), f"Compute {i}", "1") for i in range(6))
    monkeypatch.setattr(session, "find_task", lambda env: (rules, problems))
    monkeypatch.setattr(rft, "choose", lambda groups, keep: [t for g in groups for t in g][:4])
    monkeypatch.setattr(rft, "distinct", list)
    monkeypatch.setattr(sft, "read_traces", lambda path, _: list(read_transcripts(path)))
    tuning = {"epochs": 1, "batch_size": 2, "trl": {"logging_steps": 1}}

    def rounds(number):
        more = {"model": model, "problems": 3, "k": 2, "sft": tuning}
        return settings("rft", rounds=number, **more)

    run, whole = tmp_path / "run", tmp_path / "whole"
    rft.train(rounds(1), run)
    first = (run / "stages" / "round-1" / "metrics.jsonl").stat()
    rft.train(rounds(2), run, resume=True)
    assert (run / "stages" / "round-1" / "metrics.jsonl").stat() == first
    rft.train(rounds(2), whole)
    same_run(model, run, whole)
    [change] = json.loads((run / "config.json").read_text())["changes"]
    assert [change[name] for name in ("setting", "from", "to", "at")] == ["rounds", 1, 2, 1]
    with pytest.raises(SettingsError, match=r"has already done rounds=2.*rounds=1"):
        rft.train(rounds(1), run, resume=True)


@pytest.mark.parametrize("module", [grpo, ppo], ids=["grpo", "ppo"])
def test_only_the_number_of_steps_may_change_and_to_no_less_than_was_done(module, model, tmp_path):
    name, run = module.__name__.removeprefix("agents."), tmp_path / "run"
    module.train(settings(name, model=model), run)
    before = (run / "config.json").read_text()
    for others, said in (
        ({"steps": 3}, r"has already done steps=4.*steps=3: set steps to 4 or more"),
        ({"steps": 8, "learning_rate": 1e-5}, r"other settings \(learning_rate\)"),
        ({"learning_rate": 1e-5}, r"other settings \(learning_rate\)"),
    ):
        with pytest.raises(SettingsError, match=said):
            module.train(settings(name, model=model, **others), run, resume=True)
    assert (run / "config.json").read_text() == before and (run / "done").exists()


def test_a_run_that_was_stopped_may_get_other_steps_down_to_what_it_has_done(
    model, tmp_path, monkeypatch
):
    """Whoever gave it too many is not bound to them."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    more = {"model": model, "in_flight": 1}
    grpo.train(settings("grpo", **more, steps=3), run)
    log = grpo.RunLogger.on_log

    def telling(self, *args, **kwargs):
        log(self, *args, **kwargs)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(grpo.RunLogger, "on_log", telling)
        grpo.train(settings("grpo", **more, steps=400), run, resume=True)
    # In its fifth step: its rollouts are left, or its update is ended.
    assert len(records(run)) in (4, 5) and not (run / "done").exists()
    grpo.train(settings("grpo", **more, steps=6), run, resume=True)
    grpo.train(settings("grpo", **more, steps=6), whole)
    same_run(model, run, whole)
    changes = json.loads((run / "config.json").read_text())["changes"]
    assert [(change["from"], change["to"]) for change in changes] == [(3, 400), (400, 6)]


def test_a_finished_run_without_its_checkpoints_keeps_what_it_has(model, tmp_path):
    """To begin anew would drop all its records."""
    run = tmp_path / "run"
    grpo.train(settings("grpo", model=model), run)
    shutil.rmtree(run / "trainer")
    kept = {path: path.read_bytes() for path in run.glob("*.jsonl")}
    with pytest.raises(
        SettingsError, match=r"is finished, and .*trainer holds no checkpoint.*model="
    ):
        grpo.train(settings("grpo", model=model, steps=6), run, resume=True)
    assert {path: path.read_bytes() for path in run.glob("*.jsonl")} == kept
    assert (run / "done").exists()
    assert grpo.train(settings("grpo", model=model), run, resume=True) == run / "checkpoint"


def test_the_command_says_what_it_refuses(model, tmp_path, capsys):
    command = ["grpo", "--preset", "tiny", "--runs", str(tmp_path)]

    def run(*more, **values):
        return main([*command, *given("grpo", model=model, name="x", **values), *more])

    assert run(steps=2) == 0
    capsys.readouterr()
    assert run("--resume", steps=1) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "has already done steps=2" in said
    assert run("--resume", steps=3) == 0
    assert [record["step"] for record in records(tmp_path / "x")] == [1, 2, 3]


def pass_rates_of(path, right):
    for name, each in right.items():
        write_transcripts(
            path,
            [
                Transcript(
                    Problem(name, "?", "1"),
                    (Span("prompt", "?"), Span("model", "<answer>1</answer>")),
                    stop_reason=StopReason.ANSWERED,
                    correct=bool(one),
                )
                for one in each
            ],
        )
    return str(path)


def test_a_curriculum_keeps_its_order_and_begins_again_with_what_is_added(tmp_path):
    source = ProblemList(Problem(str(i), f"{i} + 1?", str(i + 1)) for i in range(6))
    path = pass_rates_of(tmp_path / "t.jsonl", {"1": [0, 1, 0, 0], "3": [1, 0], "4": [1, 1, 0, 1]})
    first = chosen_ids(source, 6, 3, path)
    longer = chosen_ids(source, 12, 3, path, [6])
    assert first == list("443311") and longer == first * 2
    assert chosen_ids(source, 15, 3, path, [6, 12])[:12] == longer
    assert chosen_ids(source, 5, 3, path, [12]) == chosen_ids(source, 12, 3, path)[:5]
    assert chosen_ids(source, 12, 3, path) != longer
