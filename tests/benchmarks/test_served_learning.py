"""The benchmark of learning from cut turns: its statistics, and a short run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.vllm_servers import Served, serving

from agents.models.tiny import make_checkpoint, make_tokenizer
from benchmarks import served_learning


def test_a_change_is_paired_by_seed_and_problem():
    fresh = [{str(i): (2, 4) for i in range(40)}, {str(i): (4, 4) for i in range(40)}]
    stale = [{str(i): (3 + i % 2, 4) for i in range(40)}, {str(i): (2, 4) for i in range(30)}]
    found = served_learning.change(fresh, stale)
    # The first seed's gains are 1/4 and 1/2; the second seed's loss is 1/2, and ten lack a pair.
    assert found["mean"] == pytest.approx((40 * 0.375 - 30 * 0.5) / 70)
    assert found["low"] < 0 < found["high"]
    assert (found["problems"], found["seeds"]) == (40, 2)


def test_no_change_where_all_scores_are_equal():
    scores = [{str(i): (i % 5, 4) for i in range(40)}]
    found = served_learning.change(scores, scores)
    assert found["mean"] == 0 and found["low"] <= 0 <= found["high"]


@pytest.mark.parametrize(("option", "value"), [("--staleness", "2"), ("--steps", "5")])
def test_options_that_cannot_be_compared_are_refused(option, value, capsys):
    options = ["--servers", "http://h:1", "--weights-folder", "w", option, value]
    with pytest.raises(SystemExit):
        served_learning.main(options)
    assert "must begin with 0, the reference" in capsys.readouterr().err


@pytest.mark.slow
def test_a_short_run(tmp_path: Path, capsys) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", seed=0)
    out = tmp_path / "found.json"
    answer = make_tokenizer().encode("<answer>1</answer>")
    with serving(Served(root=str(checkpoint), written=answer)) as url:
        status = served_learning.main(
            [
                *("--servers", url, "--weights-folder", str(tmp_path / "weights")),
                *("--checkpoint", str(checkpoint), "--staleness", "0", "2", "--steps", "2"),
                *("--problems", "2", "--k", "1", "--runs", str(tmp_path), "--out", str(out)),
                *("--set", "prompts=2", "rollouts=2", "micro_batch=2", "env.max_tokens=40"),
            ]
        )
    assert status == 0
    found = json.loads(out.read_text())
    for staleness, [row] in ((key, runs.values()) for key, runs in found["runs"].items()):
        assert list(row["accuracy"]) == ["0", "1", "2"]
        assert row["lag_max"] == (1 if staleness == "2" else 0)  # of two steps
    assert found["changes"]["2"]["problems"] == 2
    assert "| 2 | 0 |" in capsys.readouterr().out
