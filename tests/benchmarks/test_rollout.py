"""The rollouts' benchmark as a whole, and what it says of the engine itself."""

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks import rollout
from benchmarks.parts import overhead
from benchmarks.parts.overhead import InstantPolicy, MeetingTool, WaitingTool
from benchmarks.parts.overlap import BARRIER, ENGINE, ONE_SHOT, SLOWEST, TRL
from benchmarks.parts.tool_time import tool_time
from retool_env.rollout import RolloutEngine
from retool_env.transcript import StopReason


def test_all_episodes_are_alive_at_once() -> None:
    """Also where a turn and a program take no time: all ask for their first turn before one has a second."""
    seen = []

    class Noting(InstantPolicy):
        async def act(self, token_ids, stop, budget, seed):
            seen.append(len(token_ids))
            return await super().act(token_ids, stop, budget, seed)

    overhead.run(50, policy := Noting(2, True), WaitingTool(0.0))
    assert policy.peak == 50
    assert seen == sorted(seen) and len(seen) == 150  # turn by turn


def test_a_run_whose_episodes_were_not_alive_at_once_is_refused(monkeypatch) -> None:
    def narrow(*args, concurrency):
        return RolloutEngine(*args, concurrency=concurrency // 2)

    monkeypatch.setattr(overhead, "RolloutEngine", narrow)
    with pytest.raises(RuntimeError, match="of 20 episodes, 10 were alive"):
        overhead.run(20, InstantPolicy(1, False), WaitingTool(0.0))


@pytest.mark.parametrize(
    ("answers", "reason"), [(True, StopReason.ANSWERED), (False, StopReason.STOPPED)]
)
def test_an_instant_episode_is_as_stated(answers: bool, reason: StopReason) -> None:
    policy = InstantPolicy(3, answers, first=200)
    transcript = overhead.run(4, policy, WaitingTool(0.0))[2]
    assert (len(transcript.calls), transcript.stop_reason) == (3, reason)
    lengths = [len(span.token_ids) for span in transcript.spans if span.author == "model"]
    assert lengths == [200, overhead.TURN, overhead.TURN, overhead.TURN if answers else 1]


def test_each_turns_ids_and_log_probs_are_its_own() -> None:
    """As a sampler's are: their memory is an episode's, not all episodes'."""
    policy = InstantPolicy(1, False)

    async def two():
        return [await policy.act([1], (), 100, 0) for _ in range(2)]

    one, other = asyncio.run(two())
    assert one.token_ids == other.token_ids and one.token_ids is not other.token_ids
    large = [
        i for i, token in enumerate(one.token_ids) if token > 256
    ]  # smaller ones Python shares
    assert len(large) > overhead.TURN / 2
    assert all(one.token_ids[i] is not other.token_ids[i] for i in large)
    assert all(a is not b for a, b in zip(one.logprobs, other.logprobs, strict=True))


def test_memory_is_looked_at_while_all_programs_run() -> None:
    meeting = MeetingTool(30)
    overhead.run(30, InstantPolicy(1, False), meeting)
    assert meeting.missing == 0 and meeting.megabytes > 0


def test_tools_wait_one_after_the_other_in_trls_loop_alone() -> None:
    found = tool_time(4, 0.1)
    trl, coroutine, trainer, alone = found.values()
    assert trl["wall_s"] >= 0.4 and coroutine["wall_s"] >= 0.4
    assert trainer["wall_s"] >= 0.1 and alone["wall_s"] >= 0.1
    assert list(found)[2:] == ["TRL's trainer, our rollout_func", "our engine alone"]


@pytest.mark.timeout(200)
def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(rollout, "TOOL_ROLLOUTS", 4)
    out = tmp_path / "rollout.json"
    few = ["--episodes", "4", "--turn-tokens", "20", "--at-once", "64", "--rounds", "1"]
    fast = ["--tool-median", "0.01", "--tool-p99", "0.05", "--tool-scale", "0", "1"]
    assert rollout.main([*few, *fast, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    found = report["overlap"]
    assert [setting["tool_scale"] for setting in found["settings"]] == [0, 1]
    for setting in found["settings"]:
        assert list(setting["seconds"]) == [ONE_SHOT, SLOWEST, ENGINE, BARRIER, TRL]
        assert min(setting["seconds"].values()) > 0
        longer = max(setting["seconds"][ONE_SHOT], setting["seconds"][SLOWEST])
        assert setting["reference_s"] == longer
        assert setting["engine_over"]["reference"]["median"] == pytest.approx(
            setting["seconds"][ENGINE] / longer, abs=0.01
        )
    light, heavy = found["settings"]
    assert light["programs_s"][TRL] == 0 < heavy["programs_s"][BARRIER] < heavy["programs_s"][TRL]
    assert light["programs_at_least_generation"][TRL] is False
    assert heavy["seconds"][TRL] > heavy["programs_s"][TRL]
    assert {row["differ"] for row in found["exactness"].values()} == {0}
    assert found["exactness"][TRL]["episodes"] == 8
    for way in found["read"]["ways"].values():
        assert way["beyond_incomplete_blocks"] == 0
    assert report["natural"]["tiny"]["differ"] == 0
    assert report["overhead"]["short"]["episodes"] == 64
    assert report["overhead"]["long"]["context_tokens"] > 4000
    printed = capsys.readouterr().out
    for words in ("engine / reference", "blocks of 16", "again beyond these: TRL's loop"):
        assert words in printed
