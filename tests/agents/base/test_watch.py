"""Processes of a run hear of signals, of a process that hangs, and of a process that is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from helpers import HELPERS, ROOT
from helpers.small_runs import given, make_small, records
from torch import distributed

from agents.base import watch as watches
from agents.base.stopping import Stopping
from agents.base.watch import Watch
from retool_env.training.processes import phase

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "accelerate": [
        *("accelerate.commands.accelerate_cli", "launch", "--config_file"),
        str(ROOT / "agents" / "launch" / "cpu2_fsdp2.yaml"),
    ],
}


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    gmtime, strftime, time = time.gmtime, time.strftime, time.time


class Left(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(watches, "time", clock)
    return clock


@pytest.fixture
def pair(monkeypatch, clock):
    """The watches of two processes with one store, whose threads do not run."""
    store, made = distributed.HashStore(), []

    def leave(status):
        raise Left(status)

    monkeypatch.setattr(os, "_exit", leave)
    for rank in (0, 1):
        gone: list[str] = []
        watch = Watch(Stopping(), refresh=lambda: None, gone=gone.append)
        watch._rank, watch._count, watch._store = rank, 2, store
        watch.said = gone
        watch._beat()
        made.append(watch)
    for watch in made:
        watch._look()
    return made


def pass_time(clock, seconds, *watched):
    """Let time pass in which these processes give signs of life and look."""
    until = clock.now + seconds
    while clock.now < until:
        clock.now = min(clock.now + watches.BEAT_SECONDS, until)
        for watch in watched:
            watch._beat()
        for watch in watched:
            watch._look()


def test_a_signal_of_one_process_reaches_the_others(pair):
    first, second = pair
    first._pass_signals_on()
    assert not first._stopping.asked()
    second._stopping.tell(signal.SIGTERM)
    second._pass_signals_on()
    assert not first._stopping.asked()
    first._pass_signals_on()
    assert first._stopping.number == signal.SIGTERM


def test_a_process_that_hangs_is_named_with_its_work_and_then_ends_the_run(pair, clock, capfd):
    first, second = pair
    with phase("rollouts"):
        second._beat()
    first._look()
    pass_time(clock, watches.WARN_SECONDS - 1, first)
    assert capfd.readouterr().err == ""
    pass_time(clock, 10, first)
    told = capfd.readouterr().err
    host = json.loads(second._store.get("1"))[1]
    assert told.count("gives no sign of life") == 1  # it is named once
    assert f"rank 1 ({host}, rollouts since " in told and " UTC)" in told
    with pytest.raises(Left):
        pass_time(clock, watches.GONE_SECONDS - watches.WARN_SECONDS, first)
    [text] = first.said
    assert f"rank 1 ({host}, rollouts since " in text and "no sign of life for 600 s" in text


def test_a_process_that_came_back_is_not_gone(pair, clock, capfd):
    first, second = pair
    for _ in range(3):
        pass_time(clock, watches.WARN_SECONDS - 3, first)
        pass_time(clock, 2, first, second)
    assert capfd.readouterr().err == ""


def test_the_time_in_which_a_job_was_suspended_does_not_count(pair, clock, capfd):
    first, second = pair
    pass_time(clock, 10, first, second)
    clock.now += 2 * watches.GONE_SECONDS  # both stood still, and one goes on earlier
    pass_time(clock, 4, first)
    pass_time(clock, 4, first, second)
    assert capfd.readouterr().err == ""
    with pytest.raises(Left):
        pass_time(clock, watches.GONE_SECONDS + 4, first)


class Closing:
    """The event of a watch's end, whose waits take time on the clock."""

    def __init__(self, clock, end=float("inf")):
        self.clock, self.end = clock, clock.now + end

    def wait(self, seconds):
        self.clock.now += seconds
        return self.clock.now >= self.end


