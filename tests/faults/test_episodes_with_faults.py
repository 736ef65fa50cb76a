"""The same faults for the same problem, rollout and call, however an episode is run."""

import asyncio
import contextlib
import dataclasses
import json
from types import SimpleNamespace

import gymnasium as gym
import pytest

from agents.models.tiny import make_tokenizer
from retool_env import ReToolEnv, ReToolVectorEnv
from retool_env.checkpoint_task import CheckpointTask
from retool_env.env import make_task
from retool_env.episode import Episode, RunProgram
from retool_env.errors import SandboxUnavailable, SettingsError
from retool_env.evaluation.records import rules_to_json
from retool_env.execution import Execution, Fault, Limits, Outcome
from retool_env.faults import KINDS, Faults, kinds
from retool_env.faults.schedule import At
from retool_env.interpreter import Interpreter, check_sandbox
from retool_env.key_values import parse_settings
from retool_env.metrics import measure
from retool_env.problem import Problem
from retool_env.problems import ProblemList
from retool_env.rollout import RolloutEngine, ScriptedPolicy, TextGeneration
from retool_env.rollout.policy import TextPolicy
from retool_env.rules import Rules
from retool_env.sandbox import RemoteSandbox
from retool_env.training.figures import episode_figures
from retool_env.transcript import Transcript, check_transcript

PROBLEMS = ProblemList([Problem(f"p{i}", f"{i} + {i}?", str(2 * i)) for i in range(4)])
CALLS = [f"<code>print({n}, {n + 1})\nprint('done', {n})</code>" for n in (11, 22, 33)]
TURNS = [*CALLS, "<answer>8</answer>"]
FAULTS = {"rate": 0.7, "kinds": [kind for kind in KINDS if kind != "slow"]}


def turn_of(text: str) -> str:
    return TURNS[text.count("<interpreter>")]


class Writer(TextPolicy):
    async def write(self, transcript, stop, seed):
        return TextGeneration(turn_of(transcript.response_text), "stop")


def facts(transcript: Transcript) -> list:
    """Texts and records of the results, without times."""
    return [(span.text, span.execution) for span in transcript.response if span.execution]


def episode_of(env: gym.Env, problem: str, rollout: int) -> Transcript:
    env.reset(options={"problem_id": problem, "rollout": rollout})
    for turn in TURNS:
        *_, info = env.step(turn)
    unwrapped = env.unwrapped
    assert isinstance(unwrapped, ReToolEnv) and unwrapped.transcript is not None
    assert info["transcript"] == unwrapped.transcript.as_shown()
    return unwrapped.transcript


def test_every_way_to_run_an_episode_meets_the_same_faults(sandbox):
    env = ReToolEnv(PROBLEMS, sandbox=sandbox, faults=FAULTS)
    seen = {(p.id, r): facts(episode_of(env, p.id, r)) for p in PROBLEMS for r in range(2)}
    ordered = [run.fault for found in seen.values() for _, run in found if run.fault]
    assert len(ordered) > 10 and len({fault.injected for fault in ordered}) == 2
    assert seen["p0", 0] != seen["p0", 1] != seen["p1", 1]

    template = "{query}\n"  # both kinds of rollouts have it
    by_ids = Rules(faults=FAULTS, max_tokens=4000, prompt_template=template)
    engines = [
        RolloutEngine(ScriptedPolicy(turn_of, make_tokenizer()), by_ids, sandbox),
        RolloutEngine(Writer(), Rules(faults=FAULTS, prompt_template=template), sandbox),
    ]
    for engine in engines:
        for problem, group in zip(PROBLEMS, engine.run(PROBLEMS, n=2), strict=True):
            for rollout, transcript in enumerate(group):
                check_transcript(transcript)
                assert facts(transcript) == seen[problem.id, rollout]
        alone = asyncio.run(engine.episode(PROBLEMS[1], (7, 3, 1)))
        assert facts(alone) == seen["p1", 1]

    vector = ReToolVectorEnv(2, problems=PROBLEMS, sandbox=sandbox, faults=FAULTS)
    vector.reset(options={"problem_id": "p1", "rollout": 1})
    for turn in TURNS:
        vector.step((turn, turn))
    assert [facts(member.transcript) for member in vector.envs] == [seen["p1", 1]] * 2
    vector.close()


def test_a_registered_environment_takes_faults_and_info_has_no_word_of_them():
    env = gym.make("ReTool-Arithmetic-v0", faults={"rate": 1, "kinds": ["gone", "busy"]})
    _, reset_info = env.reset(seed=0)
    records = [reset_info["transcript"]]
    for turn in TURNS[:-1]:
        observation, *_, info = env.step(turn)
        records.append(info["transcript"])
        assert "fault" not in repr(info).lower().replace("fault=none", "")
        assert info["outcome"] is info["transcript"].calls[-1].execution.outcome
    real = [call.execution.fault.real for call in env.unwrapped.transcript.calls]
    assert [run.stdout for run in real] == [
        "11 12\ndone 11\n",
        "22 23\ndone 22\n",
        "33 34\ndone 33\n",
    ]
    assert all(line not in observation for run in real for line in run.stdout.splitlines())
    with pytest.raises(SettingsError, match="rollout must be a whole number"):
        env.reset(options={"rollout": -1})
    env.close()


