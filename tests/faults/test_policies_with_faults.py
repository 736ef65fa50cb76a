"""The same faults under every policy: a model of transformers, and APIs with tags and native tools.

The tiny model has learned to write the programs, so its turns are real ones. The APIs serve a
scripted model that writes the same programs.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")

from helpers.model_api import ModelAPI, Reply, serving
from helpers.vllm_models import CALLS, RULES, make_writer

from agents.models.tiny import make_tokenizer
from retool_env.faults import Faults
from retool_env.faults.schedule import At, Hashed
from retool_env.protocol.prompt import default_prompt
from retool_env.rollout import RolloutEngine
from retool_env.rollout.openai.policy import OpenAIPolicy
from retool_env.rollout.transformers.policy import TransformersPolicy

KINDS = ("timeout", "busy", "wrong_value", "stale", "blank_line", "gone")
FAULTS = {"rate": 0.5, "kinds": KINDS, "seed": 3}
ROLLOUTS = 3
ANSWER = "<answer>\n\\boxed{42}\n</answer>"


@pytest.fixture(scope="module")
def writer(sandbox, one_thread):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = make_tokenizer()
        return make_writer(tokenizer, sandbox), tokenizer


def greedy_engine(writer, sandbox, **rules):
    policy = TransformersPolicy(*writer, temperature=0)
    return RolloutEngine(policy, dataclasses.replace(RULES, **rules), sandbox)


def of_transformers(writer, sandbox, rules):
    policy = TransformersPolicy(*writer, temperature=0)
    return RolloutEngine(policy, rules, sandbox).run(CALLS, ROLLOUTS)


def of_api(way, sandbox, rules):
    """The episodes of a scripted model behind an API, which writes the programs of `CALLS`."""

    def model(conversation) -> Reply:
        number = int(conversation[0]["content"].split("Compute ")[1].split()[0])
        if sum(message["role"] == "assistant" for message in conversation) == 1 + number % 2:
            return Reply(ANSWER)
        program = f"print(42)  # {number}"
        if way == "tools":
            return Reply("", (("code_interpreter", json.dumps({"code": program})),))
        return Reply(f"<code>\n{program}\n</code>")

    template = default_prompt(interpreter=False) if way == "tools" else "{query}\n"
    rules = dataclasses.replace(rules, max_tokens=None, prompt_template=template)
    with serving(ModelAPI(model)) as url:
        return RolloutEngine(OpenAIPolicy("m", url, way=way), rules, sandbox).run(CALLS, ROLLOUTS)


def faults_of(groups) -> dict:
    """Program, kind of fault, whether it took place, and shown output of each call."""
    return {
        (problem.id, rollout, number): (
            call.program,
            fault and (fault.kind, fault.injected),
            call.execution.stdout,
        )
        for problem, group in zip(CALLS, groups, strict=True)
        for rollout, transcript in enumerate(group)
        for number, call in enumerate(transcript.calls, 1)
        for fault in [call.execution.fault]
    }


def test_all_policies_meet_the_same_faults(writer, sandbox):
    rules = dataclasses.replace(RULES, faults=FAULTS)
    tags, tools = (faults_of(of_api(way, sandbox, rules)) for way in ("chat", "tools"))
    assert tags == tools and len(tags) == sum(1 + int(p.id) % 2 for p in CALLS) * ROLLOUTS
    local = faults_of(of_transformers(writer, sandbox, rules))
    common = local.keys() & tags.keys()  # after a fault the tiny model goes on in its own way
    first = {(problem.id, rollout, 1) for problem in CALLS for rollout in range(ROLLOUTS)}
    assert common > first
    assert {key: local[key] for key in common} == {key: tags[key] for key in common}
    # The hash alone orders the faults: no policy and no result has a part in it.
    for (problem, rollout, number), (_, fault, _) in tags.items():
        schedule = Hashed(Faults(**FAULTS), problem, rollout)
        before = [schedule.ordered(call) for call in range(1, number)]
        kind = "gone" if "gone" in before else schedule.ordered(number)
        assert (fault and fault[0]) == kind
    kinds = {fault and fault[0] for _, fault, _ in tags.values()}
    assert len(kinds) >= 5 and None in kinds
    assert {fault[1] for _, fault, _ in tags.values() if fault} == {True, False}


def test_after_a_second_of_waiting_a_model_writes_the_same_tokens(writer, sandbox):
    """The placebo `slow` is a real second long. Decoding is greedy, in float32."""
    assert {parameter.dtype for parameter in writer[0].parameters()} == {torch.float32}
    engine = greedy_engine(writer, sandbox)
    slow = greedy_engine(writer, sandbox, faults={"kinds": ["slow"], "rate": 1.0})
    clean, waited = ([transcript for [transcript] in one.run(CALLS)] for one in (engine, slow))
    for a, b in zip(clean, waited, strict=True):
        assert a.completion_ids == b.completion_ids and a.calls and a.correct == b.correct
        assert all(call.execution.fault.injected for call in b.calls)
        # A result waits for a second, whose time is a part of its span.
        assert all(span.seconds >= 1 for span in b.response if span.author == "env")
    parent = clean[1]
    assert len(parent.calls) == 2
    for call in (1, 2):
        [control] = engine.fork(parent, call)
        [fork] = engine.fork(parent, call, arm="slow", schedule=At(call, "slow"))
        assert fork.calls[call - 1].execution.fault.injected
        assert parent.completion_ids == control.completion_ids == fork.completion_ids
