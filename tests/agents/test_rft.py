"""RFT: sampling, the choice of traces, and rounds that learn."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal

import pytest
import torch
from helpers.signals import status_of, told_at
from helpers.small_runs import make_small
from helpers.tokenised import episode
from transformers import AutoModelForCausalLM

from agents import rft, sft
from agents.base import session
from agents.base.presets import load_settings
from agents.base.records import read_records
from agents.base.session import Session
from agents.base.settings import SettingsError
from agents.base.stopping import Stopped
from agents.models.tiny import make_tokenizer
from retool_env.problems import Problem, ProblemList
from retool_env.rollout import PolicyUnavailable
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.rules import Rules
from retool_env.transcript import read_transcripts, write_transcripts

RIDDLES = ProblemList(Problem(str(i), f"Compute {i}", "1") for i in range(4))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("initial"), seed=3, num_hidden_layers=2)


@pytest.fixture(scope="module")
def undecided(initial, tmp_path_factory):
    """A model that answers 0, 1, 2 or 3, whatever is asked, each about as often."""
    folder = tmp_path_factory.mktemp("undecided")
    model = AutoModelForCausalLM.from_pretrained(initial)
    tokenizer = make_tokenizer()
    prompts = [tokenizer.encode(p.question) for p in RIDDLES]
    answers = [tokenizer.encode(f"<answer>\n\\boxed{{{i}}}\n</answer>") for i in range(4)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.tensor([p + a for p in prompts for a in answers])
    labels = ids.clone()
    labels[:, : len(prompts[0])] = -100
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def share_of_right(folder):
    """The probability of the right answer, over the problems."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), make_tokenizer()
    found = []
    for problem in RIDDLES:
        text = f"<answer>\n\\boxed{{{problem.answer}}}\n</answer>"
        prompt, answer = tokenizer.encode(problem.question), tokenizer.encode(text)
        with torch.no_grad():
            logps = torch.log_softmax(model(torch.tensor([prompt + answer])).logits[0], -1)
        where = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        found.append(sum(logps[i, t].item() for i, t in zip(where, answer, strict=True)))
    return torch.tensor(found).exp().min().item()


def rft_settings(initial, **overrides):
    sft_settings = {"epochs": 15, "batch_size": 4, "learning_rate": 0.01}
    values = {
        "model": initial,
        "problems": 4,
        "k": 16,
        "rounds": 2,
        "sft": sft_settings,
        **overrides,
    }
    given = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return load_settings(rft.Settings, "rft", "tiny", given)


@pytest.fixture
def riddles(monkeypatch):
    rules = Rules(interpreter=False, max_tokens=20, prompt_template="{query}")
    monkeypatch.setattr(session, "find_task", lambda env: (rules, RIDDLES))


def test_rft_learns_what_it_sometimes_got_right(undecided, tmp_path, riddles):
    assert share_of_right(undecided) < 0.5
    trained = rft.train(rft_settings(undecided), tmp_path / "rft")
    assert share_of_right(trained) > 0.9
    records = read_records(tmp_path / "rft" / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2]
    assert records[1]["env/accuracy"] > records[0]["env/accuracy"] + 0.3
    for number in (1, 2):
        traces = list(read_transcripts(tmp_path / "rft" / "stages" / f"round-{number}.jsonl"))
        assert all(t.correct for t in traces)
        assert len({(t.problem.id, t.response_text) for t in traces}) == len(traces) >= 4


