"""Each run is read as far as it is, and says which episodes its figures rest on."""

import dataclasses
import json

import pytest
from helpers.episodes import ALL, DIRECT, GUESS, MENDED, NEVER, RAN, RIGHT, STUBBORN, episode
from helpers.run_folders import a_recover, a_training, an_eval

from retool_env.errors import DataError, MissingFile
from retool_env.evaluation.records import rules_to_json
from retool_env.evaluation.report.subject import (
    BINS,
    differences,
    figures_of,
    read_metrics,
    read_subjects,
)
from retool_env.metrics.summary import summarise_along
from retool_env.rollout.policy import Usage
from retool_env.rules import Rules
from retool_env.transcript import StopReason

PRICE = {"prompt": 1.0, "completion": 2.0, "cached": None}


def subjects(*paths):
    return read_subjects(paths, lambda line: None)


def test_an_evaluation_rests_on_all_its_episodes(tmp_path):
    [found] = subjects(an_eval(tmp_path / "run", ALL))
    assert (found.title, found.basis) == ("a/checkpoint", "all episodes")
    assert len(found.episodes) == len(ALL) and found.warnings == [] and found.along is None
    assert found.figures["use/ran"] == figures_of(ALL)["use/ran"]


def test_dollars_come_from_the_price_of_the_record(tmp_path):
    used = Usage(requests=1, prompt_tokens=1_000_000, completion_tokens=500_000)
    [found] = subjects(an_eval(tmp_path / "run", [DIRECT, GUESS], usage=used, price=PRICE))
    assert found.figures["cost/dollars"].mean == pytest.approx(2.0)
    assert found.figures["cost/dollars_per_right"].mean == pytest.approx(4.0)


@pytest.mark.parametrize("status", ["running", "stopped"])
def test_an_unfinished_evaluation_says_how_far_it_is(tmp_path, status):
    [found] = subjects(an_eval(tmp_path / "run", [DIRECT], status=status, problems=3, k=2))
    assert found.warnings == [f"The run is unfinished ({status}): 1 of 6 episodes are on record."]


def test_an_empty_run_says_so(tmp_path):
    [found] = subjects(an_eval(tmp_path / "run", []))
    assert found.warnings == ["The run has no episodes: the figures of episodes are missing."]


def test_episodes_that_have_not_ended_are_left_out_and_counted(tmp_path):
    open_end = dataclasses.replace(DIRECT, stop_reason=None, correct=None, reward=None)
    [found] = subjects(an_eval(tmp_path / "run", [open_end, RAN]))
    assert [t.stop_reason for _, t in found.episodes] == [StopReason.ANSWERED]
    assert found.warnings == ["Episodes that have not ended are left out: 1."]


def test_a_benchmark_of_recovery_rests_on_its_parents(tmp_path):
    [found] = subjects(a_recover(tmp_path / "run", [RAN, MENDED], [NEVER]))
    assert [t for _, t in found.episodes] == [RAN, MENDED]
    assert found.basis == "the parents: whole episodes without faults"


def test_a_training_rests_on_its_last_evaluation_and_has_figures_along_its_steps(tmp_path):
    rollouts = [(step, (RAN, GUESS)[step % 2]) for step in range(1, 21)]
    path = a_training(
        tmp_path / "run",
        rollouts,
        {0: [GUESS], 20: [DIRECT, RAN]},
        [{"step": 20, "reward": 0.5, "note": "text"}],
    )
    [found] = subjects(path)
    assert found.basis == "the evaluation on held-out problems after step 20"
    assert [t for _, t in found.episodes] == [DIRECT, RAN]
    assert list(found.along.rollouts) == [(first, first + 1) for first in range(1, 21, 2)]
    assert len(found.along.rollouts) == BINS
    some = [dataclasses.replace(t, trained_version=step - 1) for step, t in rollouts]
    expected = summarise_along(some, range(2, 21, 2))
    for (_, end), figures in found.along.rollouts.items():
        assert figures["accuracy/avg"].mean == expected[end].accuracy.mean
    assert [f["accuracy/avg"].mean for f in found.along.held_out.values()] == [0.0, 1.0]
    assert found.along.records == [{"step": 20, "reward": 0.5}]
    assert found.warnings == []


def test_a_training_without_evaluations_rests_on_its_last_rollouts(tmp_path):
    path = a_training(tmp_path / "run", [(1, GUESS), (12, RAN), (12, MENDED)], done=False, steps=40)
    [found] = subjects(path)
    assert found.basis == "the rollouts of steps 11 to 12"
    assert [t.problem.id for _, t in found.episodes] == ["b", "c"]
    assert found.warnings == ["The training is unfinished: step 0 of 40 is on record."]


