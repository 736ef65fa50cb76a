"""Each episode of an evaluation is handed over as it ends, and samples the same in any company."""

import asyncio
import gc

import pytest

from agents.models.tiny import make_tokenizer
from retool_env.errors import PolicyUnavailable, RequestRefused, SettingsError
from retool_env.evaluation.run import Job, evaluate, run_jobs
from retool_env.problem import Problem
from retool_env.rollout import RolloutEngine, ScriptedPolicy
from retool_env.rollout.policy import TextGeneration, TextPolicy, Usage
from retool_env.rules import Rules
from retool_env.transcript import StopReason

PROBLEMS = [Problem(f"own/{i}", f"{i}?", str(i)) for i in range(6)]
RULES = Rules(interpreter=False, prompt_template="{query}")
JOBS = [Job(i, problem, k) for i, problem in enumerate(PROBLEMS) for k in range(2)]


class Writer(TextPolicy):
    """Answers each question with itself, lower numbers first; notes seeds and requests at once."""

    def __init__(self, ordered=False):
        self.ordered = ordered
        self.seeds = {}
        self.now = self.most = self.answered = 0

    async def write(self, transcript, stop, seed):
        number = int(transcript.problem.answer)
        self.seeds.setdefault(transcript.problem.id, set()).add(seed)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        while self.ordered and self.answered < 2 * number:
            await asyncio.sleep(0.001)
        self.now -= 1
        self.answered += 1
        return TextGeneration(f"<answer>{number}</answer>", "tag", usage=Usage(1, number, 1))


def ran(policy, jobs=JOBS, concurrency=32, going_on=lambda: True, seen=lambda: None):
    ended = []

    def on_end(*episode):
        ended.append(episode)
        seen()

    engine = RolloutEngine(policy, RULES, None, concurrency)
    complete = run_jobs(engine, jobs, 0, on_end, going_on)
    return complete, ended, engine


def test_each_episode_is_handed_over_as_it_ends():
    policy, answered = Writer(ordered=True), []
    complete, ended, engine = ran(
        policy, list(reversed(JOBS)), seen=lambda: answered.append(policy.answered)
    )
    assert complete and len(ended) == 12 and engine.progress.done == 12
    assert all(transcript.correct for _, transcript, _ in ended)
    assert answered[0] < 12 and answered[-1] == 12  # the first one did not wait for the last
    assert [usage for job, _, usage in ended if job.index == 3] == [Usage(1, 3, 1)] * 2


def test_an_episode_has_the_seed_that_it_has_in_a_whole_evaluation():
    whole, parts = Writer(), Writer()
    evaluate(whole, RULES, PROBLEMS, 2, None)
    ran(parts, JOBS[:5])
    ran(parts, JOBS[5:])
    assert whole.seeds == parts.seeds


def test_no_more_run_at_once_than_the_engine_allows():
    policy = Writer()
    ran(policy, concurrency=3)
    assert policy.most == 3


def test_what_runs_is_finished_when_no_further_episode_may_begin():
    policy = Writer()
    complete, ended, _ = ran(policy, concurrency=3, going_on=lambda: len(policy.seeds) < 2)
    assert not complete and 3 <= len(ended) < 12


def test_an_error_ends_what_runs():
    class Broken(Writer):
        async def write(self, transcript, stop, seed):
            if transcript.problem.answer == "2":
                raise RuntimeError("seen")
            return await super().write(transcript, stop, seed)

    with pytest.raises(RuntimeError, match="seen"):
        ran(Broken())


def test_a_prompt_that_fills_the_context_is_refused_before_the_first_turn():
    policy = ScriptedPolicy(lambda _: "<answer>1</answer>", make_tokenizer(), context_length=1)
    engine = RolloutEngine(policy, Rules(interpreter=False, max_tokens=9), None)
    with pytest.raises(SettingsError, match="the prompt of own/0 has"):
        run_jobs(engine, JOBS, 0, lambda *_: None)


def test_a_local_model_has_no_usage():
    class Plain(Writer):
        async def write(self, transcript, stop, seed):
            return TextGeneration("<answer>0</answer>", "tag")

    _, ended, _ = ran(Plain(), JOBS[:1])
    assert ended[0][2] is None


