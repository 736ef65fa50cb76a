"""A run that is stopped at any pass goes on to the same episodes and the same curve."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from helpers import HELPERS, ROOT
from helpers.small_runs import given, make_small, records, settings
from helpers.stopped_passes import counted, same, train

from retool_env.rotation import open_names
from retool_env.transcript import read_transcripts

pytestmark = pytest.mark.usefixtures("one_thread")

BATCHES = {"steps": 4, "trl": {"generation_batch_size": 16}, "in_flight": 1}
"""Two batches of two optimizer steps each."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("model"))


def stopped_at_every_pass(name, chosen, passes, folder):
    """Compare a run that is stopped before each pass with one that is not."""
    whole, cut = folder / "whole", folder / "cut"
    with counted() as expected:
        assert train(name, chosen, whole)
    with counted() as sampled:
        for number in range(passes):
            assert not train(name, chosen, cut, resume=number > 0, stop=number)
        assert train(name, chosen, cut, resume=True)
    assert sampled == expected
    same(whole, cut)


def test_grpo_stopped_at_every_pass_samples_each_batch_once(model, tmp_path):
    # The checkpoint of step 3 lies inside the second batch, and step 2 has none.
    chosen = settings("grpo", model=model, save_steps=3, **BATCHES)
    stopped_at_every_pass("grpo", chosen, 4, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("save_steps", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "passes", "more"),
    [
        ("grpo", 8, {"micro_batch": 4}),
        ("grpo", 8, {"micro_batch": 4, "lora_rank": 2, "correction": "token", "kl": 0.1}),
        ("grpo", 8, {"trl": {"generation_batch_size": 16, "num_iterations": 2}, "steps": 8}),
        ("grpo", 4, {"tokens": 60, "correction": "geometric", "transcripts_every": 3}),
        ("grpo", 4, {"spare": 2.0, "mask_void": True}),
        ("dapo", 8, {"micro_batch": 4, "resample": 2}),
        ("reinforce_pp", 4, {}),
        ("gspo", 4, {}),
    ],
    ids=["grpo", "LoRA", "iterations", "tokens", "spare", "dapo", "reinforce_pp", "gspo"],
)
def test_every_algorithm_stopped_at_every_pass(name, passes, more, save_steps, model, tmp_path):
    chosen = settings(name, model=model, save_steps=save_steps, **{**BATCHES, **more})
    stopped_at_every_pass(name, chosen, passes, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("save_steps", [1, 2])
@pytest.mark.parametrize("more", [{}, {"lora_rank": 2, "correction": "token"}], ids=["", "LoRA"])
def test_ppo_stopped_at_every_pass(more, save_steps, model, tmp_path):
    more = {"steps": 2, "epochs": 2, "mini_batch": 4, "micro_batch": 2, **more}
    chosen = settings("ppo", model=model, save_steps=save_steps, in_flight=1, **more)
    stopped_at_every_pass("ppo", chosen, 16, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_signal_at_every_step_leaves_the_same_curve(name, model, tmp_path):
    more = BATCHES if name == "grpo" else {"steps": 4, "in_flight": 1}
    chosen = settings(name, model=model, **more)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with counted() as expected:
        train(name, chosen, whole)
    with counted() as sampled:
        for step in range(3):
            signalled = {"stop": step, "act": lambda: os.kill(os.getpid(), signal.SIGINT)}
            assert not train(name, chosen, cut, resume=step > 0, **signalled)
        assert train(name, chosen, cut, resume=True)
    assert sampled == expected
    same(whole, cut)


@pytest.mark.slow
def test_with_staleness_problems_and_numbers_of_episodes_are_the_same(model, tmp_path):
    chosen = settings("grpo", model=model, save_steps=1, staleness=1, **BATCHES)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train("grpo", chosen, whole)
    for number in range(4):
        assert not train("grpo", chosen, cut, resume=number > 0, stop=number)
    assert train("grpo", chosen, cut, resume=True)
    same(whole, cut, exact=False)


def killed(model, runs, number=None, processes=1, name="grpo", **more):
    """Run an algorithm in other processes, which are killed before a pass."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HELPERS.parent}", "OMP_NUM_THREADS": "1"}
    if number is not None:
        environment["KILL_AT"] = str(number)
    pairs = given(name, model=model, name="g", **more)
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes"]
        launch += [str(processes), "--config_file", str(ROOT / "agents/launch/cpu2_fsdp2.yaml")]
    algorithm = f"{HELPERS / 'stopped_passes.py'}:{'KilledPPO' if name == 'ppo' else 'Killed'}"
    launch += ["-m", "agents", algorithm, "--resume", "--runs", str(runs), "--preset", "tiny"]
    done = subprocess.run(
        [*launch, *pairs],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode == 0) == (number is None), done.stderr[-5000:]
    if number is not None:
        assert done.returncode == -signal.SIGKILL or "SIGKILL" in done.stderr, done.stderr[-5000:]
    return runs / "g"


@pytest.mark.slow
def test_sigkill_at_six_passes_of_real_processes(model, tmp_path):
    more = {"save_steps": 3, "micro_batch": 4, **BATCHES}
    for number in (1, 2, 3, 4, 5, 7):
        killed(model, tmp_path / "cut", number, **more)
    cut = killed(model, tmp_path / "cut", **more)
    same(killed(model, tmp_path / "whole", **more), cut)


def trained(folder):
    """The trained episodes of all processes, by the step that sampled them."""
    found = {}
    for name in open_names(folder):
        for transcript in read_transcripts(folder / name):
            episode = transcript.problem.id, transcript.completion_ids
            found.setdefault(transcript.trained_version, []).append(episode)
    return {step: sorted(episodes) for step, episodes in found.items()}


def problems(folder):
    return {step: [name for name, _ in each] for step, each in trained(folder).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_two_then_four_then_two_processes_train_on_the_same_problems(name, model, tmp_path):
    """The first two changes come at the beginning of a kept batch, which is divided anew."""
    more = {"name": name, "prompts": 4, "rollouts": 4, "save_steps": 2, "in_flight": 1}
    if name == "grpo":
        more |= {"steps": 6, "tokens": 200, "trl": {"generation_batch_size": 32}}
        kills = [(3, 2), (5, 4)]
    else:
        more |= {"steps": 6, "mini_batch": 16, "micro_batch": 4, "critic_warmup": 1}
        kills = [(2 * 4, 2), (4 * 4, 4)]
    whole = killed(model, tmp_path / "whole", processes=2, **more)
    for number, processes in kills:
        killed(model, tmp_path / "cut", number, processes, **more)
    cut = killed(model, tmp_path / "cut", processes=2, **more)
    assert problems(whole) == problems(cut)
    assert [r["step"] for r in records(whole)] == [r["step"] for r in records(cut)]
    one, other = trained(whole), trained(cut)
    for step in (0, 1, 2):  # sampled by two processes; four may have trained on them
        assert one.get(step) == other.get(step)
    # Which episodes of a batch a step gets depends on the number of processes.
    losses = [
        [r["loss" if name == "grpo" else "loss/policy"] for r in records(f)][:2]
        for f in (whole, cut)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-4)
    changes = json.loads((cut / "config.json").read_text())["changes"]
    assert [(c["setting"], c["from"], c["to"], c["at"]) for c in changes] == [
        ("processes", 2, 4, 2),
        ("processes", 4, 2, 4),
    ]
