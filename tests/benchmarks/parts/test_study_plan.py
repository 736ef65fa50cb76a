"""The plan of the recovery study: its parts, their order and their commands."""

from __future__ import annotations

import json

import pytest
from helpers.studies import TRAINING, evaluation, write

from agents.base.presets import load_settings
from agents.base.registry import load_algorithm
from benchmarks.parts.study_plan import (
    PRESET,
    SEEDS,
    SEEN,
    WHOLE,
    Plan,
    all_parts,
    hours_left,
    next_parts,
)
from retool_env.errors import SettingsError
from retool_env.faults import KINDS
from retool_env.provenance import REVISION


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "results").mkdir()
    return Plan(tmp_path / "runs", tmp_path / "results")


OWN = [part for part in all_parts() if not part.elsewhere]
OF_A_SEED = [part for part in OWN if part.seed == 1]
TINY = [part for part in OWN if part.study in "AB"]


def test_each_part_takes_at_most_an_hour_and_comes_after_the_parts_that_it_needs():
    names = [part.name for part in all_parts()]
    assert len(set(names)) == len(names)
    for at, part in enumerate(all_parts()):
        assert set(part.after) <= set(names[:at])
    assert all(part.hours <= 1 for part in OWN)


def test_no_training_meets_a_held_out_fault():
    assert set(SEEN) == {name for name, kind in KINDS.items() if kind.seen}


@pytest.mark.parametrize("part", OF_A_SEED, ids=lambda part: part.name)
def test_all_commands_of_a_part_have_valid_settings(plan, part):
    for command in plan.commands(part):
        assert command[0] in ("python", "retool")
        if command[:3] == ["python", "-m", "agents"]:
            algorithm = load_algorithm(command[3])
            settings = command[command.index("--runs") + 2 :]
            loaded = load_settings(algorithm.Settings, command[3], str(PRESET), settings)
            assert loaded.seed == part.seed and loaded.name == part.name
            if part.run != "cold":
                episodes = loaded.prompts * loaded.rollouts
                assert (loaded.steps, episodes, loaded.learning_rate) == (60, 128, 1e-4)
            faults = loaded.env.get("faults")
            assert bool(faults) == (part.study == "B")
            assert not faults or (faults["rate"] in (0.1, 0.25) and not faults["by_rollout"])


def test_the_whole_suite_is_evaluated_with_m_4_and_a_run_at_three_points(plan):
    for part in TINY:
        benchmarks = [c for c in plan.commands(part) if c[0] == "retool"]
        whole = [c for c in benchmarks if c[-len(WHOLE.whole) :] == list(WHOLE.whole)]
        assert len(whole) == 1 and "--problems" not in whole[0]
        assert len(benchmarks) == len(plan.evaluations(part)) == (2 if part.run == "cold" else 3)


def test_parts_that_train_by_rl_and_parts_of_the_larger_model_are_told_apart(plan):
    rl = {part.name for part in all_parts() if part.is_rl}
    assert {"grpo-0", "spare-1", "faults25-2", "smollm2-grpo"} < rl
    assert not rl & {"cold-0", "values-0", "smollm2-cold", "smollm2-after", "replication"}
    folders = {part.name: plan.evaluations(part) for part in OWN if part.study == "C"}
    assert {name for name, some in folders.items() if some} == {"smollm2-before", "smollm2-after"}
    assert [list(plan.commands(part)) for part in OWN if part.study == "C"]


def test_the_next_parts_fit_into_the_time_and_are_not_done(plan):
    assert [part.name for part in next_parts(plan, 0.1)] == ["cold-0"]
    assert [part.name for part in next_parts(plan, 1.3)] == ["cold-0", "grpo-0"]
    left = hours_left(plan, "A")
    plan.file("cold-0").write_text(json.dumps({}))
    assert [part.name for part in next_parts(plan, 0.8)] == ["grpo-0"]
    assert hours_left(plan, "A") == pytest.approx(left - 0.5)
    assert not any(part.elsewhere for part in next_parts(plan, 1000))
    assert SEEDS == (0, 1, 2)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"part": "cold-0"}', '{"part": "cold-1"}', "null"]
)
def test_a_damaged_file_of_results_is_named_with_what_to_do(plan, text):
    write(plan, "cold-0", evaluations={"whole": evaluation(0.5)})
    assert plan.read("cold-0")["part"] == "cold-0"
    plan.file("cold-0").write_text(text)
    with pytest.raises(
        SettingsError,
        match=r"cold-0\.json is damaged, or of another version .* run --part cold-0 again",
    ):
        plan.read("cold-0")


@pytest.mark.parametrize("figure", ["use", "next", "pairs", "accuracy"])
def test_a_file_without_one_of_the_figures_is_of_another_version(plan, figure):
    older = {name: value for name, value in evaluation(0.5).items() if name != figure}
    write(plan, "cold-0", evaluations={"whole": older})
    with pytest.raises(SettingsError, match=r"cold-0\.json is damaged, or of another version"):
        plan.read("cold-0")


def test_a_part_that_began_with_other_weights_is_refused(plan):
    along = {name: evaluation(0.8, weights="trained") for name in ("whole", "half", "end")}
    write(plan, "grpo-0", evaluations=along, training=TRAINING)
    write(plan, "cold-0", evaluations={"whole": evaluation(0.5)})
    assert plan.read("grpo-0")["began_with"] == {"cold-0": "w"}
    write(plan, "cold-0", evaluations={"whole": evaluation(0.5, weights="another")})
    with pytest.raises(
        SettingsError, match=r"grpo-0\.json: the part began with weights that cold-0"
    ):
        plan.read("grpo-0")


@pytest.mark.parametrize(("revision", "done"), [(REVISION, True), (REVISION - 1, False)])
def test_the_replication_is_done_with_the_present_revision(plan, revision, done):
    assert not plan.done("replication")
    file = plan.results.parent / "replication_tiny.json"
    file.write_text(json.dumps({"revision": revision}))
    assert plan.done("replication") == done
    for text in ("{}", "{"):  # of a time before revisions were written, or damaged
        file.write_text(text)
        assert not plan.done("replication")
    assert hours_left(plan, "C") == pytest.approx(5.25)
