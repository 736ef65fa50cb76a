"""A session opens and closes the resources of a run, and marks a run at its end as finished."""

import json
import os
import signal

import pytest
from helpers.small_runs import make_small, settings

from agents.__main__ import _terminate
from agents.base import session
from agents.base.session import RolloutSession, Session
from agents.base.settings import SettingsError
from agents.base.stopping import Stopped
from retool_env.errors import RolloutsAbandoned


class Box:
    def __init__(self, closed):
        self.closed = closed

    def close(self):
        self.closed.append("sandbox")


@pytest.fixture
def closed(monkeypatch):
    """The names of the closed resources, in order."""
    closed = []
    monkeypatch.setattr(session, "find_sandbox", lambda setting, rules: Box(closed))
    return closed


@pytest.fixture
def model(tmp_path):
    return make_small(tmp_path / "model")


def test_at_its_end_all_is_closed_and_the_run_is_finished(tmp_path, model, closed):
    made = settings("grpo", model=model)
    with RolloutSession(made, tmp_path / "run", False) as run:
        assert not (tmp_path / "run").exists()
        run.begin("rl")
        assert run.point is None and len(run.ids) == made.steps * made.prompts
        run.resources.callback(lambda: closed.append("later"))
        assert not run.finished and closed == []
    assert run.finished and closed == ["later", "sandbox"]
    assert state(tmp_path / "run")[:2] == ("finished", 0)


def state(folder):
    found = json.loads((folder / "status.json").read_text())
    return found["state"], found["code"], found["error"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Stopped(15), ("stopped", 75, None)),
        (KeyboardInterrupt(2), ("stopped", 75, None)),
        (OSError("disk full"), ("failed", 1, "OSError: disk full")),
    ],
)
def test_the_status_says_how_a_run_ended(tmp_path, model, closed, error, expected):
    made = settings("grpo", model=model)
    with pytest.raises(type(error)), RolloutSession(made, tmp_path / "run", False) as run:
        run.begin("rl")
        assert state(tmp_path / "run") == ("running", None, None)
        raise error
    assert state(tmp_path / "run") == expected


def test_abandoned_rollouts_end_the_run_as_stopped(tmp_path, model, closed):
    made = settings("grpo", model=model)
    with pytest.raises(Stopped) as stop, RolloutSession(made, tmp_path / "run", False) as run:
        run.begin("rl")
        os.kill(os.getpid(), signal.SIGINT)
        raise RolloutsAbandoned("the rollouts were abandoned")
    assert stop.value.args == (signal.SIGINT,)
    assert state(tmp_path / "run") == ("stopped", 75, None) and closed == ["sandbox"]


def test_a_session_hands_the_signals_back_at_its_end(tmp_path, model, closed):
    made, before = settings("grpo", model=model), signal.getsignal(signal.SIGTERM)
    with RolloutSession(made, tmp_path / "run", False) as run:
        assert signal.getsignal(signal.SIGTERM) == before
        run.begin("rl")
        run.resources.callback(os.kill, os.getpid(), signal.SIGTERM)  # while the run closes
    assert signal.getsignal(signal.SIGTERM) == before
    assert state(tmp_path / "run") == ("finished", 0, None)


def test_a_launcher_that_stops_the_other_processes_does_not_hide_the_error(
    tmp_path, model, closed, monkeypatch
):
    """The launcher's signal arrives while the error of the failed process is handled."""
    made = settings("grpo", model=model)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    before = signal.signal(signal.SIGTERM, _terminate)
    lost = pytest.raises(RuntimeError, match="closed by peer")
    with lost, RolloutSession(made, tmp_path / "run", False) as run:
        run.begin("rl")
        run.resources.callback(os.kill, os.getpid(), signal.SIGTERM)
        try:
            raise RuntimeError("connection closed by peer")
        finally:
            raise KeyboardInterrupt(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    assert state(tmp_path / "run") == ("failed", 1, "RuntimeError: connection closed by peer")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_who_leaves_by_an_error_leaves_a_run_that_goes_on(tmp_path, model, closed, error):
    made = settings("grpo", model=model)
    with pytest.raises(error), RolloutSession(made, tmp_path / "run", False) as run:
        run.begin("rl")
        run.log({"step": 1})
        raise error
    assert closed == ["sandbox"] and not run.finished
    with pytest.raises(SettingsError, match="--resume"):
        RolloutSession(made, tmp_path / "run", False)
    with RolloutSession(made, tmp_path / "run", True) as run:
        run.begin("rl")
        assert run.metrics() == []  # without a checkpoint the run begins anew


def test_of_a_finished_run_nothing_is_loaded(tmp_path, model, closed):
    made = settings("grpo", model=model)
    with RolloutSession(made, tmp_path / "run", False) as run:
        run.start()
        run.log({"step": 1})
    (tmp_path / "model" / "config.json").unlink()
    with RolloutSession(made, tmp_path / "run", True) as again:
        assert again.finished and again.checkpoint == tmp_path / "run" / "checkpoint"
    assert closed == []


def test_a_title_says_where_there_is_no_interpreter(tmp_path, model, capsys):
    with RolloutSession(settings("grpo", model=model), tmp_path / "run", False) as run:
        run.begin("rl")
    assert "rl, text only: 0/4" in capsys.readouterr().out


def test_a_setting_that_names_nothing_is_said_before_there_is_a_folder(tmp_path):
    for wrong, message in (
        ({"env.id": "ReTool-None-v0"}, "env: "),
        ({"report_to": "x"}, "report_to"),
    ):
        with pytest.raises(SettingsError, match=message):
            Session(settings("sft", **wrong), tmp_path / "run", False)
    assert not (tmp_path / "run").exists()