def test_a_supervised_training_has_its_logged_figures_alone(tmp_path):
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    [found] = subjects(a_training(tmp_path / "run", records=records))
    assert found.along.records == records and found.episodes == []


def test_the_evaluation_of_a_step_is_a_run_of_its_own(tmp_path):
    path = a_training(tmp_path / "run", [(1, RAN)], {0: [GUESS], 5: [RAN]}, done=False)
    first, last = subjects(f"{path}@0", f"{path}@5")
    assert [s.title for s in (first, last)] == ["1. run@0", "2. run@5"]
    assert [t for _, t in first.episodes] == [GUESS] and first.along is None
    assert last.warnings == []


def test_a_training_may_have_an_at_sign_in_its_name(tmp_path):
    [found] = subjects(a_training(tmp_path / "grpo@home", [(1, RAN)], {0: [GUESS], 5: [RAN]}))
    assert found.basis == "the evaluation on held-out problems after step 5"
    assert list(found.along.held_out) == [0, 5]


def test_a_wrong_name_is_found_before_a_run_is_read(tmp_path):
    path = an_eval(tmp_path / "run", [DIRECT])
    (path / "episodes.jsonl").write_text("damaged\n")
    with pytest.raises(MissingFile, match="gone was not found"):
        subjects(path, tmp_path / "gone")


@pytest.mark.parametrize("line", ["[]", "{}", '{"step": "1"}', '{"step": 1.5}', "nan", "x"])
def test_a_damaged_line_of_metrics_is_named(tmp_path, line):
    path = a_training(tmp_path / "run")
    (path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2 is damaged"):
        subjects(path)


def test_half_a_last_line_of_metrics_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "lo')
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]


def test_progress_is_said_from_time_to_time(tmp_path, monkeypatch):
    monkeypatch.setattr("retool_env.evaluation.progress.SECONDS", 0.0)
    lines = []
    read_subjects([an_eval(tmp_path / "run", [DIRECT, RAN])], lines.append)
    assert lines == [f"{number} episodes of a/checkpoint are read" for number in (1, 2)]


def test_equal_runs_are_comparable_and_others_name_what_differs(tmp_path):
    some = [DIRECT, RAN]
    one = an_eval(tmp_path / "one", some)
    assert differences(subjects(one, an_eval(tmp_path / "two", some))) == []
    text = episode("a", StopReason.ANSWERED, RIGHT, correct=True, interpreter=False)
    other = an_eval(
        tmp_path / "other",
        [dataclasses.replace(text, revision=3), STUBBORN, MENDED],
        rules={"max_calls": 4, "faults": None},
    )
    assert differences(subjects(one, other)) == [
        "the problems differ: 2, 3, and 2 in common",
        f"the revision differs: 3, {DIRECT.revision}",
        "the interpreter differs: False, True",
        "the rules differ: max_calls",
    ]


def test_a_setting_that_an_older_record_lacks_had_its_default(tmp_path):
    older = an_eval(tmp_path / "older", [DIRECT], rules={"max_calls": 4})
    newer = {**rules_to_json(Rules(max_calls=4)), "prompt_template": "a.txt"}
    same = an_eval(tmp_path / "same", [DIRECT], rules=newer)
    other = an_eval(tmp_path / "other", [DIRECT], rules=newer, prompt="Answer {query}")
    assert differences(subjects(older, same)) == []
    assert differences(subjects(older, other)) == ["the rules differ: prompt"]


def test_a_problem_of_one_id_with_another_question_is_another_problem(tmp_path):
    changed = dataclasses.replace(DIRECT, problem=dataclasses.replace(DIRECT.problem, question="!"))
    paths = [an_eval(tmp_path / str(n), [t]) for n, t in enumerate((DIRECT, changed))]
    assert differences(subjects(*paths)) == ["the problems differ: 1, 1, and 0 in common"]


def test_a_damaged_episode_is_named(tmp_path):
    path = an_eval(tmp_path / "run", [DIRECT])
    values = json.loads((path / "episodes.jsonl").read_text())
    values["usage"] = {"no such": 1}
    (path / "episodes.jsonl").write_text(json.dumps(values) + "\n")
    with pytest.raises(DataError, match="line 1 is not an episode"):
        subjects(path)
