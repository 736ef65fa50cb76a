"""A session opens and closes the resources of a run, and marks a run at its end as finished."""

import pytest
from helpers.small_runs import make_small, settings

from agents.base import session
from agents.base.session import RolloutSession, Session
from agents.base.settings import SettingsError


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