def test_rft_gives_servers_each_rounds_weights(undecided, tmp_path, riddles, monkeypatch):
    updates, closed = [], []

    class Server(TransformersPolicy):
        async def update_weights(self, version, weights=None):
            updates.append(version)
            await super().update_weights(version, weights)

        def close(self):
            closed.append(self)

    def served(name, options, trained, tokenizer, model, temperature, apart):
        assert (name, options, apart) == (
            "http://h:1",
            {"weights_folder": "w", "sharers": 1},
            False,
        )
        model = AutoModelForCausalLM.from_pretrained(undecided)  # what it was started with
        return Server(model, tokenizer, temperature=temperature)

    monkeypatch.setattr(rft, "make_policy", served)
    engine = {"name": "http://h:1", "weights_folder": "w"}
    rft.train(rft_settings(undecided, engine=engine), tmp_path / "rft")
    assert updates == [1, 2] and len(closed) == 2
    records = read_records(tmp_path / "rft" / "metrics.jsonl")
    assert records[1]["env/accuracy"] > records[0]["env/accuracy"] + 0.3


def test_rft_evaluates_the_model_of_each_round_at_the_sampling_of_evaluations(
    undecided, tmp_path, riddles, monkeypatch
):
    sampling, make = [], rft.make_policy

    def made(*arguments, **more):
        policy = make(*arguments, **more)
        sampling.append((policy.temperature, policy.top_p))
        return policy

    monkeypatch.setattr(rft, "make_policy", made)
    more = {"env": {"id": "ReTool-Arithmetic-v0", "interpreter": False, "max_tokens": 20}}
    more |= {"eval_every": 1, "eval_problems": 2, "temperature": 1.5}
    made_settings = rft_settings(undecided, sft={"epochs": 2, "learning_rate": 0.01}, **more)
    rft.train(made_settings, tmp_path / "rft")
    records = read_records(tmp_path / "rft" / "metrics.jsonl")
    assert [(r["step"], "eval/failed" in r) for r in records] == [
        *((0, True), (1, False), (1, True), (2, False), (2, True)),
    ]
    assert sampling == [(1.0, 0.7), (1.5, 1.0)] * 2 + [(1.0, 0.7)]
    for step in (0, 1, 2):
        transcripts = list(read_transcripts(tmp_path / "rft" / f"eval-{step}.jsonl"))
        assert len(transcripts) == 2 and "/test-" in transcripts[0].problem.id


def test_rft_refuses_an_engine_that_there_is_not_before_anything_is_sampled(undecided, tmp_path):
    with pytest.raises(SettingsError, match="engine: 'vlm' is unknown"):
        rft.train(rft_settings(undecided, engine="vlm"), tmp_path / "rft")


def test_a_stopped_rft_goes_on_without_sampling_again(undecided, tmp_path, riddles, monkeypatch):
    few = rft_settings(undecided, problems=2, sft={"epochs": 2, "learning_rate": 0.01})
    trained = rft.train(few, tmp_path / "whole")
    original, calls = sft.train, []

    def stopping(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sft, "train", stopping)
        rft.train(few, tmp_path / "cut")
    monkeypatch.setattr(rft, "sample", lambda *_: pytest.fail("both rounds were sampled"))
    resumed = rft.train(few, tmp_path / "cut", resume=True)
    one, other = (AutoModelForCausalLM.from_pretrained(f) for f in (trained, resumed))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("owner", "name", "call", "sampled"),
    [
        (rft, "policy_of", 1, 0),
        (rft, "write_transcripts", 1, 1),
        (rft, "chosen_traces", 1, 2),
        (Session, "save", 1, 2),
        (rft, "policy_of", 2, 2),
        (rft, "write_transcripts", 3, 3),
        (Session, "save", 2, 4),
    ],
)
def test_rft_is_stopped_by_a_signal_in_any_phase(
    owner, name, call, sampled, undecided, tmp_path, riddles, monkeypatch
):
    """It has two rounds of two problems; the last phase is the end of the last round."""
    tuning = {"epochs": 1, "learning_rate": 0.01}
    few, groups, write = rft_settings(undecided, problems=2, sft=tuning), [], rft.write_transcripts
    monkeypatch.setattr(rft, "write_transcripts", lambda *given: groups.append(write(*given)))
    with monkeypatch.context() as patch:
        told_at(patch, owner, name, call)
        if (name, call) == ("save", 2):
            rft.train(few, tmp_path / "run")
        else:
            with pytest.raises(Stopped):
                rft.train(few, tmp_path / "run")
            assert status_of(tmp_path / "run") == ("stopped", 75, None)
    assert sampled <= len(groups) <= sampled + 1  # two episodes may end at once
    rft.train(few, tmp_path / "run", resume=True)
    assert status_of(tmp_path / "run")[:2] == ("finished", 0) and len(groups) == 4


