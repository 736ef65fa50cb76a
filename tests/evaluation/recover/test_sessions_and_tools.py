"""`retool recover` from the command to the figures: with sessions, and with native calls."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")

from helpers.model_api import ModelAPI, Reply, serving

from retool_env.cli import main
from retool_env.evaluation.recover.records import read_arms, read_left_out
from retool_env.problems import arithmetic

SOURCE = arithmetic(split="test", difficulty=1)
PROBLEMS = [SOURCE[index] for index in range(3)]
COMMAND = ["recover", "--env", "ReTool-Arithmetic-v0", "--model", "m", "--out", "found"]


@pytest.fixture(autouse=True)
def suite(tmp_path, monkeypatch, sandbox):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("retool_env.interpreter.open_sandbox", lambda *_: nullcontext(sandbox))
    monkeypatch.setattr("retool_env.evaluation.recover.page.draw", lambda results: {})
    small = SimpleNamespace(problems=PROBLEMS, hash="0123", rates=(0.0, 1.0), seed=0)
    small.fork_call = lambda problem, parent: 1 + parent
    monkeypatch.setattr(
        "retool_env.evaluation.recover.suite.load_suite", lambda name, part, quick: small
    )
    return small


def ran(url, *options):
    size = ("--k", "2", "--m", "2", "--samples", "2", "--batch", "8")
    assert main([*COMMAND, "--api", url, *size, *options]) == 0
    results = json.loads(Path("found/results.json").read_text())
    return results["counts"], {figure["key"]: figure["mean"] for figure in results["figures"]}


def by_name(conversation) -> Reply:
    """Binds a name, prints it in the next block, and answers; after two errors it gives up.

    After one error it prints the name again. The value of the third problem is the time.
    """
    question = conversation[0]["content"]
    terms = re.search(r"Compute (.*)\.", question)[1]
    results = [message["content"] for message in conversation if message["role"] == "user"][1:]
    if not results:
        clock = PROBLEMS[2].question in question
        value = "__import__('time').time_ns()" if clock else terms
        return Reply(f"<code>x = {value}\nprint(x)</code>")
    values = [re.search(r"<interpreter>\s*(\d+)\s*</interpreter>", result) for result in results]
    if values.count(None) == 2:
        return Reply("I give up")
    if len(results) < 2 or values[-1] is None:
        return Reply("<code>print(x)</code>")
    return Reply(f"<answer>{values[-1][1]}</answer>")


def test_in_sessions_the_blocks_before_a_fork_run_anew_and_an_ended_session_is_lost(suite, capsys):
    suite.kinds = ("session_ended", "timeout", "try_again", "blank_line", "gone")
    suite.problems = PROBLEMS[:2]
    with serving(ModelAPI(by_name)) as url:
        counts, figures = ran(url, "session=true", "--protocol", "fork")
    assert counts["prefixes"]["fork"] == 4 and not counts["not_reproducible"]
    assert not counts["not_eligible"]
    expected = {
        **{f"control/{kind}": 1.0 for kind in suite.kinds},
        # These faults end the session, so that the name is lost.
        **{"effect/session_ended": -1.0, "effect/timeout": -1.0},
        # The block ran, though its result was not shown: the name is known.
        **{"effect/try_again": 0.0, "effect/blank_line": 0.0, "effect/gone": -1.0},
    }
    assert {key: figures[key] for key in expected} == expected
    for record in read_arms("found"):
        if record.arm in ("session_ended", "timeout"):
            lost = record.transcript.calls[record.call]
            assert lost.program == "print(x)" and "NameError" in lost.execution.error
    capsys.readouterr()
    main(["recover", "--check", "found"])
    faults = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(faults) == 1 and faults[0].startswith("FAIL whole: it lacks protocol dose")


def test_in_sessions_a_block_that_prints_the_time_makes_its_prefixes_not_reproducible(suite):
    suite.kinds = ("try_again",)
    with serving(ModelAPI(by_name)) as url:
        counts, figures = ran(url, "session=true", "--protocol", "fork")
    assert counts["not_reproducible"] == 2 and counts["prefixes"]["fork"] == 4
    left_out = read_left_out("found")
    assert {(one.problem, one.call) for one in left_out} == {
        (PROBLEMS[2].id, 1),
        (PROBLEMS[2].id, 2),
    }
    assert all("call 1: the program gave ok" in one.reason for one in left_out)
    assert figures["control/try_again"] == 1.0  # the problem of the clock is never right
    assert PROBLEMS[2].id not in {r.problem for r in read_arms("found") if r.parent is not None}


def by_call(conversation) -> Reply:
    """Calls the tool twice and answers the last result; it gives up after an error."""
    terms = re.search(r"Compute (.*)\.", conversation[0]["content"])[1]
    shown = [message["content"] for message in conversation if message["role"] == "tool"]
    if not shown or (len(shown) < 2 and shown[-1].strip().isdigit()):
        # The spacing and the further argument are the model's own.
        code = {"code": f"print({terms})", "step": len(shown)}
        return Reply("I compute.", (("code_interpreter", json.dumps(code, indent=1)),))
    value = shown[-1].strip()
    return Reply(f"<answer>{value}</answer>" if value.isdigit() else "I give up.")


def test_native_calls_are_forked_with_their_ids_and_arguments(suite):
    suite.kinds = ("try_again", "warning", "stale")
    api = ModelAPI(by_call)
    with serving(api) as url:
        counts, figures = ran(url, "--native-tools")
    expected = {
        **{"dose/0/accuracy": 1.0, "control/try_again": 1.0, "effect/try_again": -1.0},
        # Without tools in the request the model writes text alone, and answers nothing.
        **{"frequency/gain": 1.0, "frequency/text_only": 0.0, "frequency/gone": 0.0},
    }
    assert {key: figures[key] for key in expected} == expected
    # At call 1 no result came before; at call 2 the result before is the same as the true one.
    assert counts["not_eligible"] == {"stale": 6}
    assert counts["prefixes"]["fork"] == 6 and not counts["visible"]
    assert {"tools" in request for request in api.requests} == {True, False}
    histories = defaultdict(set)
    for request in api.requests:
        question, *rest = request["messages"]
        for turn, result in zip(rest[::2], rest[1::2], strict=True):
            [call] = turn["tool_calls"]
            assert result["tool_call_id"] == call["id"]
            assert json.loads(call["function"]["arguments"])["code"].startswith("print(")
            number = rest.index(turn) // 2
            histories[question["content"], number].add(json.dumps(turn))
    # Parents, their forks and the arms with faults send the same turns, byte for byte.
    assert len(histories) == 6 and {len(turns) for turns in histories.values()} == {1}


def long_output(conversation) -> Reply:
    """Prints a long text, and gives up after it has seen a result."""
    results = [message for message in conversation if message["role"] == "user"][1:]
    return Reply("I give up" if results else "<code>print('7 ' * 60)</code>")


def test_the_check_accepts_results_that_the_record_holds_cut(suite, capsys):
    suite.kinds = ("timeout", "slow", "blank_line")
    suite.problems, suite.fork_call = PROBLEMS[:2], lambda problem, parent: 1
    with serving(ModelAPI(long_output)) as url:
        ran(url, "output_characters=20", "--protocol", "fork")
    capsys.readouterr()
    main(["recover", "--check", "found"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:11] for line in lines if line.startswith("FAIL")] == ["FAIL whole:"]
    [faults] = [line for line in lines if line.startswith("ok   faults:")]
    assert re.search(r": [1-9]\d* results at forks, 0 are not the fault's", faults)
