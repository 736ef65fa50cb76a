from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools

import pytest
from helpers.notebooks import Notebooks

from agents.models.tiny import make_tokenizer
from retool_env.checkpoint_task import CheckpointTask
from retool_env.episode import Episode, Generation
from retool_env.problems import Problem, arithmetic
from retool_env.rollout import RolloutEngine, ScriptedPolicy, TextGeneration
from retool_env.rules import Rules
from retool_env.sandbox import (
    Execution,
    Limits,
    Outcome,
    SandboxUnavailable,
    make_sandbox,
)
from retool_env.transcript import StopReason, check_transcript

RULES = Rules(max_tokens=200, prompt_template="{query}\n")
PROBLEMS = [Problem(id=str(i), question=f"{i} * 7?", answer=str(i * 7)) for i in range(12)]


def solve(text: str) -> str:
    """Run the product, then answer with the printed text."""
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
    """While the first episode's program hangs, all other episodes finish."""

    class Hanging:
        def __init__(self):
            self.release = asyncio.Event()

        async def run_async(self, code, limits=None, **_):
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
        async def run_async(self, code, limits=None, **_):
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
        async def run_async(self, code, limits=None, **_):
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
            async def run_async(self, code, limits=None, **_):
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
        async def run_async(self, code, limits=None, **_):
            return Execution(Outcome.OK, "1\n")

    policy = Watching(solve, make_tokenizer(), context_length=100)
    RolloutEngine(policy, RULES, Box()).run(PROBLEMS[:1])
    (before, first), (after, second) = budgets
    assert before + first == after + second == 100  # the context is the tighter limit here


def test_a_prompt_that_fills_the_context_is_refused():
    """The last prompt is too long, and the run is refused before anything is sampled."""
    policy = ScriptedPolicy(lambda text: pytest.fail("it is asked"), make_tokenizer(), 30)
    rules = Rules(max_tokens=9, interpreter=False, prompt_template="{query}\n")
    long = Problem("long", "7 * " * 30, "1")
    with pytest.raises(ValueError, match=r"the prompt of long has .* shorter prompt_template"):
        RolloutEngine(policy, rules, None).run([*PROBLEMS, long])


def test_runs_leave_no_event_loops_behind():
    engine = RolloutEngine(
        ScriptedPolicy(lambda text: "<answer>1</answer>", make_tokenizer()),
        Rules(max_tokens=90, interpreter=False),
        None,
        concurrency=1,
    )

    def closed() -> int:
        gc.collect()
        kind = asyncio.AbstractEventLoop
        loops = [each for each in gc.get_objects() if issubclass(type(each), kind)]
        return sum(loop.is_closed() for loop in loops)

    engine.run(PROBLEMS)
    before = closed()
    for _ in range(3):
        engine.run(PROBLEMS)
    assert closed() <= before


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


# --- sessions -----------------------------------------------------------------------------------

SHARED = dataclasses.replace(RULES, session=True, errors="last_line")


def in_two_blocks(text: str) -> str:
    """Assign the product in one block, print it in the next, then answer with it."""
    results = text.split("<interpreter>")[1:]
    if not results:
        return f"<code>x = {text.split('?')[0]}</code>"
    if len(results) == 1:
        return "<code>x</code>"
    return f"<answer>{results[1].partition('</')[0].strip()}</answer>"


@pytest.mark.parametrize(
    ("modes", "answer"),
    [
        ({"session": True, "display": True}, "21"),
        ({"session": True, "display": False}, ""),
        ({"session": False, "display": True}, "NameError: name 'x' is not defined"),
    ],
)
def test_modes_in_the_real_jail(sandbox, modes, answer):
    rules = dataclasses.replace(SHARED, **modes)
    policy = ScriptedPolicy(in_two_blocks, make_tokenizer())
    groups = RolloutEngine(policy, rules, sandbox).run(PROBLEMS, n=2)
    assert {transcript.answer for transcript in groups[3]} == {answer}
    right = [transcript.correct for group in groups for transcript in group]
    assert right == [answer == "21"] * len(right)