def test_rft_stops_during_an_evaluation(undecided, tmp_path, monkeypatch):
    env = {"id": "ReTool-Arithmetic-v0", "interpreter": False, "max_tokens": 20}
    few = rft_settings(undecided, env=env, eval_every=1, eval_problems=2)

    async def act(self, *given):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    monkeypatch.setattr(TransformersPolicy, "act", act)
    with pytest.raises(Stopped):
        rft.train(few, tmp_path / "run")
    assert status_of(tmp_path / "run") == ("stopped", 75, None)
    assert not (tmp_path / "run" / "eval-0.jsonl").exists()


@pytest.mark.parametrize("restart", [True, False])
def test_rft_goes_on_under_another_name(undecided, tmp_path, riddles, restart):
    few = {"problems": 2, "restart": restart, "sft": {"epochs": 1, "learning_rate": 0.01}}
    rft.train(rft_settings(undecided, name="a", rounds=2, **few), tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    trained = rft.train(rft_settings(undecided, name="b", rounds=3, **few), tmp_path / "b", True)
    assert trained == tmp_path / "b" / "checkpoint" and trained.resolve().is_dir()
    assert [record["step"] for record in read_records(tmp_path / "b" / "metrics.jsonl")] == [
        1,
        2,
        3,
    ]


def test_rft_keeps_right_ones_each_once_and_so_many_a_problem():
    right, wrong, longer = episode(1, 1.0), episode(1, -1.0), episode(1, 1.0, words=3)
    shown = dataclasses.replace(right.spans[2], text="otherwise printed")
    printed = dataclasses.replace(right, spans=(*right.spans[:2], shown, *right.spans[3:]))
    elsewhere = dataclasses.replace(right, problem=Problem("2", "?", "1"))
    assert rft.distinct([right, wrong, printed, longer, elsewhere]) == [right, longer, elsewhere]
    assert rft.choose([[wrong, right, printed, longer], [elsewhere]], 1) == [right, elsewhere]


def test_rft_samples_again_what_failed_or_was_cut_short(tmp_path):
    other = dataclasses.replace
    whole = [episode(1, 1.0), episode(1, -1.0)]
    second = Problem("2", "?", "1")
    failed = [other(t, problem=second) for t in (episode(1, 1.0), episode(1, 0.0, failed=True))]
    short = other(whole[0], problem=Problem("3", "?", "1"))
    write_transcripts(tmp_path / "kept.jsonl", [*whole, *failed, short])
    assert rft.kept_groups(tmp_path / "kept.jsonl", 2) == {whole[0].problem.id: whole}
    assert list(read_transcripts(tmp_path / "kept.jsonl")) == whole


def test_rft_whose_episodes_all_failed_can_go_on(initial, tmp_path, riddles, monkeypatch):
    gone = episode(1, 0.0, failed=True)
    monkeypatch.setattr(rft, "sample", lambda *_: [[gone, gone]])
    with pytest.raises(PolicyUnavailable, match="all episodes failed"):
        rft.train(rft_settings(initial, k=2), tmp_path / "run")


def test_rft_says_when_nothing_was_right(initial, tmp_path, riddles):
    with pytest.raises(SettingsError, match="round 1: no response was right"):
        rft.train(rft_settings(initial, k=2), tmp_path / "none")
    with pytest.raises(SettingsError, match="holds no model"):
        rft.train(rft_settings("runs/none/checkpoint"), tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
