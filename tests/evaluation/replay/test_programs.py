"""Programs of a record run anew, and are compared with what really happened."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from helpers.recorded_runs import code, played, write_eval, write_training

from retool_env.errors import SettingsError
from retool_env.evaluation.replay import run_call
from retool_env.evaluation.replay.programs import replay_programs
from retool_env.evaluation.runs import open_run
from retool_env.execution import Execution, Limits, Outcome
from retool_env.faults.schedule import At
from retool_env.rollout.fork import BARE
from retool_env.rules import Rules
from retool_env.transcript import Parent, write_transcripts

QUICK = Rules(session=True, limits=Limits(wall_seconds=1))
SLOW = code("import time\nprint('begun', flush=True)\ntime.sleep(1.5)\nprint('done')")


def test_a_call_runs_again_with_more_time_from_any_thread(tmp_path, sandbox):
    rules = Rules(limits=Limits(wall_seconds=0.5))
    late = played(sandbox, code("a = 1"), SLOW, "<answer>1</answer>", rules=rules)
    run = open_run(write_eval(tmp_path / "run", [late], rules))
    with ThreadPoolExecutor(1) as thread:
        execution = thread.submit(run_call, run, "p/0", 2, 20).result()
    assert (execution.outcome, execution.stdout) == (Outcome.OK, "begun\ndone\n")


def test_a_call_of_a_session_runs_after_the_calls_since_its_session_began(tmp_path, sandbox):
    turns = [code("a = 1"), SLOW, "hm <code></code>", code("b = 2"), code("print('a' in dir(), b)")]
    transcript = played(sandbox, *turns, rules=QUICK)
    assert transcript.calls[-1].execution.stdout == "False 2\n"  # call 2 ended the session
    run = open_run(write_eval(tmp_path / "run", [transcript], QUICK))
    # With 20 s, call 2 would not end the session, and a would still exist.
    assert run_call(run, "p/0", 5, 20).stdout == "False 2\n"


def test_a_call_that_does_not_exist_is_named_with_the_calls_of_the_episode(tmp_path, sandbox):
    transcript = played(sandbox, code("1"), "<code></code>", code("2"))
    path = tmp_path / "t.jsonl"
    write_transcripts(path, [transcript])
    run = open_run(path)
    with pytest.raises(SettingsError, match=r"line/1 has no program of call 2; its calls are 1, 3"):
        run_call(run, "line/1", 2, 5)
    with pytest.raises(SettingsError, match=r"no episode 'line/2': .* such as line/1"):
        run_call(run, "line/2", 1, 5)
    for seconds in (0, float("nan"), 1e9, "5"):
        with pytest.raises(SettingsError, match="seconds"):
            run_call(run, "line/1", 1, seconds)


def test_a_call_of_a_training_run_has_the_rules_of_its_environment(tmp_path, sandbox):
    rules = Rules(session=True, display=True)
    transcript = played(sandbox, code("a = 6"), code("a * 7"), rules=rules)
    run = open_run(write_training(tmp_path / "run", [transcript], session=True, display=True))
    assert run_call(run, "transcripts/1", 2, 5).stdout == "42\n"


def replayed(transcript, rules, sandbox):
    return list(replay_programs(transcript, rules, sandbox))


def test_equal_results_are_the_same_also_where_the_record_is_cut_or_late(sandbox):
    rules = Rules(limits=Limits(wall_seconds=0.5))
    turns = [code("print('x' * 1000)"), code("1/0"), code("(1"), "<code></code>", SLOW]
    found = replayed(played(sandbox, *turns, rules=rules), rules, sandbox)
    assert [(each.number, each.verdict) for each in found] == [
        *((1, "same"), (2, "same"), (3, "same"), (5, "same")),  # call 4 holds no program
    ]
    assert found[0].reason == "the output is cut in the record"
    assert len(found[0].now.stdout) == 1001 and "cut" in found[0].recorded.stdout


def test_a_program_that_depends_on_time_differs_with_a_unified_diff(sandbox):
    transcript = played(sandbox, code("import time\nprint('a')\nprint(time.time_ns())"))
    [found] = replayed(transcript, Rules(), sandbox)
    assert found.verdict == "differs"
    lines = found.difference.splitlines()
    assert lines[:2] == ["--- recorded", "+++ now"] and lines[3:5] == [" [ok]", " a"]
    assert [line[0] for line in lines[5:]] == ["-", "+"]


def test_a_fault_is_compared_by_what_really_happened(sandbox, monkeypatch):
    monkeypatch.setattr("retool_env.faults.kinds.SLOW_SECONDS", 0.01)
    turns = [code("import sympy\nprint(sympy.factorint(12))"), "<answer>1</answer>"]
    for kind in ("timeout", "wrong_value", "slow", "missing_package", "wrong_function"):
        transcript = played(sandbox, *turns, schedule=At(1, kind))
        assert transcript.calls[0].faulty, kind
        [found] = replayed(transcript, Rules(), sandbox)
        assert found.verdict == "same", (kind, found.difference)
    assert found.recorded.fault is None and found.now.stdout == transcript.calls[0].execution.stdout


def test_a_session_begins_anew_where_a_fault_ended_it(sandbox):
    rules = Rules(session=True)
    turns = [code("a = 1"), code("b = 2"), code("print('a' in dir())")]
    transcript = played(sandbox, *turns, rules=rules, schedule=At(2, "session_ended"))
    assert transcript.calls[2].execution.stdout == "False\n"
    assert [each.verdict for each in replayed(transcript, rules, sandbox)] == ["same"] * 3


def test_failures_and_results_that_an_arm_put_in_place_are_not_comparable(sandbox):
    transcript = played(sandbox, code("1/0"), code("print(1)"))
    spans = list(transcript.spans)
    spans[2] = replace(spans[2], execution=BARE)
    spans[4] = replace(spans[4], execution=Execution(Outcome.INFRASTRUCTURE, "", "lost"))
    fork = replace(transcript, spans=tuple(spans), parent=Parent(0, 1, "bare"))
    first, second = replayed(fork, Rules(), sandbox)
    assert first.verdict == second.verdict == "not comparable"
    assert first.reason.startswith("the arm bare showed another result")
    assert second.reason == "the sandbox failed in the record: lost"


def test_a_fault_that_the_sandbox_can_not_make_is_not_comparable(sandbox):
    transcript = played(sandbox, code("import sympy"), schedule=At(1, "missing_package"))

    class Remote:
        """A sandbox without preludes."""

        run = sandbox.run

    [found] = replayed(transcript, Rules(), Remote())
    assert (found.verdict, found.now) == ("not comparable", None)
    assert "has no such way" in found.reason
