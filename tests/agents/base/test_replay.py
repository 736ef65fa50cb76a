"""Losses of a real training, computed anew from its record."""

import json
import shutil

import pytest
from helpers.small_runs import make_small, records, settings

from agents import dapo
from agents.__main__ import main
from agents.base.replay import _objective, batches

STEPS = 3


def train(folder, **others):
    """Train by DAPO, whose punishment of long responses gives a signal without right answers.

    Batches are sampled ahead, so that ratios differ from 1 and clips act.
    """
    values = {"steps": STEPS, "resample": 0, "overlong": 0.9, "entropy": 0.01, "staleness": 1}
    values |= {"learning_rate": 0.02, "allow_high_learning_rate": True, **others}
    dapo.train(settings("dapo", name="run", model=make_small(folder / "m"), **values), folder / "r")
    return folder / "r"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, one_thread):
    """A run of `train`."""
    return train(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run."""
    return shutil.copytree(trained, tmp_path / "run")


def replay(run, *words):
    return main(["replay", str(run), *words])


def row(output, step):
    line = next(line for line in output.splitlines() if line.startswith(f"| {step} "))
    return [float(cell) for cell in line.strip("| ").split("|")]


def test_the_losses_of_the_runs_own_algorithm_equal_the_recorded_ones(run, capsys):
    assert replay(run, "--algorithm", "dapo", "clip_high=0.001", "clip_low=0.001") == 0
    output = capsys.readouterr().out
    for figure in ("policy_loss", "clip_ratio/region_mean", "reward"):
        assert f"{figure} " in output.splitlines()[-1]
    logged = records(run)
    rows = [row(output, step) for step in range(1, STEPS + 1)]
    for (_, loss, _, clipped, narrow, *_), record in zip(rows, logged, strict=True):
        assert loss == pytest.approx(record["policy_loss"], abs=1e-4)
        assert clipped == pytest.approx(record["clip_ratio/region_mean"], abs=1e-4)
        assert narrow >= clipped
    assert any(clipped > 0 for _, _, _, clipped, *_ in rows)
    assert any(loss != 0 for _, loss, *_ in rows)


def test_with_several_micro_batches_the_loss_agrees_and_clips_are_not_compared(tmp_path, capsys):
    run = train(tmp_path, micro_batch=2, entropy=0.0, steps=2)
    capsys.readouterr()
    assert replay(run, "--algorithm", "grpo") == 0
    words = capsys.readouterr().out.splitlines()[-1]
    assert "metrics.jsonl: loss " in words and "clip_ratio" not in words


def test_with_a_budget_of_tokens_every_figure_is_compared(tmp_path, capsys):
    run = train(tmp_path, tokens=100, steps=2)
    capsys.readouterr()
    assert replay(run, "--algorithm", "dapo") == 0
    words = capsys.readouterr().out.splitlines()[-1]
    assert "policy_loss " in words and "clip_ratio/region_mean " in words


def test_another_algorithm_has_its_own_advantages_and_loss(run, capsys):
    assert replay(run, "--algorithm", "reinforce_pp") == 0
    output = capsys.readouterr().out
    assert "loss, dapo (run)" in output and "loss, reinforce_pp" in output
    # Without the punishment all rewards are equal: no advantage, and no loss.
    assert [row(output, 1)[at] for at in (2, 6, 8)] == [0.0, 0.0, 1.0]
    assert any(row(output, step)[5] > 0 for step in range(1, STEPS + 1))


def test_an_algorithm_from_a_file_is_replayed(run, tmp_path, capsys):
    path = tmp_path / "half.py"
    path.write_text(
        "from agents import dapo, grpo\n"
        "class Settings(dapo.Settings): pass\n"
        "def train(settings, folder, resume=False):\n"
        "    bonus = lambda transcript, budget: float(len(transcript.completion_ids))\n"
        "    grpo.train(settings, folder, resume, bonus=bonus)\n"
    )
    assert replay(run, "--algorithm", str(path)) == 0
    output = capsys.readouterr().out
    assert "loss, half |" in output
    assert any(row(output, step)[6] > 0 for step in range(1, STEPS + 1))


def test_a_changed_record_is_found(run, capsys):
    path = run / "transcripts.jsonl"
    lines = [json.loads(line) for line in path.open()]
    for line in lines[:4]:
        line["reward"] = float(len(line["spans"][1]["token_ids"]))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert replay(run, "--algorithm", "rloo") == 1
    assert "the recomputed figures are not the recorded ones" in capsys.readouterr().out


def test_a_batch_that_is_not_whole_is_left_out_and_named(run, capsys):
    path = run / "transcripts.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-4]))  # a whole group less
    assert replay(run, "--algorithm", "grpo") == 0
    assert f"step {STEPS} is left out: 4 of 8 rollouts are on record" in capsys.readouterr().out


def test_batches_have_the_groups_of_the_trainer(run):
    made = _objective("dapo", json.loads((run / "config.json").read_text())["settings"])
    found = list(batches(run, made.settings, 1))
    assert [batch.version for batch in found] == list(range(STEPS))
    for batch in found:
        names = [transcript.problem.id for transcript in batch.transcripts]
        assert [len(set(names[at : at + 4])) for at in (0, 4)] == [1, 1]


def strip(run, field):
    path = run / "transcripts.jsonl"
    lines = [json.loads(line) for line in path.open()]
    for line in lines:
        if field == "trained_version":
            line[field] = None
        else:
            line["spans"][1][field] = None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--algorithm", "ppo"], "ppo can't be replayed: its advantages need the critic's values"),
        (["--algorithm", "sft"], "sft can't be replayed: it learns from traces"),
        (["--algorithm", "nothing"], "no algorithm 'nothing'"),
        (["--algorithm", "rloo", "clip_hihg=1"], "unknown setting 'clip_hihg'"),
        (["--algorithm", "grpo", "trl.num_iterations=2"], "not on record: the log-probs of later"),
        (["--algorithm", "grpo", "rollouts=3"], "are not whole groups of rollouts=3"),
    ],
)
def test_what_can_not_be_replayed_is_refused_with_the_reason(run, capsys, words, message):
    if "rollouts=3" in words:
        config = json.loads((run / "config.json").read_text())
        config["settings"]["rollouts"] = 3
        (run / "config.json").write_text(json.dumps(config))
    assert replay(run, *words) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "agents replay:" in line]
    assert message in line


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("trained_logprobs", "has no log-probs of the trainer"),
        ("trained_version", "batches can't be recovered"),
    ],
)
def test_a_record_that_lacks_a_part_is_refused(run, capsys, field, message):
    strip(run, field)
    assert replay(run, "--algorithm", "grpo") == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_rollouts_is_refused(run, tmp_path, capsys):
    assert replay(tmp_path, "--algorithm", "dapo") == 2
    assert "is not the folder of a training run" in capsys.readouterr().err
    (run / "transcripts.jsonl").unlink()
    assert replay(run, "--algorithm", "dapo") == 2
    assert "has no recorded rollouts (transcripts.jsonl)" in capsys.readouterr().err


def test_a_run_without_the_name_of_its_algorithm_needs_it_for_the_comparison(run, capsys):
    config = json.loads((run / "config.json").read_text())
    assert config.pop("algorithm") == "dapo"
    (run / "config.json").write_text(json.dumps(config))
    assert replay(run, "--algorithm", "grpo") == 0
    assert "--trained-by NAME compares with it" in capsys.readouterr().out
    assert replay(run, "--algorithm", "grpo", "--trained-by", "dapo") == 0
    assert "largest distance from metrics.jsonl" in capsys.readouterr().out