@pytest.mark.parametrize(("problems", "k"), [([], 1), (PROBLEMS, 0)])
def test_an_evaluation_of_nothing_is_refused(problems, k):
    with pytest.raises(ValueError, match="at least one problem"):
        evaluate(Writer(), RULES, problems, k, None)


def test_an_error_loses_no_episode_that_ends_at_the_same_moment():
    class Together(Writer):
        async def write(self, transcript, stop, seed):
            if transcript.problem.answer == "2":
                raise RuntimeError("seen")
            return TextGeneration("<answer>1</answer>", "tag")

    ended = []
    engine = RolloutEngine(Together(), RULES, None)
    with pytest.raises(RuntimeError, match="seen"):
        run_jobs(engine, JOBS[::2], 0, lambda job, *_: ended.append(job.index))
    assert {0, 1} <= set(ended)


def test_of_several_errors_at_once_one_is_raised_and_none_is_printed(caplog):
    class Broken(Writer):
        async def write(self, transcript, stop, seed):
            raise RuntimeError("seen")

    with pytest.raises(RuntimeError, match="seen"):
        ran(Broken())
    gc.collect()
    assert not caplog.records


class Refuser(Writer):
    """Refuses the problems whose number is in `refused`, at once; `down`: fails at the others."""

    def __init__(self, refused, down=False):
        super().__init__()
        self.refused = refused
        self.down = down

    async def write(self, transcript, stop, seed):
        if int(transcript.problem.answer) in self.refused:
            raise RequestRefused("the API refuses the request: a filter")
        if self.down:
            raise PolicyUnavailable("the API is down")
        return await super().write(transcript, stop, seed)


def refusing(refused, jobs=JOBS, concurrency=4, **options):
    policy, ended, failed = Refuser(refused), [], []
    engine = RolloutEngine(policy, RULES, None, concurrency)
    complete = run_jobs(
        engine,
        jobs,
        0,
        lambda job, *_: ended.append(job),
        on_refused=lambda job, transcript, usage, words: failed.append((job, transcript, words)),
        **options,
    )
    assert complete and engine.progress.done == len(jobs)
    return ended, failed


def test_a_refused_prompt_fails_its_episodes_and_the_others_go_on(caplog):
    for refused in ({0}, {5}, {0, 1, 2}):
        ended, failed = refusing(refused)
        assert {job.index for job in ended} == set(range(6)) - refused
        assert sorted((job.index, job.sample) for job, _, _ in failed) == [
            (index, sample) for index in sorted(refused) for sample in range(2)
        ]
        for _, transcript, words in failed:
            assert transcript.stop_reason is StopReason.INFRASTRUCTURE and not transcript.scored
            assert words == "the API refuses the request: a filter"
    assert "own/5: failed: the API refuses the request: a filter" in caplog.messages


def test_an_api_that_refuses_everything_ends_the_run():
    for jobs in (JOBS, JOBS[:3]):
        with pytest.raises(RequestRefused, match="a filter"):
            refusing(set(range(6)), jobs)
    for count in (1, 3):
        ended, failed = refusing(set(range(6)), JOBS[:count], answered=True)
        assert not ended and len(failed) == count


def test_a_refused_episode_is_handed_over_at_the_first_answer():
    order = []
    run_jobs(
        RolloutEngine(Refuser({0}), RULES, None, 1),
        JOBS,
        0,
        lambda job, *_: order.append(job.index),
        on_refused=lambda job, *_: order.append(-1),
    )
    assert order == [1, -1, -1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_a_refused_episode_is_handed_over_although_nothing_was_answered():
    failed, refused = [], []
    run_jobs(
        RolloutEngine(Refuser({0}, down=True), RULES, None, attempts=1),
        JOBS,
        0,
        lambda job, *_: failed.append(job),
        on_refused=lambda job, *_: refused.append(job),
    )
    assert len(failed) == 10 and [job.index for job in refused] == [0, 0]


def test_without_a_function_for_it_the_first_refused_prompt_ends_the_run():
    with pytest.raises(RequestRefused):
        ran(Refuser({5}))