def test_an_episode_does_not_see_the_names_of_another(sandbox):
    def script(text):
        if text.startswith("0 * 7"):
            return in_two_blocks(text)
        return "<answer>1</answer>" if "<interpreter>" in text else "<code>x</code>"

    engine = RolloutEngine(ScriptedPolicy(script, make_tokenizer()), SHARED, sandbox, concurrency=1)
    for [transcript] in engine.run(PROBLEMS)[1:]:
        assert transcript.calls[0].execution.error == "NameError: name 'x' is not defined"


def test_what_the_rules_say_reaches_the_sandbox():
    policy = ScriptedPolicy(solve, make_tokenizer())
    for session, display in itertools.product((True, False), repeat=2):
        box = Notebooks(lambda code: Execution(Outcome.OK, "1\n"))
        rules = dataclasses.replace(RULES, session=session, display=display)
        RolloutEngine(policy, rules, box).run(PROBLEMS[:3])
        assert len(box.used) == 3 * session and len(box.alone) == 3 * (not session)
        assert all(notebook.display is display for notebook in box.used)
        assert all(call[1:] == (rules.limits, display) for call in box.alone)


@pytest.mark.parametrize("end", ["answer", "budget", "failure", "error", "cancelled"])
def test_a_session_ends_with_its_episode(end):
    def come(code):
        if end == "failure":
            return Execution(Outcome.INFRASTRUCTURE, "", "gone")
        return Execution(Outcome.OK, "x" * (1000 if end == "budget" else 1))

    begun = asyncio.Event()

    class Acting(ScriptedPolicy):
        async def act(self, token_ids, stop, budget, seed):
            if "<interpreter>" in self.tokenizer.decode(token_ids):
                assert box.open == [0]
                if end == "error":
                    raise MemoryError("no room")
                if end == "cancelled":
                    begun.set()
                    await asyncio.sleep(3600)
            return await super().act(token_ids, stop, budget, seed)

    async def drive():
        task = asyncio.create_task(engine.episode(PROBLEMS[0], (0,)))
        if end == "cancelled":
            await begun.wait()
            task.cancel()
        return (await asyncio.gather(task, return_exceptions=True))[0]

    box = Notebooks(come)
    engine = RolloutEngine(Acting(solve, make_tokenizer()), RULES, box)
    engine.rules = (
        SHARED  # after the constructor, which begins a session to see whether there are any
    )
    came = asyncio.run(asyncio.wait_for(drive(), 60))
    expected = {
        "answer": StopReason.ANSWERED,
        "budget": StopReason.TOKEN_BUDGET,
        "failure": StopReason.INFRASTRUCTURE,
        "error": MemoryError,
        "cancelled": asyncio.CancelledError,
    }[end]
    assert type(came) is expected or came.stop_reason is expected
    # What failed was tried again, in a session of its own.
    assert len(box.used) == (engine.attempts if end == "failure" else 1) and not box.open


def test_a_cancelled_run_ends_the_program_of_a_session(sandbox):
    """If the process were still alive, the sandbox could not be used again."""

    async def drive():
        policy = ScriptedPolicy(
            lambda text: "<code>import time; time.sleep(600)</code>", make_tokenizer()
        )
        rules = dataclasses.replace(SHARED, limits=Limits(wall_seconds=300))
        engine = RolloutEngine(policy, rules, sandbox)
        task = asyncio.create_task(engine.episode(PROBLEMS[0], (0,)))
        done, _ = await asyncio.wait([task], timeout=0.5)
        assert not done
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(drive(), 60))
    assert sandbox.run("print(1)").stdout == "1\n"