def played(kind: str, programs: list[str | None], call: int = 1) -> list[RunProgram | None]:
    """The needs of an episode with a fault that begins at a call; `None`: an empty program."""
    episode = Episode(PROBLEMS[0], Rules(), schedule=At(call, kind))
    needs = []
    for program in programs:
        need = episode.act(f"<code>{program or ''}</code>")
        needs.append(need)
        if need is not None:
            episode.executed(Execution(Outcome.OK, f"{program}\n"))
    return needs


def test_a_persistent_fault_begins_at_a_call_that_is_eligible():
    kinds = {1: "missing_package", 2: "busy", 3: "missing_package"}
    schedule = SimpleNamespace(ordered=kinds.get)
    episode = Episode(PROBLEMS[0], Rules(), schedule=schedule)
    ordered = []
    for injected in (False, True, True, False):
        need = episode.act("<code>print(1)</code>")
        ordered.append(need.fault)
        episode.executed(Execution(Outcome.OK, "1\n", fault=Fault(need.fault, injected)))
    assert ordered == ["missing_package", "busy", "missing_package", "missing_package"]


def test_a_persistent_fault_lasts_and_a_transient_one_does_not():
    one, two, three = played("gone", ["a", "b", "c"], call=2)
    assert (one.fault, two.fault, three.fault) == (None, "gone", "gone")
    one, two, three = played("busy", ["a", "b", "c"], call=2)
    assert (one.fault, two.fault, three.fault) == (None, "busy", None)


def test_a_call_without_a_program_counts_and_has_no_fault():
    one, empty, three = played("gone", ["a", None, "c"], call=2)
    assert (one.fault, empty, three.fault) == (None, None, None)
    one, empty, three = played("stale", ["a", None, "c"], call=3)
    assert (three.fault, three.problem) == ("stale", "p0")
    assert three.before.outcome is Outcome.SYNTAX_ERROR, "the result that was shown last"


def test_a_stale_output_is_the_last_output_as_it_was_shown():
    episode = Episode(PROBLEMS[0], Rules(output_characters=10), schedule=At(2, "stale"))
    episode.act("<code>a</code>")
    episode.executed(Execution(Outcome.OK, "x" * 100))
    need = episode.act("<code>b</code>")
    episode.executed(kinds.show(need, Execution(Outcome.OK, "1\n")))
    first, second = (call.execution for call in episode.transcript.calls)
    assert first.stdout == second.stdout != "x" * 100
    assert episode.transcript.spans[2].text == episode.transcript.spans[4].text


def test_the_record_of_what_happened_is_that_of_the_same_program_without_faults():
    records = []
    for schedule in (At(1, "wrong_value"), None):
        episode = Episode(PROBLEMS[0], Rules(output_characters=10), schedule=schedule)
        need = episode.act("<code>a</code>")
        true = Execution(Outcome.OK, "7\n" * 100)
        episode.executed(kinds.show(need, true) if need.fault else true)
        records.append(episode.transcript.calls[0].execution)
    assert records[0].fault.real == records[1] != records[0]


def test_an_infrastructure_failure_stays_one():
    episode = Episode(PROBLEMS[0], Rules(), schedule=At(1, "busy"))
    need = episode.act("<code>a</code>")
    lost = kinds.show(need, Execution(Outcome.INFRASTRUCTURE, "", "gone"))
    assert lost.fault == Fault("busy", False)
    episode.executed(lost)
    assert not episode.transcript.scored


def test_in_training_all_rollouts_of_a_problem_meet_the_same_faults():
    rules = Rules(faults=FAULTS)
    with pytest.raises(SettingsError, match=r"faults\.by_rollout=false"):
        rules.check_training()
    trained = rules.for_training()
    trained.check_training()
    orders = [
        [trained.schedule(PROBLEMS[0], rollout).ordered(call) for call in range(1, 9)]
        for rollout in range(3)
    ]
    assert orders[0] == orders[1] == orders[2] and any(orders[0])
    assert Rules().for_training() == Rules()
    Rules().check_training()


def test_a_remote_sandbox_refuses_the_kinds_that_are_made_in_the_guest():
    with RemoteSandbox(["http://127.0.0.1:9"]) as remote:
        for kind in ("missing_package", "wrong_function"):
            with pytest.raises(SandboxUnavailable, match=r"leave missing_package and wrong_func"):
                check_sandbox(Rules(faults={"kinds": ["timeout", kind]}), remote)
        others = [kind for kind in KINDS if kind not in kinds.MADE_IN_GUEST]
        check_sandbox(Rules(faults={"kinds": others}), remote)


