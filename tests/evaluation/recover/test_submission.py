"""The card of a submission; `tests/commands` runs the checker."""

import json

import yaml

from retool_env.evaluation.identity import ModelIdentity
from retool_env.evaluation.records import rules_to_json
from retool_env.evaluation.recover.records import RecoverRecord
from retool_env.evaluation.recover.submission import Finding, write_card
from retool_env.rules import Rules

RULES = Rules(max_calls=3, session=True, limits={"wall_seconds": 2}, output_characters=50)


def record():
    return RecoverRecord(
        **{"name": "n", "model": ModelIdentity("org/m", "hub"), "env": "e", "settings": {}},
        **{"rules": rules_to_json(RULES), "prompt": RULES.template, "problems": 1, "sampling": {}},
        **{"fingerprint": "", "k": 1, "seed": 0, "suite": "v0", "suite_hash": "0123"},
    )


def test_the_files_of_a_data_set_name_the_episodes_and_the_task(tmp_path):
    (tmp_path / "recover.json").write_text(json.dumps(record().to_json()))
    write_card(tmp_path)
    _, front, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["configs"][0]["data_files"][0]["path"] == "episodes.jsonl"
    assert "retool recover --check" in text and "can't show" in text
    assert yaml.safe_load((tmp_path / "eval.yaml").read_text())["tasks"][0]["id"] == "recover_v0"


def test_a_finding_is_one_line():
    assert str(Finding("suite", False, "differs in rates")) == "FAIL suite: differs in rates"