def test_a_sandbox_without_sessions_is_refused_before_anything_is_sampled():
    class Without(Notebooks):
        def session(self, limits, *, display=False):
            raise SandboxUnavailable("sessions are not supported here")

    policy = ScriptedPolicy(solve, make_tokenizer())
    with pytest.raises(SandboxUnavailable, match="not supported here"):
        RolloutEngine(policy, SHARED, Without())
    RolloutEngine(policy, RULES, Without())


def test_missing_settings_are_refused():
    policy = ScriptedPolicy(solve, make_tokenizer())
    with pytest.raises(ValueError, match="max_tokens"):
        RolloutEngine(policy, Rules(), None)
    with pytest.raises(ValueError, match="sandbox"):
        RolloutEngine(policy, RULES, None)
    for name in ("concurrency", "tokens_in_flight", "attempts"):
        with pytest.raises(ValueError, match=name):
            RolloutEngine(policy, RULES, object(), **{name: 0})
    for wrong in ({"n": 0}, {"oversample": 0.5}, {"deadline": 0.0}):
        with pytest.raises(ValueError, match="at least 1, and a deadline above 0"):
            RolloutEngine(policy, RULES, object()).run(PROBLEMS, **wrong)
    for limit in ({"max_tokens": 9}, {"tokens_in_flight": 9}):
        rules = Rules(max_tokens=limit.pop("max_tokens", None))
        with pytest.raises(ValueError, match="text without token ids"):
            RolloutEngine(Writer(solve), rules, object(), **limit)


class Writer:
    """A policy of text that stops at its stop strings, as a policy behind an API does."""

    def __init__(self, script):
        self.script = script

    async def write(self, transcript, stop, seed) -> TextGeneration:
        text = self.script(transcript.text)
        ends = [text.index(tag) + len(tag) for tag in stop if tag in text]
        return TextGeneration(text[: min(ends)], "tag") if ends else TextGeneration(text, "eos")


CHAT = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for message in messages %}"
    "{{ message.role }}: {{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("protocol", ["tags", "hermes"])
@pytest.mark.parametrize("of_text", [False, True])
def test_a_turn_stops_where_its_protocol_says(sandbox, of_text, protocol):
    """In a tool call, a closing tag of the paper's format is plain text."""
    call = '{"name": "code_interpreter", "arguments": {"code": "print(3 * 7, \'</code>\')"}}'

    def script(text):
        if "21 </code>" in text:
            return "That is \\boxed{21}"
        return f"I compute it: <tool_call>\n{call}\n</tool_call>"

    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    policy = Writer(script) if of_text else ScriptedPolicy(script, tokenizer)
    rules = Rules(protocol=protocol, max_tokens=None if of_text else 2000)
    [[transcript]] = RolloutEngine(policy, rules, sandbox).run(PROBLEMS[3:4])
    check_transcript(transcript)
    if protocol == "hermes":
        assert transcript.correct and [call.ok for call in transcript.calls] == [True]
    else:
        assert transcript.stop_reason is StopReason.VOID_TURN
        assert transcript.response_text.endswith("</code>")


def test_text_policies_go_through_the_engine_alike(sandbox):
    engine = RolloutEngine(Writer(solve), Rules(prompt_template="{query}\n"), sandbox)
    for problem, group in zip(PROBLEMS, engine.run(PROBLEMS, n=2), strict=True):
        assert [(t.problem, t.correct, len(t.calls)) for t in group] == [(problem, True, 1)] * 2
        assert group[0].spans[0].token_ids is None
    written = sum(len(solve(f"{i} * 7?")) + len(f"<answer>{i * 7}</answer>") for i in range(12))
    assert (engine.progress.tokens, engine.progress.unit) == (2 * written, "characters")


