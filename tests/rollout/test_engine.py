from __future__ import annotations

import asyncio

import pytest

from agents.tiny import make_tokenizer
from retool_env.episode import Generation, Rules
from retool_env.problems import Problem, arithmetic
from retool_env.rollout import RolloutEngine, ScriptedPolicy
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import StopReason, check_transcript

RULES = Rules(max_tokens=200, prompt_template="{query}\n")
PROBLEMS = [Problem(id=str(i), question=f"{i} * 7?", answer=str(i * 7)) for i in range(12)]


def solve(text: str) -> str:
    """Runs the product, then answers what was printed."""
    if "<interpreter>" not in text:
        return f"<code>\nprint({text.split('?')[0]})\n</code>"
    return f"<answer>{text.split('<interpreter>')[1].split('<')[0].strip()}</answer>"


def test_groups_are_whole_in_order_and_right(sandbox):
    engine = RolloutEngine(ScriptedPolicy(solve, make_tokenizer()), RULES, sandbox)
    seen = []
    groups = engine.run(PROBLEMS, n=2, on_group=lambda index, group: seen.append(index))
    assert sorted(seen) == list(range(12)) and [len(group) for group in groups] == [2] * 12
    for problem, group in zip(PROBLEMS, groups, strict=True):
        for transcript in group:
            check_transcript(transcript)
            assert transcript.problem == problem and transcript.correct and transcript.reward == 1.0
            assert [span.author for span in transcript.spans] == ["prompt", "model", "env", "model"]


def test_there_is_no_barrier_between_turns():
    """While the first episode's program hangs, all others finish; it ends only when they have."""

    class Hanging:
        def __init__(self):
            self.release = asyncio.Event()

        async def run_async(self, code, limits=None):
            if "print(0 " in code:
                await self.release.wait()
            return Execution(Outcome.OK, "1\n")

    async def drive():
        box = Hanging()
        engine = RolloutEngine(ScriptedPolicy(solve, make_tokenizer()), RULES, box)
        order = []
        async for index, _ in engine.groups(PROBLEMS):
            order.append(index)
            if len(order) == len(PROBLEMS) - 1:
                box.release.set()
        return order

    order = asyncio.run(asyncio.wait_for(drive(), 60))
    assert order[-1] == 0 and sorted(order) == list(range(12))


def test_concurrency_is_bounded():
    running, most = 0, 0

    class Counting:
        async def run_async(self, code, limits=None):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1
            return Execution(Outcome.OK, "1\n")

    RolloutEngine(ScriptedPolicy(solve, make_tokenizer()), RULES, Counting(), concurrency=3).run(
        PROBLEMS
    )
    assert most == 3


def test_a_failed_sandbox_marks_its_episode_and_spares_the_others():
    class Flaky:
        async def run_async(self, code, limits=None):
            failed = "print(3 " in code
            return (
                Execution(Outcome.INFRASTRUCTURE, "", "gone")
                if failed
                else Execution(Outcome.OK, "1\n")
            )

    groups = RolloutEngine(ScriptedPolicy(solve, make_tokenizer()), RULES, Flaky()).run(PROBLEMS)
    reasons = [group[0].stop_reason for group in groups]
    assert reasons.count(StopReason.INFRASTRUCTURE) == 1 and reasons[3] is StopReason.INFRASTRUCTURE
    assert groups[3][0].reward is None and "gone" not in groups[3][0].text


def test_seeds_differ_between_episodes_and_turns_and_repeat_between_runs():
    tokenizer = make_tokenizer()
    runs = []
    for seed in (1, 1, (1, 2)):
        seeds = []

        class Watching(ScriptedPolicy):
            async def act(self, token_ids, stop, budget, seed, seeds=seeds):
                seeds.append(seed)
                return await super().act(token_ids, stop, budget, seed)

        class Box:
            async def run_async(self, code, limits=None):
                return Execution(Outcome.OK, "1\n")

        RolloutEngine(Watching(solve, tokenizer), RULES, Box()).run(PROBLEMS, 2, seed)
        assert len(set(seeds)) == len(seeds) == 48
        runs.append(sorted(seeds))
    assert runs[0] == runs[1] != runs[2]


def test_budgets_shrink_as_an_episode_grows():
    budgets = []

    class Watching(ScriptedPolicy):
        async def act(self, token_ids, stop, budget, seed):
            budgets.append((len(token_ids), budget))
            return await super().act(token_ids, stop, budget, seed)

    class Box:
        async def run_async(self, code, limits=None):
            return Execution(Outcome.OK, "1\n")

    policy = Watching(solve, make_tokenizer(), context_length=100)
    RolloutEngine(policy, RULES, Box()).run(PROBLEMS[:1])
    (before, first), (after, second) = budgets
    assert before + first == after + second == 100  # the context is the tighter limit here


def test_a_prompt_that_fills_the_context_is_refused():
    policy = ScriptedPolicy(solve, make_tokenizer(), context_length=5)
    engine = RolloutEngine(policy, Rules(max_tokens=9, interpreter=False), None)
    with pytest.raises(ValueError, match="shorter prompt_template"):
        engine.run(PROBLEMS[:1])


def test_an_episode_that_fills_the_context_is_truncated():
    policy = ScriptedPolicy(lambda text: "hm " * 40, make_tokenizer(), context_length=60)
    rules = Rules(max_tokens=500, void_turn="continue", prompt_template="{query}\n")
    [[transcript]] = RolloutEngine(policy, rules, object()).run(PROBLEMS[:1])
    assert transcript.stop_reason is StopReason.TOKEN_BUDGET
    assert len(transcript.prompt_ids + transcript.completion_ids) == 60


def test_an_error_of_the_policy_ends_the_run_with_that_error():
    class Broken(ScriptedPolicy):
        async def act(self, token_ids, stop, budget, seed) -> Generation:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        RolloutEngine(
            Broken(solve, make_tokenizer()), Rules(max_tokens=9, interpreter=False), None
        ).run(PROBLEMS)


def test_missing_settings_are_refused():
    policy = ScriptedPolicy(solve, make_tokenizer())
    with pytest.raises(ValueError, match="max_tokens"):
        RolloutEngine(policy, Rules(), None)
    with pytest.raises(ValueError, match="sandbox"):
        RolloutEngine(policy, RULES, None)
    with pytest.raises(ValueError, match="concurrency"):
        RolloutEngine(policy, RULES, object(), concurrency=0)


def test_text_only_episodes_need_no_sandbox():
    rules = Rules(max_tokens=200, interpreter=False)
    policy = ScriptedPolicy(
        lambda text: "<code>print(1)</code> <answer>0</answer>", make_tokenizer()
    )
    [[transcript]] = RolloutEngine(policy, rules, None).run([arithmetic()[0]])
    assert transcript.stop_reason is StopReason.ANSWERED and not transcript.calls
