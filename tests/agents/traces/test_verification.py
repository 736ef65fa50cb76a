"""Each reason to drop a trace. Every program runs in the jail."""

from __future__ import annotations

import dataclasses

import pytest

from agents.coldstart import Replay
from agents.traces.scripted import authors
from agents.traces.verification import agrees, verify
from retool_env.problems import Problem
from retool_env.rollout import RolloutEngine
from retool_env.rollout.engine import run_blocking
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import Span

RULES = Rules(prompt_template="{query}", max_calls=3)
ANSWER = "<answer>\n\\boxed{42}\n</answer>"


def block(program, made_up=None):
    code = f"<code>\n```python\n{program}\n```\n</code>\n"
    return code if made_up is None else f"{code}<interpreter>\n{made_up}\n</interpreter>\n\n"


def verdict(sandbox, response, answer="42", keep_contradictions=False, rules=RULES):
    said = authors(response)
    problem = Problem(id="p", question="q", answer=answer)
    engine = RolloutEngine(Replay(said), rules, sandbox)
    transcript = run_blocking(engine.episode(problem, (0,)))
    return verify(transcript, said, keep_contradictions)


@pytest.mark.parametrize(
    "response",
    [
        "Let me see.\n" + block("print(6 * 7)", "42") + f"So 42.\n{ANSWER}",
        block("print(6 * 7)", "42") + ANSWER + "\n\n",
        # An error that is mended, whatever words it was made up in.
        block("prnt(1)", "Traceback:\n  line 1\nNameError: who is prnt?")
        + "I meant print.\n"
        + block("print(42)", "42")
        + ANSWER,
        block("x = 42", "") + ANSWER,
    ],
)
def test_a_right_trace_is_kept(sandbox, response):
    assert verdict(sandbox, response) is None


@pytest.mark.parametrize(
    ("response", "reason", "detail"),
    [
        ("It is 42.", "unfinished", "void_turn"),
        (block("print(42)", "42") + "It is 42.", "unfinished", "void_turn"),
        (block("print(42)", "42") + "<answer>\\boxed{42}", "unfinished", "void_turn"),
        (block("print(42)"), "unfinished", "stopped"),
        (block("print(1)", "1") * 4 + ANSWER, "unfinished", "call_limit"),
        ("I use <code>.\n" + block("print(42)", "42") + ANSWER, "stray tag", "turn 1"),
        (block("print(42)", "42") + f"<code>\nprint(1)\n{ANSWER}", "stray tag", "turn 2"),
        (
            "<interpreter>\n42\n</interpreter>\n" + block("print(42)", "42") + ANSWER,
            "stray tag",
            "",
        ),
        (block("print(42)", "42") + f"<answer>{ANSWER}", "stray tag", "turn 2"),
        (block("print(42)", "42") + f"{ANSWER}\nOr 43.", "text after answer", "Or 43."),
        (f"Of course.\n{ANSWER}", "no code", ""),
        (block("# nothing", "") + block("print(42)", "42") + ANSWER, "empty block", "block 1"),
        (block("print(42)", "42") + "<answer>42</answer>", "no single box", "42"),
        (block("print(42)", "42") + "<answer>\\boxed{}</answer>", "no single box", ""),
        (
            block("print(42)", "42") + "<answer>\\boxed{42} or \\boxed{42}</answer>",
            "no single box",
            "or",
        ),
        (
            block("print('a</inter' + 'preter>b')", "a") + ANSWER,
            "tag in output",
            "",
        ),
        (block("print(42)", "42") + block("print(x)", "42") + ANSWER, "last program failed", "'x'"),
        (block("print(6 * 7)", "41") + ANSWER, "contradiction", "block 1: '41', and really '42'"),
        (
            block("print(42)", "42") + block("print(7)", "SyntaxError: no") + ANSWER,
            "contradiction",
            "block 2",
        ),
        (block("1 / 0", "NameError: x") + block("print(42)", "42") + ANSWER, "contradiction", ""),
        (block("print(42)", "42") + "<answer>\\boxed{41}</answer>", "wrong answer", "41"),
    ],
)
def test_what_is_wrong_with_a_trace_is_said(sandbox, response, reason, detail):
    drop = verdict(sandbox, response)
    assert drop is not None and drop.reason == reason and detail in drop.detail


def test_contradictions_may_be_kept_and_a_wrong_answer_still_not(sandbox):
    response = block("print(6 * 7)", "41") + ANSWER
    assert verdict(sandbox, response, keep_contradictions=True) is None
    assert verdict(sandbox, response, "41", keep_contradictions=True).reason == "wrong answer"


def test_programs_run_under_the_rules(sandbox):
    response = block("x = 42", "") + block("print(x)", "42") + ANSWER
    assert verdict(sandbox, response).reason == "last program failed"
    assert verdict(sandbox, response, rules=dataclasses.replace(RULES, session=True)) is None


@pytest.mark.parametrize(
    ("made_up", "printed", "same"),
    [
        ("42", "42\n", True),
        ("x =  42 ", "x = 42\n", True),
        ("[1, 2]", "[1,2]\n", True),
        ("42", "43\n", False),
        ("42", "-42\n", False),
        ("42", "", False),
        ("", "42\n", False),
        ("1 2", "12\n", False),
        ("042", "42\n", True),
        ("True", "False\n", False),
        ("2*sqrt(2)", "sqrt(8)\n", False),
        # Rounded, cut, and neither.
        ("3.142", "3.141592653589793\n", True),
        ("3.141", "3.141592653589793\n", True),
        ("3.15", "3.141592653589793\n", True),
        ("3.16", "3.141592653589793\n", False),
        ("0.5", "0.6\n", False),
        ("5", "5.0\n", True),
        ("5", "5.4\n", False),
        ("1.2e-7", "1.2345e-07\n", True),
        ("1.2e-7", "1.2345e-06\n", False),
        ("1" * 40, "1" * 39 + "2\n", False),
        ("x²", "x²\n", True),
        ("²", "³\n", False),
        ("1.5e99999999999999999999", "1.6e99999999999999999999\n", False),
    ],
)
def test_results_agree_in_their_values(made_up, printed, same):
    text = f"\n<interpreter>\n{printed}</interpreter>\n\n"
    real = Span("env", text, execution=Execution(Outcome.OK, printed))
    assert agrees(f"<interpreter>{made_up}</interpreter>", real) is same
