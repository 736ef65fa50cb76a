"""Rollouts for a trainer that is none of TRL's: whatever makes a `Step`."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from agents.models.tiny import make_tokenizer
from retool_env.episode import Generation
from retool_env.errors import SettingsError
from retool_env.problems import Problem, ProblemList
from retool_env.rollout import RolloutEngine, ScriptedPolicy
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.training import processes
from retool_env.training.kept_batches import KeptBatch, KeptBatches
from retool_env.training.rollouts import Rollouts
from retool_env.training.rows import is_overlong, training_rows
from retool_env.training.step import Step

RULES = Rules(max_tokens=120, prompt_template="{query}\n", max_calls=2)
PROBLEMS = ProblemList(
    Problem(id=str(i), question=f"{i} * 7?", answer=str(i * 7)) for i in range(4)
)
ONE = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True)


class Box:
    async def run_async(self, code, limits=None, **_):
        return Execution(Outcome.OK, "7\n")


class Writer(ScriptedPolicy):
    """Answers right in half of the rollouts, and says nothing that counts to problem 3."""

    def __init__(self, **more):
        super().__init__(lambda text: "", make_tokenizer())
        vars(self).update(more)
        self.seeds = []

    async def act(self, token_ids, stop, budget, seed):
        self.seeds.append(seed)
        number = int(self.tokenizer.decode(token_ids).split(" * ")[0])
        turn = "hm" if number == 3 else f"<answer>{number * 7 + seed % 2}</answer>"
        ids = tuple(self.tokenizer.encode(turn))
        return Generation(ids, (-0.7,) * len(ids), "eos" if number == 3 else "tag")


def make_rollouts(policy=None, **more):
    return Rollouts(RolloutEngine(policy or Writer(), RULES, Box()), PROBLEMS, **more)


def make_step(prompts, number=0, logged=None, **more):
    log = {} if logged is None else logged
    return Step(
        **{
            "number": number,
            "batch": number,
            "prompts": prompts,
            "group": 2,
            "model": torch.nn.Linear(1, 1),
            "accelerator": ONE,
            "temperature": 1.0,
            "eos_token_ids": [make_tokenizer().eos_token_id],
            "log": log.__setitem__,
            **more,
        }
    )


def test_a_step_is_one_row_an_episode_in_the_prompts_order():
    logged, recorded = {}, []
    rollouts = make_rollouts(on_rollouts=lambda *given: recorded.append(given))
    rows = rollouts.collect(make_step(["2", "2", "0", "0"], number=5, logged=logged))
    transcripts = rows["transcript"]
    assert [t.problem.id for t in transcripts] == ["2", "2", "0", "0"]
    assert {t.trained_version for t in transcripts} == {5} and recorded == [(5, transcripts)]
    again = training_rows(transcripts, [make_tokenizer().eos_token_id])
    assert rows == {**again, "untrained": [[], [], [], []]}
    assert logged["rollout/tokens"] == sum(len(t.completion_ids) for t in transcripts)
    assert logged["env/deadline_cut"] == logged["rollout/failed"] == 0.0


def test_in_evaluation_nothing_is_recorded_or_logged():
    logged, recorded = {}, []
    rollouts = make_rollouts(on_rollouts=lambda *given: recorded.append(given))
    rows = rollouts.collect(make_step(["1", "1"], logged=logged, training=False))
    assert [t.trained_version for t in rows["transcript"]] == [None, None]
    assert not logged and not recorded


def test_a_batch_is_sampled_with_seeds_of_its_number():
    seeds = []
    for batch in (0, 1, 1):
        policy = Writer()
        make_rollouts(policy).collect(make_step(["0", "0"], batch=batch))
        seeds.append(sorted(policy.seeds))
    assert seeds[0] != seeds[1] == seeds[2]


def test_only_a_batch_that_an_earlier_step_trained_on_goes_on(tmp_path):
    kept = KeptBatches(tmp_path, lambda: 0)

    def collect(number, resumed):
        logged = {}
        rollouts = make_rollouts(kept=kept)
        step = make_step(["0", "0"], number, logged, batch=0, until=4, resumed=resumed)
        rollouts.collect(step)
        return rollouts.goes_on, "rollout/tokens" in logged

    # Sampled anew inside its passes, killed, and resumed there once more: no step has used it.
    assert collect(2, resumed=True) == collect(2, resumed=True) == (False, True)
    assert collect(3, resumed=True) == (True, False)


def test_batches_that_are_coming_are_sampled_ahead():
    coming = [["0", "0"], ["1", "1"], ["2", "2"]]
    rollouts = make_rollouts(staleness=1)

    def ask(number, prompts=None):
        known = coming[number + 1 :][:1]
        step = make_step(
            prompts or coming[number],
            number,
            coming=lambda asked: known[0] if known and asked == number + 1 else None,
        )
        return [t.problem.id for t in rollouts.collect(step)["transcript"]]

    assert (ask(0), rollouts.ahead) == (["0", "0"], [1])
    assert (ask(1), rollouts.ahead) == (["1", "1"], [2])
    with pytest.raises(SettingsError, match="other problems than the ones"):
        ask(2, ["3", "3"])
    rollouts.close()
    rollouts = make_rollouts(staleness=1)
    assert (ask(2), rollouts.ahead) == (["2", "2"], [])  # the trainer asks for no more
    rollouts.close()


def test_a_batch_is_sampled_ahead_by_all_processes_or_by_none(tmp_path, monkeypatch):
    accelerator = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
    step = make_step(["0", "0"], accelerator=accelerator, coming=lambda number: ["1", "1"])
    kept = KeptBatches(tmp_path, lambda: 0)
    monkeypatch.setattr(processes, "everywhere", lambda own: [own, own])

    def ahead(seen):
        """The batches that are sampled ahead, if the other process sees all files or none."""
        name = "retool_env.training.kept_batches.gathered"
        monkeypatch.setattr(name, lambda _, *own: [[*own], [seen] * len(own)])
        rollouts = make_rollouts(staleness=1, kept=kept)
        rollouts.collect(step)
        found = rollouts.ahead
        rollouts.close()
        return found

    assert ahead(False) == [1]
    group = make_rollouts().collect(make_step(["1", "1"]))["transcript"]
    for rank in (0, 1):
        part = SimpleNamespace(num_processes=2, process_index=rank, is_main_process=False)
        kept.save(make_step(["1", "1"], 1, accelerator=part), KeptBatch([group], [], [], ["1"]))
    assert ahead(True) == []
    assert ahead(False) == [1]


def test_an_evaluation_samples_with_the_steps_weights_and_settings_of_its_own():
    policy = Writer(temperature=1.0)
    rollouts = make_rollouts(policy, staleness=1)
    step = make_step(["0", "0"], coming=lambda number: ["1", "1"] if number == 1 else None)
    rollouts.collect(step)
    cleared = []
    policy.clear_cache = lambda: cleared.append(rollouts.ahead)

    async def sample(policy):
        ahead = rollouts._ahead[1][1].done()  # no turn of a batch samples with these settings
        return policy.temperature, policy.top_p, policy.weight_version, ahead

    later = make_step((), 1, training=False)
    assert rollouts.evaluate(later, sample, 0.9, 0.7) == (0.9, 0.7, 1, True)
    assert (policy.temperature, policy.top_p) == (1.0, 1.0) and cleared == [[1]]

    async def fail(policy):
        raise OSError("no sandbox")

    with pytest.raises(OSError, match="no sandbox"):
        rollouts.evaluate(later, fail, 0.9, 0.7)
    assert (policy.temperature, policy.top_p) == (1.0, 1.0)
    again = rollouts.collect(make_step(["1", "1"], 1))
    assert [t.problem.id for t in again["transcript"]] == ["1", "1"]
    rollouts.close()


def test_episodes_with_a_void_turn_are_rows_without_a_token_to_train_on():
    logged = {}
    step = make_step(["3", "3", "1", "1"], logged=logged)
    rows = make_rollouts(mask_void=True).collect(step)
    plain = training_rows(rows["transcript"], step.eos_token_ids)
    assert [any(mask) for mask in plain["env_mask"]] == [True] * 4
    assert [any(mask) for mask in rows["env_mask"]] == [False, False, True, True]
    assert not any(map(any, rows["logprobs"][:2])) and rows["logprobs"][2:] == plain["logprobs"][2:]
    assert rows["completion_ids"] == plain["completion_ids"]
    assert logged["env/void_episodes"] == 0.5


def test_episodes_that_ended_at_a_budget_are_rows_without_a_token_to_train_on():
    class Long(Writer):
        async def act(self, token_ids, stop, budget, seed):
            if seed % 2:
                return await super().act(token_ids, stop, budget, seed)
            self.seeds.append(seed)
            return Generation((5,) * budget, (-0.7,) * budget, "length")

    logged, policy = {}, Long()
    step = make_step(["0", "0", "1", "1", "2", "2"], logged=logged)
    rows = make_rollouts(policy, mask_overlong=True).collect(step)
    plain = training_rows(rows["transcript"], step.eos_token_ids)
    overlong = [is_overlong(transcript) for transcript in rows["transcript"]]
    assert len(set(overlong)) == 2 and all(map(any, plain["env_mask"]))
    assert [any(mask) for mask in rows["env_mask"]] == [not each for each in overlong]
    for each, masked, mask, before in zip(
        overlong, rows["env_mask"], rows["logprobs"], plain["logprobs"], strict=True
    ):
        assert len(masked) == len(mask) and mask == ([0.0] * len(mask) if each else before)
    assert rows["completion_ids"] == plain["completion_ids"]
    assert logged["env/overlong_episodes"] == sum(overlong) / 6


def test_rollouts_load_no_trainer():
    code = "import sys, retool_env.training.rollouts; print('trl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


class Dull(Writer):
    """All rollouts of problem 0 are wrong; the other problems wait until they may end."""

    def __init__(self):
        super().__init__()
        self.asked, self.may_end = [], asyncio.Event()

    async def act(self, token_ids, stop, budget, seed):
        number = int(self.tokenizer.decode(token_ids).split(" * ")[0])
        self.asked.append(number)
        if len(self.asked) > 4:  # another group has begun, in place of a group of problem 0
            self.may_end.set()
        if number:
            await asyncio.wait_for(self.may_end.wait(), 20)
        ids = tuple(
            self.tokenizer.encode(f"<answer>{number * 7 + (seed % 2 or not number)}</answer>")
        )
        return Generation(ids, (-0.7,) * len(ids), "tag")


def test_a_group_that_teaches_nothing_is_replaced_before_others_have_ended():
    logged, policy = {}, Dull()
    rollouts = make_rollouts(policy, resample=20, resample_by="reward")
    rows = rollouts.collect(make_step(["0", "0", "1", "1"], logged=logged))
    groups = [rows["transcript"][i : i + 2] for i in (0, 2)]
    assert all(len({t.reward for t in group}) == 2 for group in groups)
    assert [t.problem.id for t in groups[0]] != ["0", "0"]
    replaced = len(policy.asked) // 2 - 2
    assert logged["rollout/resampled"] == replaced >= 1
    assert len(rows["untrained"][0]) == 2 * replaced
    # The choice of the other problems does not depend on the order in which groups end.
    again = make_rollouts(Dull(), resample=20, resample_by="reward")
    assert again.collect(make_step(["0", "0", "1", "1"]))["transcript"] == rows["transcript"]


def test_a_group_that_can_not_be_replaced_by_one_that_teaches_stays():
    logged, policy = {}, Writer()
    problems = ProblemList([PROBLEMS[3]])
    rollouts = Rollouts(RolloutEngine(policy, RULES, Box()), problems, resample=2)
    rows = rollouts.collect(make_step(["3", "3"], logged=logged))
    assert logged["rollout/resampled"] == 2 and len(rows["untrained"][0]) == 4
    first = Rollouts(RolloutEngine(Writer(), RULES, Box()), problems, resample=1)
    assert first.collect(make_step(["3", "3"]))["transcript"] == rows["transcript"]
    assert len(set(policy.seeds)) == 6


class Slow(ProblemList):
    """Problems of which each replacement is problem 9."""

    def __getitem__(self, index):
        return self.get("9")


class Late(Writer):
    """One of two rollouts is right, but in problem 3. Problem 9 waits until it may end."""

    def __init__(self, may_end, teaches):
        super().__init__()
        self.may_end, self.dull, self.asked = may_end, None if teaches else 3, []

    async def act(self, token_ids, stop, budget, seed):
        number = int(self.tokenizer.decode(token_ids).split(" * ")[0])
        self.asked.append(number)
        while number == 9 and not self.may_end.is_set():
            await asyncio.sleep(0.01)
        right = self.asked.count(number) % 2 and number != self.dull
        ids = tuple(self.tokenizer.encode(f"<answer>{number * 7 + (not right)}</answer>"))
        return Generation(ids, (-0.7,) * len(ids), "tag")


@pytest.mark.parametrize("stopped", [False, True])
def test_a_batch_takes_a_group_of_the_next_in_place_of_a_late_one_also_after_a_stop(
    tmp_path, stopped
):
    problems = Slow(Problem(id=str(i), question=f"{i} * 7?", answer=str(i * 7)) for i in range(10))
    batches = [[name for name in pair for _ in range(2)] for pair in ("01", "34", "56", "78")]
    kept, logged = KeptBatches(tmp_path, lambda: 0), {}

    def start(may_end, teaches=False):
        policy = Late(may_end, teaches)
        more = {"staleness": 2, "resample": 1, "kept": kept}
        return policy, Rollouts(RolloutEngine(policy, RULES, Box()), problems, **more)

    def ask(rollouts, number):
        coming = dict(enumerate(batches)).get
        step = make_step(batches[number], number, logged, coming=coming)
        return [t.problem.id for t in rollouts.collect(step)["transcript"]][::2]

    may_end = threading.Event()
    policy, rollouts = start(may_end)
    assert ask(rollouts, 0) == ["0", "1"] and logged["rollout/carried"] == 0
    while policy.asked.count(9) < 2:  # until problem 3 was replaced
        time.sleep(0.01)
    assert ask(rollouts, 1) == ["4", "5"] and logged["rollout/carried"] == 1
    may_end.set()
    if stopped:
        rollouts.close()
        policy, rollouts = start(may_end, teaches=True)
    assert ask(rollouts, 2) == (["3", "6"] if stopped else ["9", "6"])
    assert logged["rollout/carried"] == (not stopped)
    assert ask(rollouts, 3) == ["7", "8"] and logged["rollout/carried"] == 0
    rollouts.close()


def test_an_error_in_one_group_ends_the_others():
    class Broken(Dull):
        async def act(self, token_ids, stop, budget, seed):
            if "0 *" in self.tokenizer.decode(token_ids):
                raise MemoryError("no room")
            await asyncio.Event().wait()

    rollouts = make_rollouts(Broken(), resample=2)
    with pytest.raises(MemoryError, match="no room"):
        rollouts.collect(make_step(["0", "0", "1", "1"]))
    assert rollouts.engine.progress.generating == 0


def test_cut_and_mixed_turns_are_counted_and_the_lag_is_a_mean_over_tokens():
    class Cut(Writer):
        """Three tokens of each turn are of version 1, the others of version 4."""

        async def act(self, token_ids, stop, budget, seed):
            turn = await super().act(token_ids, stop, budget, seed)
            self.mixed_turns += 1
            runs = ((1, 3), (4, len(turn.token_ids) - 3)) if seed % 2 else ()
            return dataclasses.replace(turn, weight_version=1, weight_runs=runs)

    for at_update in ("cut", "keep"):
        logged, policy = {}, Cut(at_update=at_update)
        rollouts = make_rollouts(policy)
        for number in (5, 6):
            rows = rollouts.collect(make_step(["0", "0", "1", "1"], number, logged=logged))
            cut = [bool(t.spans[1].weight_runs) for t in rows["transcript"]]
            ages = [
                number - version
                for t in rows["transcript"]
                for version, length in t.spans[1].weights
                for _ in range(length)
            ]
            assert logged["rollout/cut_turns"] == sum(cut) > 0
            assert logged["rollout/weight_versions"] == 1 + sum(cut) / 4
            assert logged["rollout/weight_lag"] == pytest.approx(sum(ages) / len(ages))
            assert logged["rollout/weight_lag_max"] == number - 1
            assert logged.get("rollout/mixed_turns") == (4 if at_update == "keep" else None)
