"""Ctrl-C and SIGTERM: work in flight is ended or left, and a resumed run has the same curve."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from helpers import HELPERS, ROOT
from helpers.signals import status_of, told_at
from helpers.small_runs import given, make_small, records, settings
from helpers.stopped_passes import before_pass
from torch import distributed
from transformers import AutoModelForCausalLM

from agents import grpo, ppo, rft, sft
from agents.base import session
from agents.base import stopping as stops
from agents.base.run import RunLogger
from agents.base.session import Session
from agents.base.stopping import Stopped, Stopping
from agents.traces import scripted
from retool_env.problems import Problem, ProblemList
from retool_env.rules import Rules
from retool_env.training.rollouts import Rollouts, RolloutsAbandoned
from retool_env.transcript import read_transcripts

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{HELPERS.parent}", "OMP_NUM_THREADS": "1"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("model"))


def weights(folder):
    return list(AutoModelForCausalLM.from_pretrained(folder).parameters())


def same_weights(model, one, other):
    """The weights of both runs are equal, and differ from the initial weights."""
    moved = 0.0
    for start, a, b in zip(weights(model), weights(one), weights(other), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
        moved = max(moved, (a - start).abs().max().item())
    assert moved > 1e-4


def same_curve(one, other):
    names = ("step", "reward", "completions/mean_length", "entropy")
    for a, b in zip(records(one), records(other), strict=True):
        assert [a[name] for name in names] == pytest.approx([b[name] for name in names], rel=1e-4)
        assert a.get("num_tokens") == b.get("num_tokens")


def checkpoints(folder):
    return [path.name for path in (folder / "trainer").glob("checkpoint-*")]


def lines(path):
    return path.read_text().count("\n") if path.is_file() else 0


def start(name, algorithm, model, runs):
    """Start `python -m agents` in another process, with its output in a pipe."""
    command = [sys.executable, "-m", "agents", f"{HELPERS / 'stopped_runs.py'}:{algorithm}"]
    return subprocess.Popen(
        [*command, "--runs", str(runs), *given(name, model=model, name=name)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_ctrl_c_leaves_grpos_rollouts_and_it_goes_on_to_the_same_curve(model, tmp_path):
    """The signal comes in the third step, whose rollouts would never end."""
    folder = tmp_path / "grpo"
    process = start("grpo", "Sampling", model, tmp_path)
    try:
        while lines(folder / "metrics.jsonl") < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, said
    assert "stopping: " in said and "the same command with --resume goes on" in said
    assert checkpoints(folder) == ["checkpoint-2"]
    assert not (folder / "checkpoint").exists() and not (folder / "done").exists()
    assert len(list(read_transcripts(folder / "transcripts.jsonl"))) == 2 * 8
    resumed = grpo.train(settings("grpo", model=model, name="grpo"), folder, resume=True)
    whole = grpo.train(settings("grpo", model=model, name="grpo"), tmp_path / "whole")
    same_weights(model, whole, resumed)
    same_curve(tmp_path / "whole", folder)


def test_sigterm_ends_ppos_update_and_it_goes_on_to_the_same_curve(model, tmp_path):
    folder = tmp_path / "ppo"
    process = start("ppo", "Updating", model, tmp_path)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "the same command with --resume goes on" in said
    assert [record["step"] for record in records(folder)] == [1, 2]
    assert checkpoints(folder) == ["checkpoint-2"]
    resumed = ppo.train(settings("ppo", model=model, name="ppo"), folder, resume=True)
    whole = ppo.train(settings("ppo", model=model, name="ppo"), tmp_path / "whole")
    same_weights(model, whole, resumed)
    same_curve(tmp_path / "whole", folder)


def stop_rollouts(monkeypatch, version):
    """Stop the run while rollouts of these weights are in flight, which would never end."""
    sample = Rollouts.sample

    async def stuck(self, *given):
        if self.engine.policy.weight_version == version:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        return await sample(self, *given)

    monkeypatch.setattr(Rollouts, "sample", stuck)


def test_ppos_rollouts_are_left_too(model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_rollouts(patch, version=2)
        ppo.train(settings("ppo", model=model), tmp_path / "cut")
    assert checkpoints(tmp_path / "cut") == ["checkpoint-2"]
    resumed = ppo.train(settings("ppo", model=model), tmp_path / "cut", resume=True)
    same_weights(model, ppo.train(settings("ppo", model=model), tmp_path / "whole"), resumed)


def test_a_stop_in_the_first_rollouts_leaves_nothing_to_go_on_from(model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_rollouts(patch, version=0)
        grpo.train(settings("grpo", model=model, steps=1), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("checkpoint-*"))
    grpo.train(settings("grpo", model=model, steps=1), tmp_path / "run", resume=True)


@pytest.mark.slow
def test_one_of_two_processes_is_told_and_both_stop(tmp_path):
    make_small(tmp_path / "model")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ran = subprocess.run(
        [*command, str(HELPERS / "stopped_runs.py"), str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    both = {"grpo": [signal.SIGINT], "ppo": [signal.SIGTERM]}
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [both] * 2
    for name, step in (("grpo", 1), ("ppo", 2)):
        assert checkpoints(tmp_path / name) == [f"checkpoint-{step}"]
        assert [record["step"] for record in records(tmp_path / name)] == list(range(1, step + 1))


def test_a_stopped_cold_start_goes_on_to_the_same_weights(model, tmp_path, monkeypatch):
    more = {"model": model, "traces": 24, "epochs": 3, "batch_size": 8, "env.interpreter": False}
    few = settings("sft", **more, **{"env.max_tokens": 60}, trl={"logging_steps": 1})
    log = RunLogger.on_log

    def telling(self, args, state, control, **kwargs):
        log(self, args, state, control, **kwargs)
        if state.global_step == 4:  # in the middle of the second epoch
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunLogger, "on_log", telling)
        sft.train(few, tmp_path / "cut")
    [point] = (tmp_path / "cut" / "trainer").glob("checkpoint-*")
    assert point.name == "checkpoint-5"  # the stop comes at the end of a step
    resumed = sft.train(few, tmp_path / "cut", resume=True)
    whole = sft.train(few, tmp_path / "whole")
    same_weights(model, whole, resumed)
    assert [r["loss"] for r in records(tmp_path / "cut")] == pytest.approx(
        [r["loss"] for r in records(tmp_path / "whole")], rel=1e-4
    )


def test_an_error_of_a_callback_does_not_blame_the_checkpoint(model, tmp_path, monkeypatch):
    few = {"model": model, "save_steps": 1}
    grpo.train(settings("grpo", steps=1, **few), tmp_path / "run")

    def log_in(self, *_, **__):
        raise RuntimeError("no API key")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=r"^no API key$"):
        patch.setattr(RunLogger, "on_train_begin", log_in)
        grpo.train(settings("grpo", steps=2, **few), tmp_path / "run", resume=True)
    grpo.train(settings("grpo", steps=2, **few), tmp_path / "run", resume=True)
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2]


def test_what_a_stopped_round_of_rft_had_sampled_is_not_sampled_again(model, tmp_path, monkeypatch):
    rules = Rules(interpreter=False, max_tokens=1, prompt_template="{query}")
    problems = ProblemList(Problem(str(i), f"Compute {i}", "1") for i in range(4))
    made = settings("rft", model=model, problems=4, k=3)
    write, done = rft.write_transcripts, []

    def stopping(path, group):
        done.append(group)
        last = len(done) == 3
        write(path, group[:2] if last else group)
        if last:
            with open(path, "a") as file:
                file.write('{"cut sho')
            raise KeyboardInterrupt  # the second signal

    def sample(folder):
        kept = folder / "kept.jsonl"
        return rft.sample(made, 0, model, rules, problems, None, kept, Stopping())

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rft, "write_transcripts", stopping)
        sample(tmp_path / "cut")
    again = []
    monkeypatch.setattr(rft, "write_transcripts", lambda p, g: (write(p, g), again.append(g)))
    groups = sample(tmp_path / "cut")
    assert len(again) == 2  # the groups that were not yet sampled
    whole = sample(tmp_path / "whole")

    def ids(groups):
        return [[t.completion_ids for t in group] for group in groups]

    assert ids(groups) == ids(whole) and len(groups) == 4
    assert len(list(read_transcripts(tmp_path / "cut" / "kept.jsonl"))) == 12


@pytest.mark.parametrize(
    ("module", "more"),
    [
        (grpo, {"tokens": 60}),
        pytest.param(grpo, {"micro_batch": 2}, marks=pytest.mark.slow),
        (ppo, {"micro_batch": 2}),
    ],
)
def test_a_step_is_left_between_two_passes_and_made_anew(
    module, more, model, tmp_path, monkeypatch
):
    name = module.__name__.rpartition(".")[2]
    few = settings(name, model=model, steps=3, **more)
    agreed, asked = Stopping.agreed, []

    def telling(self):
        """The third step's second pass has begun."""
        steps = records(tmp_path / "cut") if (tmp_path / "cut" / "metrics.jsonl").exists() else []
        asked.append(len(steps))
        if asked.count(2) == (3 if module is grpo else 2):
            os.kill(os.getpid(), signal.SIGINT)
        return agreed(self)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Stopping, "agreed", telling)
        module.train(few, tmp_path / "cut")
    assert asked.count(2) in (3, 4, 5) and 3 not in asked  # no further pass
    assert checkpoints(tmp_path / "cut") == ["checkpoint-2"]
    resumed = module.train(few, tmp_path / "cut", resume=True)
    same_weights(model, module.train(few, tmp_path / "whole"), resumed)
    same_curve(tmp_path / "whole", tmp_path / "cut")


