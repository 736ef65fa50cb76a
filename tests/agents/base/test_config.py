"""`config.json` records how a run was started, and a change of the revision."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from agents.base import run as runs
from agents.base.config import accept_revision, read_config
from agents.base.run import Run
from agents.base.settings import SettingsError
from retool_env import REVISION


@dataclass(frozen=True)
class Settings:
    seed: int = 0


def started(folder, resume=False):
    Run(folder, Settings(), resume).start()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"settings": [1]}, '"settings" is \\[1\\]'),
        ({"processes": "1"}, "\"processes\" is '1'"),
        ({"changes": [{"setting": "steps", "to": 3}]}, 'it lacks "from"'),
        ({"earlier_revisions": ["x"]}, '"earlier_revisions" is'),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error_with_a_cure(change, fault, tmp_path):
    record = {"settings": {}, "processes": 1, "revision": 2, "changes": []}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(record))
    assert read_config(tmp_path) == record
    path.write_text(json.dumps({**record, **change}))
    with pytest.raises(SettingsError, match=f"config.json: {fault}.*start anew with another name"):
        read_config(tmp_path)


def test_a_run_of_another_revision_goes_on_only_by_force(tmp_path):
    """Episodes of two revisions must not be mixed by accident."""
    started(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("revision") == REVISION
    (tmp_path / "config.json").write_text(json.dumps({**config, "revision": REVISION + 7}))
    with pytest.raises(SettingsError, match=rf"of revision {REVISION + 7}.*{REVISION}.*--force"):
        started(tmp_path, resume=True)
    accept_revision(tmp_path)
    started(tmp_path, resume=True)
    accept_revision(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record == {**config, "revision": REVISION, "earlier_revisions": [REVISION + 7]}
    accept_revision(tmp_path / "none")


def test_a_run_that_says_no_revision_is_of_the_first(tmp_path, monkeypatch):
    started(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    config = json.loads((tmp_path / "config.json").read_text())
    del config["revision"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(runs, "REVISION", 2)
    with pytest.raises(
        SettingsError, match="of revision 1, and these environments are of revision 2"
    ):
        started(tmp_path, resume=True)
