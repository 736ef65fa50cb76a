"""Answers of a run graded anew by the named graders and by one's own function."""

import json
import textwrap

import pytest
from helpers.episodes import episode, sample
from helpers.recorded_runs import write_eval, write_training
from helpers.run_folders import a_recover

from retool_env.errors import SettingsError
from retool_env.evaluation.runs import open_run
from retool_env.evaluation.score import (
    default_path,
    load_grader,
    rescored,
    scores,
    to_json,
)
from retool_env.transcript import StopReason, write_transcripts

RUN = [
    sample("a", "42", correct=True),
    sample("a", "42.0", correct=True),
    sample("b", "41", correct=True),  # an older grader's fault
    sample("b", None),
    episode("c", StopReason.INFRASTRUCTURE),
]


def graded(run, name):
    short, grade = load_grader(name)
    return {each.address: each for each in rescored(run, grade, short)}


@pytest.fixture
def run(tmp_path):
    return open_run(write_eval(tmp_path / "run", RUN))


def own(tmp_path, body):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(body))
    return f"{path}:grade"


@pytest.mark.parametrize(
    ("grader", "verdicts"),
    [
        ("math", {"a/0": True, "a/1": True, "b/0": False, "b/1": False, "c/0": None}),
        ("exact", {"a/0": True, "a/1": False, "b/0": False, "b/1": False, "c/0": None}),
    ],
)
def test_named_graders_grade_the_answers_of_scored_episodes(run, grader, verdicts):
    found = graded(run, grader)
    assert {address: each.verdict for address, each in found.items()} == verdicts
    changed = {address for address, each in found.items() if each.changed}
    assert changed == ({"b/0"} if grader == "math" else {"a/1", "b/0"})


def test_an_own_function_gets_answer_and_reference_and_its_errors_are_kept(run, tmp_path):
    body = """
        from dataclasses import dataclass

        @dataclass
        class Pair:
            answer: str

        def grade(answer, gold):
            if answer == "41":
                raise KeyError("no 41")
            return len(Pair(answer).answer) == 4
    """
    found = graded(run, own(tmp_path, body))
    assert [found[name].verdict for name in ("a/0", "a/1", "b/0")] == [False, True, None]
    assert found["b/0"].error == "KeyError('no 41')" and not found["b/0"].changed
    [part] = scores(found.values())
    assert (part.episodes, part.changed, part.errors) == (5, 1, 1)
    before, after = ({f.key: f for f in figures} for figures in (part.before, part.after))
    assert (before["accuracy/avg"].mean, before["accuracy/avg"].count) == (0.75, 4)
    assert (after["accuracy/avg"].mean, after["accuracy/avg"].count) == (0.25, 3)


def test_a_grader_that_exits_is_an_error_of_the_episode_and_does_not_end_the_command(run, tmp_path):
    found = graded(run, own(tmp_path, "def grade(answer, gold): raise SystemExit"))
    assert [found[name].error for name in ("a/0", "b/0")] == ["SystemExit()"] * 2


@pytest.mark.parametrize("value", ["1", "None", "'yes'", "float('nan')"])
def test_a_grader_that_does_not_return_true_or_false_is_refused(run, tmp_path, value):
    name = own(tmp_path, f"def grade(answer, gold): return {value}")
    with pytest.raises(SettingsError, match=r"grade returned .* on a/0: it must return True"):
        graded(run, name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("maths", "unknown grader 'maths': take math, exact"),
        ("nowhere.py:grade", "no file 'nowhere.py'"),
        ("mine.py:other", "defines no function 'other'"),
        ("mine.py:VALUE", "defines no function 'VALUE'"),
        ("broken.py:grade", r"broken.py can't be loaded: SyntaxError"),
        ("exits.py:grade", r"exits.py can't be loaded: SystemExit"),
    ],
)
def test_a_grader_that_can_not_be_loaded_is_named(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    own(tmp_path, "VALUE = 1")
    (tmp_path / "broken.py").write_text("def grade(:")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit()")
    with pytest.raises(SettingsError, match=words):
        load_grader(name)


def test_parts_of_a_run_have_figures_of_their_own(tmp_path):
    folder = write_training(tmp_path / "run", RUN[:2])
    write_transcripts(folder / "eval-4.jsonl", [RUN[2]])
    run = open_run(folder)
    parts = scores(graded(run, "exact").values())
    assert [(part.group, part.episodes, part.changed) for part in parts] == [
        *(("", 2, 1), ("step-4", 1, 1)),
    ]


def test_each_arm_of_a_benchmark_is_a_part(tmp_path):
    run = open_run(a_recover(tmp_path / "run", RUN[:1], RUN[:1]))
    found = graded(run, "exact")
    assert [each.group for each in found.values()] == ["dose/0", "dose/0.5"]


def test_the_file_of_scores_holds_every_verdict_and_both_figures(run, tmp_path):
    found = list(graded(run, "exact").values())
    values = json.loads(json.dumps(to_json(run, "exact", found, scores(found))))
    assert (values["schema"], values["grader"], values["revision"]) == (1, "exact", 4)
    assert values["episodes"][1] == {
        **{"address": "a/1", "problem": "a", "answer": "42.0", "gold": "42"},
        **{"before": True, "after": False, "error": None},
    }
    [part] = values["figures"]
    means = [part[when][0]["mean"] for when in ("before", "after")]
    assert means == [0.75, 0.25]


def test_scores_lie_in_the_folder_of_a_run_and_beside_a_file(run, tmp_path):
    assert default_path(run, "exact") == run.path / "scores-exact.json"
    folder = write_training(tmp_path / "training", [RUN[0]])
    write_transcripts(folder / "eval-4.jsonl", [RUN[2]])
    assert default_path(open_run(f"{folder}@4"), "exact") == folder / "scores-exact@4.json"
    file = open_run(folder / "eval-4.jsonl")
    assert default_path(file, "mine") == folder / "eval-4.jsonl.scores-mine.json"