def test_a_signal_is_noted_while_the_process_waits_in_a_library():
    """As in a collective, Python's handler can't run there."""
    store = distributed.HashStore()
    with Stopping() as stopping:

        def others():
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)
            while not stopping.asked():
                time.sleep(0.01)
            store.set("they leave", "1")

        thread = threading.Thread(target=others)
        thread.start()
        store.wait(["they leave"], datetime.timedelta(seconds=60))
        thread.join()
        assert stopping.number == signal.SIGTERM


def test_entering_twice_is_an_error_that_changes_nothing():
    before = signal.getsignal(signal.SIGTERM)
    with Stopping() as stopping:
        own = signal.getsignal(signal.SIGTERM)
        with pytest.raises(RuntimeError, match="already notices signals"):
            stopping.__enter__()
        assert signal.getsignal(signal.SIGTERM) == own != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_ends_a_process_that_hangs(monkeypatch):
    ended, words = threading.Event(), []
    monkeypatch.setattr(os, "_exit", lambda status: (words.append(status), ended.set()))
    monkeypatch.setattr(stops, "SAME_SECONDS", 0.0)
    monkeypatch.setattr(stops, "GRACE_SECONDS", 0.1)
    store = distributed.HashStore()
    with pytest.raises(KeyboardInterrupt), Stopping() as stopping:
        stopping.last_words = words.append

        def twice():
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
                time.sleep(0.1)
            assert ended.wait(60)
            store.set("end of the test", "1")

        threading.Thread(target=twice).start()
        store.wait(["end of the test"], datetime.timedelta(seconds=100))
    assert words[:2] == [signal.SIGINT, 128 + signal.SIGINT]