@pytest.mark.parametrize("asked", [False, True])
def test_a_process_ends_if_the_store_of_the_first_machine_gives_no_answer(
    pair, clock, capfd, asked
):
    _, second = pair
    second._closing = Closing(clock)
    if asked:
        second._stopping.tell(signal.SIGTERM)
    began = clock.now
    with pytest.raises(Left):
        second._guard()
    limit = watches.GONE_AT_STOP_SECONDS if asked else watches.GONE_SECONDS
    assert clock.now - began == pytest.approx(limit, abs=1)
    [text] = second.said
    assert text.startswith("rank 0 (") and f"no answer for {limit:.0f} s, so the run ends" in text
    assert capfd.readouterr().err.count("its machine gives no answer\n") == (not asked)


def test_a_store_that_answers_ends_nothing_nor_does_a_suspended_job(pair, clock):
    _, second = pair
    second._closing = Closing(clock, 3 * watches.GONE_SECONDS)
    wait = second._closing.wait

    def answered(seconds):
        second._answered = clock.now
        if 100 < second._closing.end - clock.now < 101:
            clock.now += 2 * watches.GONE_SECONDS
        return wait(seconds)

    second._closing.wait = answered
    second._guard()
    assert second.said == []


def test_a_store_that_does_not_answer_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr(watches, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(watches, "POLL_SECONDS", 0.01)
    asked, answer = threading.Event(), threading.Event()

    def check(keys):
        asked.set()
        answer.wait()
        return False

    watch = Watch(Stopping(), refresh=lambda: None, gone=lambda text: None)
    one = SimpleNamespace(process_index=1, num_processes=1)
    monkeypatch.setattr(watches, "processes", lambda: one)
    watch._store = SimpleNamespace(check=check, set=print, multi_get=lambda ranks: [])
    watch.start()
    assert asked.wait(10)
    watch.close(RuntimeError("an error"))
    answer.set()
    assert not watch._threads


def test_a_run_that_must_stop_waits_less_long_for_a_process_that_is_gone(pair, clock):
    first, _ = pair
    pass_time(clock, watches.GONE_AT_STOP_SECONDS + 1, first)
    first._stopping.tell(signal.SIGTERM)
    with pytest.raises(Left):
        first._look()


def test_a_process_that_ended_is_not_missed_and_one_that_failed_is_named(pair, clock):
    first, second = pair
    second._beat("ended")
    first._look()
    pass_time(clock, watches.GONE_SECONDS + 1, first)
    assert "all processes are alive" in first.report()
    second._beat("failed: no memory")
    first._look()
    assert "rank 1 (" in first.report() and "failed: no memory" in first.report()
    second._beat("stopped: 15")
    assert not first.stopped()
    first._look()
    assert first.stopped()


def test_a_report_waits_until_a_killed_process_is_silent(pair, clock, monkeypatch):
    first, _ = pair

    def sleep(seconds):
        clock.now += seconds
        first._beat()
        first._look()

    monkeypatch.setattr(clock, "sleep", sleep)
    assert first.report().startswith("without a sign of life: rank 1 (")


def test_one_process_only_refreshes_its_status(monkeypatch):
    monkeypatch.setattr(watches, "REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(watches, "POLL_SECONDS", 0.01)
    one = SimpleNamespace(process_index=0, num_processes=1)
    monkeypatch.setattr(watches, "processes", lambda: one)
    refreshed: list[int] = []
    watch = Watch(Stopping(), refresh=lambda: refreshed.append(1), gone=lambda text: None)
    watch.start()
    until = time.monotonic() + 10
    while not refreshed and time.monotonic() < until:
        time.sleep(0.01)
    watch.close()
    assert refreshed and not watch._threads


# --- two real processes ---------------------------------------------------------------------------


class Two:
    """A run of two processes at the point that its algorithm describes."""

    def __init__(self, runs, algorithm, launcher="torchrun", **more):
        self.runs, self.folder = runs, runs / "run"
        model = make_small(runs / "model")
        values = {"model": model, "name": "run", "micro_batch": 4, "save_steps": 1}
        self.pairs = given("grpo", **{**values, **more})
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HELPERS.parent}"}
        environment |= {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "20"}
        self.command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "agents"]
        self.command += [f"{HELPERS / 'watched_runs.py'}:{algorithm}", "--runs", str(runs)]
        self.environment, self.log = environment, runs / "log"
        self.launcher = self.start()

    def start(self, *more):
        with open(self.log, "w") as log:
            return subprocess.Popen(
                [*self.command, *self.pairs, *more],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def reach(self, *ranks):
        until = time.monotonic() + 200
        while not all((self.runs / f"there-{rank}").exists() for rank in ranks):
            assert self.launcher.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)
        time.sleep(1)  # from there into the wait

    def send(self, number, rank):
        os.kill(int((self.runs / f"pid-{rank}").read_text()), number)

    def end(self):
        self.launcher.wait(timeout=120)
        return json.loads((self.folder / "status.json").read_text())

    def close(self):
        self.launcher.kill()
        for path in self.runs.glob("pid-*"):
            try:
                os.kill(int(path.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def two(tmp_path):
    made = []

    def make(*args, **more):
        made.append(Two(tmp_path, *args, **more))
        return made[-1]

    yield make
    for run in made:
        run.close()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, None])