def test_the_bounds_hold_over_all_that_runs_in_an_event_loop():
    running, most = 0, 0

    class Counting:
        async def run_async(self, code, limits=None, **_):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            return Execution(Outcome.OK, "1\n")

    engine = RolloutEngine(ScriptedPolicy(solve, make_tokenizer()), RULES, Counting(), 3)

    async def both():
        async def one():
            return [index async for index, _ in engine.groups(PROBLEMS)]

        return await asyncio.gather(one(), one())

    assert [len(each) for each in asyncio.run(both())] == [12, 12] and most == 3
    assert len(engine.run(PROBLEMS)) == 12  # in another loop


def test_an_episodes_clock_does_not_run_while_it_waits_to_be_let_in():
    now = 0.0

    class Slow:
        async def run_async(self, code, limits=None, **_):
            nonlocal now
            await asyncio.sleep(0.001)  # the next one has come to the door by now
            now += 5.0
            return Execution(Outcome.OK, "1\n")

    rules = dataclasses.replace(RULES, max_seconds=6.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Episode.__init__, "__defaults__", (None, lambda: now, None, None))
        policy = ScriptedPolicy(solve, make_tokenizer())
        engine = RolloutEngine(policy, rules, Slow(), tokens_in_flight=220)
        groups = engine.run(PROBLEMS)
    assert {group[0].stop_reason for group in groups} == {StopReason.ANSWERED}


@pytest.mark.slow
def test_thousands_of_programs_wait_for_a_small_sandbox():
    """No episode fails, and programs never outnumber the processes of the sandbox's guest."""
    most = 0
    with make_sandbox("nsjail", concurrency=2, guests=1, packages=()) as small:
        waiting = small.pool.slots

        class Watched(ScriptedPolicy):
            async def act(self, token_ids, stop, budget, seed):
                nonlocal most
                most = max(most, sum(len(guest.jobs) for guest in small.pool.guests))
                return await super().act(token_ids, stop, budget, seed)

        problems = [Problem(str(i), f"{i} * 7?", str(i * 7)) for i in range(1000)]
        policy = Watched(solve, make_tokenizer())
        engine = RolloutEngine(policy, RULES, small, concurrency=1000)
        groups = engine.run(problems)
        assert len(waiting) == 0 and engine.progress.executing == 0
    assert all(group[0].correct for group in groups)
    assert engine.progress.retried == 0 and 2 <= most <= 2 + 2  # and the spare processes


def test_text_only_episodes_need_no_sandbox():
    rules = Rules(max_tokens=200, interpreter=False)
    policy = ScriptedPolicy(
        lambda text: "<code>print(1)</code> <answer>0</answer>", make_tokenizer()
    )
    [[transcript]] = RolloutEngine(policy, rules, None).run([arithmetic()[0]])
    assert transcript.stop_reason is StopReason.ANSWERED and not transcript.calls


def test_without_rules_those_of_the_policys_checkpoint_hold_and_that_is_said(tmp_path, capsys):
    policy = ScriptedPolicy(solve, make_tokenizer())
    with pytest.raises(ValueError, match=r"has no retool.json: pass the rules"):
        RolloutEngine(policy, None, None)
    policy.checkpoint = str(tmp_path)  # as that of `load_policy`
    with pytest.raises(ValueError, match=r"has no retool.json"):
        RolloutEngine(policy, None, None)
    env = {"id": "ReTool-Arithmetic-v0", "max_tokens": 77, "interpreter": False}
    CheckpointTask.of(env).save(tmp_path)
    assert RolloutEngine(policy, None, None).rules == Rules(max_tokens=77, interpreter=False)
    said = capsys.readouterr().err
    assert said.startswith("retool.json: task ReTool-Arithmetic-v0") and f"from {tmp_path}" in said
    (tmp_path / "retool.json").write_text("{}")
    with pytest.raises(ValueError, match=r"retool.json: format: it is missing"):
        RolloutEngine(policy, None, None)
    # Whoever gives rules has nothing read.
    assert RolloutEngine(policy, Rules(max_tokens=9, interpreter=False), None).rules.max_tokens == 9
