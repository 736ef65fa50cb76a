"""Programs of a record run anew, and are compared with what really happened."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.recorded_runs import code, played, write_eval, write_training

from retool_env.errors import SettingsError
from retool_env.evaluation.replay import run_call
from retool_env.evaluation.runs import open_run
from retool_env.execution import Limits, Outcome
from retool_env.rules import Rules
from retool_env.transcript import write_transcripts

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