def test_a_run_stops_while_a_process_waits_for_anothers_endless_rollouts(two, rank):
    """The first process waits in a collective; `None` signals the launcher."""
    run = two("Waiting")
    run.reach(0, 1)
    began = time.monotonic()
    if rank is None:
        run.launcher.send_signal(signal.SIGTERM)
    else:
        run.send(signal.SIGTERM, rank)
    status = run.end()
    assert time.monotonic() - began < 100  # it would never end
    assert {key: status[key] for key in ("state", "code", "step", "saved", "error")} == {
        "state": "stopped",
        "code": 75,
        "step": 2,
        "saved": 2,
        "error": None,
    }
    assert "the checkpoint of step 2 is complete" in run.log.read_text()
    assert "--nproc-per-node=2 -m agents " in status["resume"]
    assert status["resume"].endswith(" --resume")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_or_dies_is_named(two, rank, number):
    run = two("Waiting")
    run.reach(0, 1)
    run.send(number, rank)
    status = run.end()
    assert (status["state"], status["code"]) == ("failed", 1)
    work = "rollouts"
    assert f"rank {rank} (" in status["error"] and f", {work} since " in status["error"]


@pytest.mark.slow
def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(two):
    run = two("SlowSave", "accelerate")
    run.reach(0, 1)
    until = time.monotonic() + 50
    while len(records(run.folder)) < 3:  # the training goes on while the shards are written
        assert time.monotonic() < until
        time.sleep(0.1)
    run.close()
    run.launcher.wait()
    names = sorted(path.name for path in (run.folder / "trainer").glob("checkpoint-*"))
    assert names == ["checkpoint-1", "checkpoint-2"]
    assert (run.folder / "trainer" / "checkpoint-2" / "incomplete").exists()
    run.launcher = run.start("--resume")
    status = run.end()
    assert (status["state"], status["code"], status["saved"]) == ("finished", 0, 4)
    assert [record["step"] for record in records(run.folder)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_step_ends_between_two_passes_and_is_made_anew(two, tmp_path):
    run = two("Passes", micro_batch=1)
    status = run.end()
    assert (status["state"], status["step"], status["saved"]) == ("stopped", 2, 2)
    run.launcher = run.start("--resume")
    assert run.end()["state"] == "finished"
    # On a new folder `--resume` starts a run, which then gets no signal.
    whole = run.start("--runs", str(tmp_path / "whole"), "--resume")
    assert whole.wait(timeout=200) == 0
    for ours, theirs in zip(records(run.folder), records(tmp_path / "whole" / "run"), strict=True):
        for key in ("step", "reward", "loss", "grad_norm", "entropy"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6)
