"""GRPO in two processes: they stay in step, whatever the episodes of each do."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from helpers import HELPERS, ROOT

from agents.models.tiny import make_checkpoint


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The outcome of each scenario of two_processes.py, in each process."""
    folder = tmp_path_factory.mktemp("two")
    checkpoint = make_checkpoint(folder / "checkpoint", seed=0)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ran = subprocess.run(
        [*command, str(HELPERS / "two_processes.py"), str(checkpoint), str(folder)],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{HELPERS.parent}",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}


def assert_in_step(pair):
    assert [each["error"] for each in pair] == [None, None]
    assert pair[0]["weights"] == pair[1]["weights"] and pair[0]["moved"] and pair[1]["moved"]


def test_uneven_use_of_the_tool_and_whole_groups(outcomes):
    first, second = pair = outcomes["uneven"]
    assert_in_step(pair)
    assert first["calls"] == [[3] * 8] * 2 and second["calls"] == [[0] * 8] * 2
    for one in pair:  # two groups of four, none of them split
        assert [len(batch) for batch in one["problems"]] == [8, 8]
        assert all(len(set(b[i : i + 4])) == 1 for b in one["problems"] for i in (0, 4))
    assert not {p for b in first["problems"] for p in b} & {
        p for b in second["problems"] for p in b
    }


def test_a_budget_of_tokens_trains_on_the_same_whichever_process_computes_it(outcomes):
    planned, plain = outcomes["planned"], outcomes["uneven"]
    assert_in_step(planned)
    for one, other in zip(planned, plain, strict=True):
        assert one["weights"] == pytest.approx(other["weights"], rel=1e-4)
        assert one["problems"] == other["problems"] and one["calls"] == other["calls"]
        for log, expected in zip(one["logs"], other["logs"], strict=True):
            for name in ("loss", "grad_norm", "entropy"):
                assert log[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6)


def test_columns_of_episodes_go_to_the_ranks_of_the_plan_and_back(outcomes):
    assert outcomes["exchange"] == [True, True]


def test_a_starved_process_trains_on_with_the_other(outcomes):
    first, second = pair = outcomes["starved"]
    assert_in_step(pair)
    assert first["rewards"] == [[1.0, -1.0, -1.0, -1.0, 1.0, -1.0, 1.0, 1.0]]
    assert second["rewards"] == [[None] * 8]
    [log] = first["logs"]
    assert log["reward"] == 0.0 and log["rollout/failed"] == 8.0


def test_nothing_to_learn_from_ends_all_and_an_error_of_one_is_one_of_both(outcomes):
    for one in outcomes["all fail"]:
        assert "all 8 episodes of step 0 failed" in one["error"] and not one["moved"]
    first, second = outcomes["one breaks"]
    assert first["error"] == "RuntimeError: process 1 failed: read its error text for the reason"
    assert second["error"] == "MemoryError: no room"


def test_what_one_process_can_not_write_down_ends_both(outcomes):
    first, second = outcomes["full disk"]
    assert first["error"] == "RuntimeError: process 1 failed: read its error text for the reason"
    assert second["error"] == "OSError: no space"


def test_rounds_of_resampling_are_agreed_on(outcomes):
    """All groups of one process teach. The other process's never do, and it resamples twice."""
    first, second = pair = outcomes["dull"]
    assert_in_step(pair)
    assert second["rewards"] == [[-1.0] * 8] and set(first["rewards"][0]) == {1.0, -1.0}
    [log] = first["logs"]
    assert log["rollout/resampled"] == 4.0  # none, and two groups twice


def test_sampling_ahead_is_one_step_old_and_takes_each_steps_weights(outcomes):
    pair = outcomes["ahead"]
    assert_in_step(pair)
    for one in pair:
        assert [set(batch) for batch in one["lags"]] == [{0}, {1}, {1}]
        assert one["served_moved"]
        assert [log["rollout/weight_lag"] for log in one["logs"]] == [0, 1, 1]
    for one in outcomes["own"]:
        assert [set(batch) for batch in one["lags"]] == [{0}, {0}]
    assert_in_step(outcomes["own"])
    # The same problems in the same order, whether they were sampled ahead or not.
    for ahead, own in zip(pair, outcomes["own"], strict=True):
        assert ahead["problems"][:2] == own["problems"]


def test_weights_in_shards_are_gathered_with_their_adapters(outcomes):
    for one in outcomes["shards"]:
        kinds = ("sharded", "names", "equal", "adapted", "cast", "adapter", "deltas")
        assert one == dict.fromkeys(kinds, True)
