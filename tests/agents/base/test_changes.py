"""What changes the mathematics of a run is frozen; each other change of a setting is recorded."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.small_runs import settings
from trl import GRPOConfig, SFTConfig

from agents.base.changes import FREE_FIELDS, RULES, find_changes, noted, rule_of
from agents.base.registry import algorithms, load_algorithm
from agents.base.run import Run
from agents.base.settings import SettingsError, field_names, stages

PAGE = ROOT / "docs" / "training" / "resuming.md"


def record_of(settings, processes=1):
    """The content of `config.json` of a run that was started with these settings."""
    return {
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
        "processes": processes,
    }


def test_every_setting_of_every_algorithm_has_a_rule_and_no_other_name_has():
    known = set()
    for name in algorithms():
        cls = load_algorithm(name).Settings
        known |= {*field_names(cls)}
        for stage in stages(cls):
            # A stage has the name of its algorithm, and `sft.epochs` the rule of `epochs`.
            assert RULES[stage] == "stage" and stage in algorithms()
    assert known == RULES.keys()


def test_the_free_fields_of_trl_exist():
    known = {field.name for cls in (GRPOConfig, SFTConfig) for field in dataclasses.fields(cls)}
    assert known > FREE_FIELDS


def test_the_page_lists_exactly_the_free_settings():
    table = PAGE.read_text().partition("<!-- free settings -->")[2].partition("<!-- end -->")[0]
    listed = {name for name in re.findall(r"`([a-z_.]+)`", table)}
    free = {name for name, rule in RULES.items() if rule == "free"}
    lengths = {name for name, rule in RULES.items() if rule == "length"}
    assert listed == free | lengths | {f"trl.{name}" for name in FREE_FIELDS}


@pytest.mark.parametrize(
    ("name", "length", "rule"),
    [
        ("engine.name", None, "free"),
        ("sandbox", None, "free"),
        ("env.max_tokens", "steps", "frozen"),
        ("steps", "steps", "length"),
        ("epochs", "epochs", "length"),
        ("epochs", "steps", "frozen"),  # of PPO
        ("trl.logging_steps", "steps", "free"),
        ("trl.lr_scheduler_type", "steps", "frozen"),
        ("trl", None, "frozen"),
        ("sft.micro_batch", "rounds", "free"),
        ("sft.epochs", "rounds", "frozen"),
        ("sft.trl.logging_steps", "rounds", "free"),
        ("of_another_repository", "steps", "frozen"),
    ],
)
def test_the_rule_of_a_setting_in_a_mapping(name, length, rule):
    assert rule_of(name, length) == rule


def test_places_and_sizes_of_passes_may_change(tmp_path):
    before = settings("grpo", model="m", engine={"name": "http://a:1", "weights_folder": "w"})
    now = settings(
        "grpo",
        model="m",
        engine={"name": "http://b:1", "weights_folder": "w"},
        micro_batch=4,
        trl={"logging_steps": 1},
        sandbox="http://box",
        in_flight=7,
        save_steps=3,
        tokens=4000,
    )
    found = find_changes(now, record_of(before, 2), 4, "steps")
    changed = {change["setting"]: (change["from"], change["to"]) for change in found}
    assert changed == {
        "engine.name": ("http://a:1", "http://b:1"),
        "in_flight": (256, 7),
        "micro_batch": (8, 4),
        "sandbox": ("nsjail", "http://box"),
        "save_steps": (100, 3),
        "tokens": (0, 4000),
        "trl.logging_steps": (None, 1),
        "processes": (2, 4),
    }
    made = noted(found[0], 12)
    assert made["at"] == 12 and made["time"] and made["versions"]


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        (
            "grpo",
            {"learning_rate": 1e-5},
            r"learning_rate was 0\.00015, now 1e-05\. Set the earlier",
        ),
        ("grpo", {"env.max_tokens": 9}, r"settings \(env\.max_tokens\).*was 12, now 9"),
        ("grpo", {"trl": {"adam_beta2": 0.9}}, r"trl\.adam_beta2 was not set, now 0\.9"),
        ("grpo", {"prompts": 4, "seed": 1}, r"\(prompts, seed\).*prompts was 2, now 4; seed was 0"),
        ("ppo", {"epochs": 2}, r"epochs was 1, now 2"),
        ("ppo", {"mini_batch": 4}, "mini_batch was 8, now 4"),
    ],
)
def test_a_frozen_setting_is_named_with_both_values_and_the_cure(name, more, message):
    before, now = settings(name, model="m"), settings(name, model="m", **more)
    with pytest.raises(SettingsError, match=message):
        find_changes(now, record_of(before), 1, "steps")


def test_the_generation_batch_is_frozen_however_it_is_written():
    two = settings("grpo", model="m", micro_batch=4, trl={"steps_per_generation": 4})
    record = record_of(two)  # 16 episodes
    for more, processes in (
        ({"micro_batch": 8, "trl": {"steps_per_generation": 2}}, 1),
        ({"micro_batch": 4, "trl": {"steps_per_generation": 2}}, 2),
        ({"micro_batch": 4, "trl": {"generation_batch_size": 16}}, 2),
        ({"tokens": 100, "trl": {"steps_per_generation": 2}}, 1),
    ):
        assert find_changes(settings("grpo", model="m", **more), record, processes, "steps")
    for more, processes in (
        ({"micro_batch": 8, "trl": {"steps_per_generation": 4}}, 1),
        ({"micro_batch": 4, "trl": {"steps_per_generation": 4}}, 2),
    ):
        with pytest.raises(SettingsError, match=r"generation_batch_size was 16, now 32"):
            find_changes(settings("grpo", model="m", **more), record, processes, "steps")


def test_a_change_is_recorded_when_the_run_makes_progress(tmp_path):
    before, now = (settings("grpo", model="m", save_steps=steps) for steps in (5, 2))
    run = Run(tmp_path, before, False, "steps")
    run.start()
    run.log({"step": 1})
    checkpoint = run.trainer / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 1}')
    run = Run(tmp_path, now, True, "steps")
    config = Path(tmp_path, "config.json")
    assert "changes" not in json.loads(config.read_text())
    run.resume_point()
    run.log({"step": 2})
    record = json.loads(config.read_text())
    [change] = record["changes"]
    assert (change["setting"], change["from"], change["to"], change["at"]) == (
        "save_steps",
        5,
        2,
        1,
    )
    assert record["settings"]["save_steps"] == 2
    assert find_changes(now, record, 1, "steps") == []
    assert Run(tmp_path, now, True, "steps").earlier == []  # only lengths count there


@pytest.mark.parametrize("root", ["/runs", "runs"])
def test_the_files_of_a_renamed_job_are_the_same(root):
    """`rft` and `demo` give their stages paths below the job's folder."""
    old = settings("sft", data="runs/a/stages/round-1.jsonl", model="runs/a/stages/x/checkpoint")
    new = settings(
        "sft",
        data=f"{root}/study/b/stages/round-1.jsonl",
        model=f"{root}/study/b/stages/x/checkpoint",
    )
    folder = Path(root, "study/b/stages/round-2")
    found = find_changes(new, record_of(old), 1, "epochs", folder)
    assert {change["setting"] for change in found} == {"data", "model"}
    with pytest.raises(SettingsError, match="data, model"):
        find_changes(new, record_of(old), 1, "epochs", Path(root, "study/b"))


@pytest.mark.parametrize(
    "data", ["runs/b/stages/round-2.jsonl", "runs/a/stages/round-1.jsonl", "other/round-1.jsonl"]
)
def test_another_file_of_a_stage_is_another_training(data):
    old = settings("sft", data="elsewhere/round-1.jsonl")
    with pytest.raises(SettingsError, match="data was 'elsewhere"):
        find_changes(
            settings("sft", data=data), record_of(old), 1, "epochs", Path("runs/b/stages/round-1")
        )