def test_a_command_names_faults_and_a_checkpoint_never_does():
    settings = parse_settings(['faults={"rate": 0.5, "kinds": ["busy"]}', "faults.seed=3"])
    rules, _ = make_task("ReTool-Arithmetic-v0", **settings)
    assert rules.faults == Faults(rate=0.5, kinds=("busy",), seed=3)
    record = json.loads(json.dumps(rules_to_json(rules)))
    assert Rules(**{"faults": record["faults"]}) == Rules(faults=rules.faults)
    env = {"id": "ReTool-Arithmetic-v0", "max_tokens": 100, **settings}
    written = CheckpointTask.of(env).to_json()
    assert "faults" not in written["rules"] and "busy" not in json.dumps(written)


def test_figures_tell_a_fault_from_an_error_of_the_model(sandbox):
    env = ReToolEnv(PROBLEMS, sandbox=sandbox, faults={"rate": 1, "kinds": ["timeout"]})
    env.reset(options={"problem_id": "p0"})
    for turn in ("<code>print(1)</code>", "<code>1 +</code>", "<code>1/0</code>"):
        env.step(turn)
    env.step("<answer>0</answer>")
    faulty = env.transcript
    plain = ReToolEnv(PROBLEMS, sandbox=sandbox)
    plain.reset(options={"problem_id": "p0"})
    for turn in ("<code>print(1)</code>", "<code>1/0</code>", "<answer>0</answer>"):
        plain.step(turn)
    figures = {figure.key: figure for figure in measure([faulty, plain.transcript])}
    shares = {key: (figures[key].count, figures[key].mean) for key in figures if "fault/" in key}
    assert shares == {
        "fault/ordered": (5, 3 / 5),
        "fault/injected": (3, 2 / 3),  # the program that does not compile was not eligible
        "fault/injected/timeout": (3, 2 / 3),
    }
    assert (figures["error/calls"].count, figures["error/calls"].mean) == (5, 4 / 5)
    own, injected = figures["error/calls/own"], figures["error/calls/injected"]
    assert (own.count, own.mean) == (3, 2 / 3)
    assert (injected.count, injected.mean) == (2, 1.0)
    assert not [f for f in measure([plain.transcript]) if "fault" in f.key or "/own" in f.key]
    assert episode_figures([faulty])["env/faults"] == [1.0, 0.0, 1.0]
    assert "env/faults" not in episode_figures([plain.transcript])


def test_without_faults_nothing_changes(sandbox):
    env = ReToolEnv(PROBLEMS, sandbox=sandbox, faults={"rate": 0.0})
    without = ReToolEnv(PROBLEMS, sandbox=sandbox)
    assert facts(episode_of(env, "p0", 0)) == facts(episode_of(without, "p0", 5))
    assert "fault" not in json.dumps(env.transcript.to_json())


def test_a_record_with_faults_is_read_as_it_was_written(sandbox):
    env = ReToolEnv(PROBLEMS, sandbox=sandbox, faults=FAULTS, limits=Limits(wall_seconds=3))
    found = [episode_of(env, problem.id, 0) for problem in PROBLEMS]
    assert [Transcript.from_json(json.loads(json.dumps(t.to_json()))) for t in found] == found
    assert dataclasses.replace(found[0]).as_shown().as_shown() == found[0].as_shown()


@pytest.mark.parametrize("session", [True, False], ids=["session", "alone"])
def test_the_warning_has_the_form_and_the_file_name_of_a_warning_of_python(session, sandbox):
    """No result of the sandbox holds stderr, where Python writes its warnings."""
    text = "this version of Python is supported until 2028"
    program = "import sys, warnings\nsys.stderr = sys.stdout\nwarnings.simplefilter('always')\n"
    program += f"warnings.warn_explicit({text!r}, DeprecationWarning, "
    program += "sys._getframe().f_code.co_filename, 1)"
    rules = Rules(session=session, void_turn="continue")
    for ended in ("", "import os; os._exit(3)"):  # the process of a session ends, or goes on
        seen = []
        for kind in (None, "warning"):
            episode = Episode(Problem("p", "?", "1"), rules, schedule=kind and At(4, kind))
            with contextlib.closing(Interpreter(sandbox)) as interpreter:
                for code in ("a = 1", ended, "b = 2", "print(5)" if kind else program):
                    if episode.act(f"<code>{code}</code>") is not None:
                        episode.executed(interpreter.run(episode.need))
            seen.append(episode.transcript.calls[-1].execution.stdout.splitlines()[0])
        assert seen[0] == seen[1]
        block = 2 if ended else 3  # an empty block does not run
        assert seen[0].startswith(f"<block {block}>:1: " if session else "<program>:1: ")