def test_a_second_signal_stops_at_once_but_not_its_echo(monkeypatch, capfd):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Stopping() as stopping:
        assert not stopping.agreed()
        stopping.end()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.asked()
        os.kill(os.getpid(), signal.SIGTERM)  # as a launcher forwards it
        monkeypatch.setattr(stops, "SAME_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        stopping.end()  # not agreed yet: the other processes would not end
        assert stopping.agreed()
        with pytest.raises(KeyboardInterrupt) as stop:
            stopping.end()
    assert stop.value.args == (signal.SIGTERM,)
    assert capfd.readouterr().err.count("stopping: ") == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_first_signal_after_that_of_another_process_is_no_second_one(monkeypatch, capfd):
    monkeypatch.setattr(stops, "SAME_SECONDS", 0.0)
    with Stopping() as outer, Stopping() as stopping:
        stopping.tell(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.number == signal.SIGTERM
        stopping.__exit__()
        with Stopping() as later, pytest.raises(KeyboardInterrupt):  # which knows of the signal
            os.kill(os.getpid(), signal.SIGINT)
        assert outer.number == later.number == signal.SIGTERM
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("inner_acts", [True, False])
def test_a_stage_hands_its_signal_to_the_run_around_it(inner_acts):
    words = []
    with Stopping() as outer:
        outer.last_words = words.append
        with Stopping() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            if inner_acts:
                with pytest.raises(Stopped):
                    inner.check()
            assert inner.asked() and not outer.asked()
        assert outer.number == signal.SIGTERM
        with Stopping() as later:  # the next stage would stop at once
            assert later.asked()
        with pytest.raises(Stopped) as stop:
            outer.check()
    assert stop.value.args == (signal.SIGTERM,) and words == []


def test_the_last_words_of_all_runs_are_written(monkeypatch):
    ended, words = threading.Event(), []
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    monkeypatch.setattr(stops, "SAME_SECONDS", 0.0)
    monkeypatch.setattr(stops, "GRACE_SECONDS", 0.1)
    store = distributed.HashStore()
    with pytest.raises(KeyboardInterrupt), Stopping() as outer, Stopping() as inner:
        inner.last_words = lambda number: words.append("stage")
        outer.last_words = lambda number: words.append("job")

        def twice():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
            assert ended.wait(60)
            store.set("end of the test", "1")

        threading.Thread(target=twice).start()
        store.wait(["end of the test"], datetime.timedelta(seconds=100))
    assert words[:2] == ["stage", "job"]


def test_a_process_that_leaves_is_not_ended_and_a_shield_holds_a_second_signal_off(monkeypatch):
    exits = []
    monkeypatch.setattr(os, "_exit", exits.append)
    monkeypatch.setattr(stops, "SAME_SECONDS", 0.0)
    monkeypatch.setattr(stops, "GRACE_SECONDS", 0.05)
    with Stopping() as stopping:
        with stopping.shielded():
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)  # its resources are closed
    assert exits == []


def test_a_coroutine_runs_until_a_signal():
    ends = []

    async def working(forever):
        try:
            await asyncio.sleep(600 if forever else 0)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise
        return "done"

    async def failing():
        raise ZeroDivisionError

    with Stopping() as stopping:
        assert stopping.run(working(False)) == "done"
        with pytest.raises(ZeroDivisionError):
            stopping.run(failing())
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(RolloutsAbandoned):
            stopping.run(working(True))
    assert ends == ["cancelled"]


@pytest.mark.parametrize(
    ("module", "owner", "name", "saved"),
    [
        (grpo, Session, "resume_point", None),
        (grpo, session, "make_policy", None),
        (ppo, Session, "resume_point", None),
        (ppo, session, "make_policy", None),
        (sft, scripted, "check_mix", None),
        (sft, Session, "resume_point", None),
        (grpo, Session, "save", 1),
        (ppo, Session, "save", 1),
        (sft, Session, "save", 3),
        (sft, Session, "draw", 3),
    ],
)
def test_a_signal_in_any_phase_stops_a_run_or_lets_it_finish(
    module, owner, name, saved, model, tmp_path, monkeypatch
):
    more = {"model": model, "steps": 1, "critic_warmup": 0}
    if module is grpo:
        del more["critic_warmup"]
    elif module is sft:
        more = {"traces": 24, "epochs": 1, "batch_size": 8, "env.max_tokens": 60}
    few = settings(module.__name__.rpartition(".")[2], **more)
    with monkeypatch.context() as patch:
        told = told_at(patch, owner, name)
        if saved is None:
            with pytest.raises(Stopped):
                module.train(few, tmp_path / "run")
            assert status_of(tmp_path / "run") == ("stopped", 75, None)
        else:
            module.train(few, tmp_path / "run")
            assert status_of(tmp_path / "run") == ("finished", 0, saved)
    assert told
    if saved is None:
        module.train(few, tmp_path / "run", resume=True)
        assert status_of(tmp_path / "run")[0] == "finished"


def test_a_stop_between_two_passes_of_ppos_warm_up_can_be_resumed(model, tmp_path, monkeypatch):
    """With shards, an optimizer that has made no step makes its state when it is saved or loaded.

    It does so only where the passes of a step have ended (`sync_gradients`).
    """
    few = settings("ppo", model=model, steps=3, micro_batch=4, critic_warmup=2)
    save, ended = ppo.Learner.save, []

    def saving(self, *given):
        ended.append(self.accelerator.gradient_state.sync_gradients)
        save(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(ppo.Learner, "save", saving)
        # The first pass of the second step.
        tell = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        with before_pass("ppo", 2, tell), pytest.raises(Stopped):
            ppo.train(few, tmp_path / "cut")
    assert ended == [True] and checkpoints(tmp_path / "cut") == ["checkpoint-1"]
    resumed = ppo.train(few, tmp_path / "cut", resume=True)
    same_weights(model, ppo.train(few, tmp_path / "whole"), resumed)
    same_curve(tmp_path / "whole", tmp_path / "cut")
