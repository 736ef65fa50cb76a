"""PPO: updates on given episodes, a problem with a known optimum, runs with real programs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from helpers import HELPERS, ROOT, ppo_batches
from helpers.ppo_batches import ROWS, changes, learner, row, table
from helpers.small_runs import make_small
from transformers import (
    AutoModelForCausalLM,
)

from agents import ppo
from agents.base import model, session
from agents.base.minibatch import Batch
from agents.base.presets import load_settings
from agents.base.settings import SettingsError
from retool_env.episode import Generation
from retool_env.integrations.trl import episode_reward
from retool_env.problems import Problem, ProblemList
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.rules import Rules
from retool_env.training.rows import training_rows
from retool_env.transcript import (
    Span,
    StopReason,
    Transcript,
    check_transcript,
    read_transcripts,
)

BUDGET = 40
TIED = {"max_position_embeddings": 512, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("initial"), num_hidden_layers=2, **TIED)


def close(one, other, tolerance=1e-5):
    """Whether two sets of changes are equal but for rounding, relative to the largest."""
    for a, b in zip(one, other, strict=True):
        assert a.abs().max() > 1e-3  # something changed at all
        torch.testing.assert_close(a, b, atol=tolerance * a.abs().max().item(), rtol=0)


# Updates


@pytest.mark.parametrize(
    ("temperature", "correction", "loss"),
    [
        (1.0, "ratio", "dapo"),
        (0.6, "ratio", "grpo"),
        (1.0, "token", "dr_grpo"),
        (1.0, "geometric", "luspo"),
    ],
)
def test_the_gradient_is_that_of_the_definition(initial, temperature, correction, loss):
    """By autograd through transformers' logits and loops over the model's tokens, in float64."""
    model = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float64)
    made = learner(initial)
    trunk = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float64).base_model
    head = torch.nn.Linear(model.config.hidden_size, 1, dtype=torch.float64)
    head.load_state_dict(made.critic.head.state_dict())
    own = []  # (log-prob, old one, value, advantage, return, weight, share) of each own token
    gamma, lam = 0.97, 0.9
    for each in ROWS:
        ids = torch.tensor([each["prompt_ids"] + each["completion_ids"]])
        logps = (model(ids).logits[0, :-1] / temperature).log_softmax(-1)
        values = head(trunk(ids).last_hidden_state[0, :-1])[:, 0]
        places = [
            (len(each["prompt_ids"]) + i, old)
            for i, (m, old) in enumerate(zip(each["env_mask"], each["logprobs"], strict=True))
            if m
        ]
        tokens, after, advantage = [], 0.0, 0.0
        moved = {t: logps[t - 1, ids[0, t]].item() - old for t, old in places}
        average = sum(moved.values()) / len(moved)
        weight_of = {
            t: float(0.5 <= math.exp(average) <= 1.05)
            if correction == "geometric"
            else min(math.exp(moved[t]), 1.05)
            for t in moved
        }
        reward = each["transcript"].reward
        shares = {"grpo": 1 / len(places), "dr_grpo": 1 / BUDGET, "luspo": 1.0}
        for t, old in reversed(places):
            value = values[t - 1].item()
            advantage = reward + gamma * after - value + gamma * lam * advantage
            reward, after = 0.0, value
            logp = logps[t - 1, ids[0, t]]
            target, share = advantage + value, shares.get(loss)
            tokens.append((logp, old, values[t - 1], advantage, target, weight_of[t], share))
        own += tokens
    mean = sum(each[3] for each in own) / len(own)
    std = math.sqrt(sum((each[3] - mean) ** 2 for each in own) / len(own))
    policy = critic = 0.0
    policy_mean = critic_mean = 0.0  # over tokens, as the figures
    for logp, old, value, advantage, target, weight, share in own:
        white = (advantage - mean) / (std + 1e-4)
        ratio = (logp - old).exp()
        if correction != "ratio":
            ratio, white = (logp - logp.detach()).exp(), white * weight
        share = 1 / len(own) if share is None else share / len(ROWS)
        objective = torch.minimum(ratio * white, ratio.clamp(0.8, 1.28) * white)
        policy, critic = policy - share * objective, critic + share * 0.5 * (value - target) ** 2
        policy_mean = policy_mean - objective.item() / len(own)
        critic_mean = critic_mean + 0.5 * (value.item() - target) ** 2 / len(own)
    (policy + critic).backward()
    expected = [-p.grad.flatten() for p in model.parameters()]
    expected_critic = [-p.grad.flatten() for p in (*trunk.parameters(), *head.parameters())]
    more = {"temperature": temperature, "correction": correction, "correction_cap": 1.05}
    more |= {"correction_low": 0.5, "correction_high": 1.05, "loss": loss}

    def prepare(made):
        made.budget = BUDGET

    (actor, critic_change), figures = changes(initial, ROWS, prepare, **more)
    close([actor, critic_change], [torch.cat(g).float() for g in (expected, expected_critic)])
    apart = [each[0].item() - each[1] for each in own]
    weight = [math.exp(each) for each in apart]
    clipped = [
        (w > 1.28 and each[3] > mean) or (w < 0.8 and each[3] < mean)
        for w, each in zip(weight, own, strict=True)
    ]
    expected = {
        "loss/policy": policy_mean,
        "loss/value": critic_mean,
        "clip_fraction": sum(clipped) / len(own),
        "critic/value": sum(each[2].item() for each in own) / len(own),
        "offpolicy/difference": sum(map(abs, apart)) / len(own),
        "offpolicy/difference_max": max(map(abs, apart)),
        "offpolicy/kl": sum(math.expm1(each) - each for each in apart) / len(own),
        "offpolicy/weight": sum(weight) / len(own),
        "offpolicy/effective_tokens": sum(weight) ** 2 / sum(w * w for w in weight) / len(own),
        "completions/mean_length": len(own) / len(ROWS),
        "grad_norm/actor": actor.norm().item(),
        "grad_norm/critic": critic_change.norm().item(),
    }
    if correction != "ratio":  # then nothing has moved from the old ones
        weights = [each[5] for each in own]
        expected["clip_fraction"] = 0.0
        expected["correction/weight"] = sum(weights) / len(weights)
        expected["correction/rejected"] = 0.5 if correction == "geometric" else 0.0
        expected["correction/effective_tokens"] = (
            sum(weights) ** 2 / sum(w * w for w in weights) / len(weights)
        )
        kept = [len({each[5] for each in own}), 0.0 in weights, 1.0 in weights]
        assert kept == [2, True, True] if correction == "geometric" else 1.05 in weights
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert correction != "ratio" or 0 < expected["clip_fraction"] < 1


def test_log_probs_that_are_far_apart_give_a_finite_step(initial):
    far = [
        {
            **each,
            "logprobs": [
                p - 94.0 * m for p, m in zip(each["logprobs"], each["env_mask"], strict=True)
            ],
        }
        for each in ROWS
    ]

    def drift(made):
        original = made.reference_logps
        made.reference_logps = lambda rows: original(rows) + 94.0

    found, figures = changes(initial, far, drift, kl=0.1, entropy=0.01)
    assert all(torch.isfinite(each).all() for each in found)
    assert found[1].norm() > 0 and all(map(math.isfinite, figures.values()))


def test_what_a_deadline_cut_is_not_trained_on(initial):
    def episode(reason, reward):
        spans = Span("prompt", "a", (5,)), Span("model", "b", (6, 7), (-1.0, -1.0))
        return Transcript(Problem("0", "?", "1"), spans, stop_reason=reason, reward=reward)

    whole = episode(StopReason.ANSWERED, 1.0)
    cut = episode(StopReason.CANCELLED, -1.0)
    failed = episode(StopReason.INFRASTRUCTURE, None)
    assert episode_reward([whole, cut, failed]) == [1.0, None, None]

    def stepped(*transcripts):
        made = learner(initial, mini_batch=3, micro_batch=3)
        before = ppo_batches.weights(made)
        figures = made.learn(Batch.of(training_rows(transcripts, [1])), 0)
        return [a - b for a, b in zip(ppo_batches.weights(made), before, strict=True)], figures

    found, other = stepped(whole, whole, cut), stepped(whole, whole, failed)
    assert found[1] == other[1]
    assert all(torch.equal(a, b) for a, b in zip(found[0], other[0], strict=True))


def test_interpreter_tokens_move_neither_loss_nor_gradient_of_actor_or_critic(initial):
    """Noise in the hidden states of masked tokens changes no bit of the result."""

    def drown(made):
        noise = torch.Generator().manual_seed(0)
        own = made.rows
        laid_out = []
        made.packing  # noqa: B018 -- which tries the model
        made.rows = lambda batch: laid_out.append(own(batch)) or laid_out[-1]

        def hook(module, args, kwargs, output):
            state = output.last_hidden_state
            foreign = torch.ones(state.shape[:2], dtype=torch.bool)
            foreign.view(-1)[laid_out[-1].source] = False
            seen.append(foreign.sum())
            noisy = state + 100 * torch.randn(state.shape, generator=noise) * foreign[..., None]
            output.last_hidden_state = noisy
            return output

        made.model.base_model.register_forward_hook(hook, with_kwargs=True)
        made.critic.trunk.register_forward_hook(hook, with_kwargs=True)

    seen = []
    more = {"entropy": 0.01, "kl": 0.1}
    clean, figures = changes(initial, ROWS, **more)
    noisy, same = changes(initial, ROWS, drown, **more)
    assert len(seen) == 3 and min(seen) > 0  # values, actor, critic
    for a, b in zip(clean, noisy, strict=True):
        assert a.abs().max() > 1e-3 and torch.equal(a, b)
    assert figures == same


def test_packed_rows_and_shared_prompts_change_nothing(initial):
    rows = [*ROWS, {**row(7, -1.0), "prompt_ids": ROWS[0]["prompt_ids"]}]
    places = []

    def laid_out(*packs):
        def prepare(made):
            made.packing = packs
            own = made.rows
            made.rows = lambda batch: places.append(own(batch)) or places[-1]

        return changes(initial, rows, prepare, mini_batch=5, micro_batch=5, kl=0.1)

    alone, figures = laid_out(False, False)
    for packs in ((True, False), (True, True)):
        packed, same = laid_out(*packs)
        close(alone, packed)
        assert same == pytest.approx(figures, rel=1e-4, abs=1e-5)
    sizes = [rows.input_ids.numel() for rows in places[::2]]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 1
    assert places[0].position_ids is None and places[-1].mask is not None
    made = learner(initial)
    assert made.packing == (True, True)


def test_a_failed_episode_is_as_if_absent(initial):
    clean, figures = changes(initial, ROWS)
    failed, same = changes(
        initial, [row(9, None), *ROWS, row(8, None)], mini_batch=6, micro_batch=3
    )
    close(clean, failed)
    assert same == pytest.approx(figures, rel=1e-4, abs=1e-5)


def test_a_batch_of_failed_episodes_changes_nothing(initial):
    (actor, critic), figures = changes(
        initial, [row(1, None), row(2, None)], mini_batch=2, micro_batch=2
    )
    assert not actor.any() and not critic.any() and "loss/policy" not in figures


def test_micro_batches_and_padding_change_nothing(initial):
    whole, figures = changes(initial, ROWS)
    for micro in (1, 2):  # each part is as long as its own longest episode
        parts, same = changes(initial, ROWS, micro_batch=micro)
        close(whole, parts)
        assert same == pytest.approx(figures, rel=1e-4, abs=1e-5)


def test_a_frozen_actor_stays_while_the_critic_learns(initial):
    (actor, critic), figures = changes(initial, ROWS, critic_warmup=3, step=2)
    assert not actor.any() and critic.any() and "grad_norm/actor" not in figures
    (actor, _), _ = changes(initial, ROWS, critic_warmup=3, step=3)
    assert actor.any()


def test_the_critic_says_nothing_at_first_and_learns_the_reward(initial):
    settings = ppo.Settings(
        model=initial, mini_batch=4, micro_batch=4, critic_warmup=99, critic_learning_rate=1e-3
    )
    made = ppo.Learner(settings, AutoModelForCausalLM.from_pretrained(initial))
    batch = Batch.of(table(ROWS))
    assert not made.values(batch).any()
    explained = [made.learn(batch, step)["critic/explained_variance"] for step in range(30)]
    assert explained[0] == pytest.approx(0.0, abs=1e-6) and explained[-1] > 0.9


def test_epochs_and_minibatches_are_optimizer_steps_over_all_episodes(initial):
    taken = []

    def count(made):
        update = made.update

        def counting(batch, sums, actor):
            taken.append(sorted(batch.rewards.tolist()))
            update(batch, sums, actor)

        made.update = counting
        scaled(1e-3)(made)

    rows = [row(i, float(i + 1)) for i in range(4)]
    _, figures = changes(initial, rows, count, epochs=2, mini_batch=2)
    assert len(taken) == 4
    assert sorted(taken[0] + taken[1]) == sorted(taken[2] + taken[3]) == [1.0, 2.0, 3.0, 4.0]
    assert figures["loss/value"] > 0


def test_the_terms_of_kl_and_entropy_are_those_of_the_definition(initial):
    """The terms of the gradient, for an actor that has moved, against autograd in float64."""
    start = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float64)
    moved = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = [0.02 * torch.randn(p.shape, generator=generator) for p in moved.parameters()]

    @torch.no_grad()
    def move(model):
        for parameter, by in zip(model.parameters(), noise, strict=True):
            parameter.add_(by)

    move(moved)
    entropy, kl = [], []
    for each in ROWS:
        ids = torch.tensor([each["prompt_ids"] + each["completion_ids"]])
        logps = moved(ids).logits[0, :-1].log_softmax(-1)
        before = start(ids).logits[0, :-1].log_softmax(-1).detach()
        for i, own in enumerate(each["env_mask"]):
            if own:
                t = len(each["prompt_ids"]) + i
                distance = before[t - 1, ids[0, t]] - logps[t - 1, ids[0, t]]
                kl.append(distance.exp() - 1 - distance)
                entropy.append(-(logps[t - 1].exp() * logps[t - 1]).sum())
    plain, _ = changes(initial, ROWS, lambda made: move(made.actor))
    for name, terms, sign in (("kl", kl, -1), ("entropy", entropy, 1)):
        mean = sum(terms) / len(terms)
        gradient = torch.autograd.grad(mean, list(moved.parameters()), retain_graph=True)
        with_it, figures = changes(initial, ROWS, lambda made: move(made.actor), **{name: 1.0})
        assert figures[name] == pytest.approx(mean.item(), rel=1e-4)
        close(
            [with_it[0] - plain[0]],
            [sign * torch.cat([g.flatten() for g in gradient]).float()],
            1e-4,
        )
        assert torch.equal(with_it[1], plain[1])


def scaled(rate):
    def prepare(made):
        for optimizer in (made.actor_optimizer, made.critic_optimizer):
            optimizer.param_groups[0]["lr"] = rate

    return prepare


def test_clips_coefficients_and_norms_are_those_of_the_settings(initial):
    (actor, critic), figures = changes(initial, ROWS)
    (_, half), _ = changes(initial, ROWS, value_coefficient=0.5)
    close([half], [0.5 * critic])
    (short, also), same = changes(initial, ROWS, max_grad_norm=0.1)
    close([short, also], [0.1 * actor / actor.norm(), 0.1 * critic / critic.norm()], 1e-4)
    assert same["grad_norm/actor"] == pytest.approx(actor.norm().item(), rel=1e-4)
    without, strict = (changes(initial, ROWS, dual_clip=c)[1]["clip_fraction"] for c in (0.0, 1.3))
    assert without == figures["clip_fraction"] < strict
    without, strict = (
        changes(initial, ROWS, scaled(0.01), epochs=2, value_clip=c)[1]["critic/clip_fraction"]
        for c in (0.0, 1e-6)
    )
    assert without == 0 < strict


@pytest.mark.slow
def test_two_processes_do_as_one(initial, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ran = subprocess.run(
        [*command, str(HELPERS / "ppo_batches.py"), initial, str(tmp_path / "found.pt")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{HELPERS.parent}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt")
    wholes = {loss: changes(initial, ROWS, loss=loss) for loss in ("dapo", "grpo")}
    assert len(found) == 4
    for name, (both, same) in found.items():
        whole, figures = wholes["grpo" if name == "mean of episodes" else "dapo"]
        close(whole, both)
        names = figures.keys() - {"grad_norm/actor", "grad_norm/critic"}
        assert {n: same[n] for n in names} == pytest.approx(
            {n: figures[n] for n in names}, rel=1e-4, abs=1e-5
        )
        assert same["grad_norm/actor"] == pytest.approx(figures["grad_norm/actor"], rel=1e-4)


# Learning


def test_it_reaches_the_optimum_of_a_bandit(tmp_path, monkeypatch):
    """One token a turn: even is right after `a`, odd after `b`. Within 40 steps nearly all are."""

    def reward(transcript):
        return 1.0 if transcript.completion_ids[0] % 2 == (transcript.problem.id == "b") else -1.0

    rules = Rules(interpreter=False, max_tokens=1, prompt_template="{query}", reward=reward)
    problems = ProblemList([Problem("a", "a", "0"), Problem("b", "b", "0")])
    monkeypatch.setattr(session, "find_task", lambda env: (rules, problems))
    settings = ppo.Settings(
        model=make_small(tmp_path / "model", **TIED),
        steps=40,
        prompts=64,
        mini_batch=32,
        micro_batch=32,
        epochs=2,
        learning_rate=5e-3,
        critic_learning_rate=5e-3,
        critic_warmup=2,
        save_steps=40,
    )
    ppo.train(settings, tmp_path / "run")
    rewards = [record["reward"] for record in records(tmp_path / "run")]
    assert max(rewards[:2]) < 0.5
    assert min(rewards[-5:]) > 0.9


# Runs


def settings(initial, **overrides):
    values = {
        "model": initial,
        "name": "p",
        "steps": 4,
        "critic_warmup": 1,
        "prompts": 8,
        "rollouts": 1,
        "mini_batch": 4,
        "micro_batch": 2,
        "save_steps": 2,
        "env.max_tokens": 60,
        "sandbox": {"name": "nsjail", "guests": 1},
        **overrides,
    }
    return load_settings(
        ppo.Settings, "ppo", "tiny", [f"{k}={json.dumps(v)}" for k, v in values.items()]
    )


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def weights(folder):
    return list(AutoModelForCausalLM.from_pretrained(folder).parameters())


@pytest.fixture
def writing(monkeypatch):
    """Lets the untrained model's turns begin with a program, so that the interpreter is used."""
    act = TransformersPolicy.act

    async def program_first(policy, token_ids, stop, budget, seed):
        prompt, _, written = policy.tokenizer.decode(token_ids).partition("\n")
        if written or seed % 2:
            return await act(policy, token_ids, stop, budget, seed)
        expression = prompt.removeprefix("Compute ").split(".")[0]
        program = f"<code>\n```python\nprint({expression})\n```\n</code>"
        ids = tuple(policy.tokenizer.encode(program))
        return Generation(ids, (-3.0,) * len(ids), "tag")

    monkeypatch.setattr(TransformersPolicy, "act", program_first)


def test_a_run_leaves_all_its_records(initial, tmp_path, writing):
    folder = tmp_path / "p"
    checkpoint = ppo.train(settings(initial), folder)
    assert any(
        not torch.equal(a, b) for a, b in zip(weights(initial), weights(checkpoint), strict=True)
    )
    found = records(folder)
    assert [record["step"] for record in found] == [1, 2, 3, 4]
    assert "grad_norm/actor" not in found[0] and "grad_norm/actor" in found[1]
    for record in found:
        assert record["env/call_pass_rate"] == 1.0 and 0 < record["env/code_ratio"] <= 1
        assert all(math.isfinite(value) for value in record.values())
        assert {
            "reward",
            "env/accuracy",
            "loss/policy",
            "loss/value",
            "critic/value",
            "clip_fraction",
            "entropy",
            "offpolicy/difference",
            "offpolicy/difference_max",
            "offpolicy/kl",
            "offpolicy/weight",
            "offpolicy/effective_tokens",
            "rollout/seconds",
            "completions/mean_length",
        } <= record.keys()
    transcripts = list(read_transcripts(folder / "transcripts.jsonl"))
    assert len(transcripts) == 4 * 8 and any(t.calls for t in transcripts)
    for transcript in transcripts:
        check_transcript(transcript)
    assert {t.weight_version for t in transcripts} == {0, 1, 2, 3}
    lengths = [sum(t.loss_mask) for t in transcripts[:8]]
    assert found[0]["completions/mean_length"] == pytest.approx(sum(lengths) / 8)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (folder / "trainer").iterdir()] == ["checkpoint-4"]
    assert ppo.train(settings(initial), folder, resume=True) == checkpoint


def test_nothing_of_an_episode_with_a_void_turn_is_trained_on(initial, tmp_path):
    """The untrained model writes nothing else."""
    checkpoint = ppo.train(settings(initial, mask_void=True, steps=2), tmp_path / "p")
    for record in records(tmp_path / "p"):
        assert record["env/void_episodes"] == 1.0 and record["completions/mean_length"] == 0
    assert all(
        torch.equal(a, b) for a, b in zip(weights(initial), weights(checkpoint), strict=True)
    )


def test_the_engines_log_probs_are_the_trained_models_own(initial, tmp_path):
    """Before any update they differ only by rounding, so rows, mask and shift are right."""
    ppo.train(settings(initial, steps=2), tmp_path / "p")
    record = records(tmp_path / "p")[0]
    assert record["offpolicy/difference_max"] < 1e-3
    assert record["offpolicy/weight"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.some(1)
@pytest.mark.parametrize("rank", [0, 4])
def test_a_stopped_run_goes_on_to_the_same_curve(initial, tmp_path, monkeypatch, rank):
    chosen = settings(initial, lora_rank=rank)
    whole = ppo.train(chosen, tmp_path / "whole")
    original = ppo.Rollouts.collect

    def stopping(self, step):
        if step.number == 3:  # after the last checkpoint
            raise KeyboardInterrupt
        return original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(ppo.Rollouts, "collect", stopping)
        with pytest.raises(KeyboardInterrupt):
            ppo.train(chosen, tmp_path / "cut")
    assert [record["step"] for record in records(tmp_path / "cut")] == [1, 2, 3]
    (tmp_path / "cut" / "trainer" / "checkpoint-3").mkdir()  # as a stop while saving leaves it
    metrics = tmp_path / "cut" / "metrics.jsonl"
    slow = [{**record, "seconds": 1000.0} for record in records(tmp_path / "cut")]
    metrics.write_text("".join(json.dumps(record) + "\n" for record in slow))
    resumed = ppo.train(chosen, tmp_path / "cut", resume=True)
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    pairs = [
        list(read_transcripts(tmp_path / name / "transcripts.jsonl")) for name in ("whole", "cut")
    ]
    for one, other in zip(*pairs, strict=True):
        assert one.completion_ids == other.completion_ids
        assert one.trained_version == other.trained_version
        for span in other.response:
            if span.author == "model" and not one.trained_version:  # later, updates lie between
                assert span.trained_logprobs == pytest.approx(span.logprobs, abs=1e-3)
            assert (span.trained_logprobs is None) == (span.author == "env")
    steps, again = records(tmp_path / "whole"), records(tmp_path / "cut")
    assert [record["step"] for record in again] == [1, 2, 3, 4]
    for name in ("loss/value", "critic/value", "loss/policy", "grad_norm/critic"):
        assert again[3][name] == pytest.approx(steps[3][name], rel=1e-2, abs=1e-5)
    assert 1000 < again[2]["seconds"] < again[3]["seconds"]  # the time goes on, too


def test_a_model_that_could_not_be_kept_is_kept_by_the_run_that_goes_on(
    initial, tmp_path, monkeypatch
):
    chosen = settings(initial, export_steps=1, save_steps=1)
    save = model.save_checkpoint

    def full(learner, tokenizer, folder, *more):
        save(learner, tokenizer, folder, *more)
        if folder.name.startswith("2"):
            raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(model, "save_checkpoint", full)
        with pytest.raises(OSError, match="no space"):
            ppo.train(chosen, tmp_path / "p")
    assert not (tmp_path / "p" / "checkpoints" / "2").exists()
    ppo.train(chosen, tmp_path / "p", resume=True)
    kept = sorted(path.name for path in (tmp_path / "p" / "checkpoints").iterdir())
    assert kept == [str(step + 1) for step in range(chosen.steps)]


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"staleness": 1, "oversample": 1.5}], ids=["", "ahead"])
def test_two_processes_keep_one_run(initial, tmp_path, more):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = ["-m", "agents", "ppo", "--preset", "tiny", "--runs", str(tmp_path), "--resume"]
    small = {
        "model": initial,
        "name": "p",
        "steps": 2,
        "critic_warmup": 1,
        "prompts": 8,
        "mini_batch": 4,
        "micro_batch": 2,
        "env.max_tokens": 60,
        "sandbox": {"name": "nsjail", "guests": 1},
        **more,
    }
    ran = subprocess.run(
        [*launch, *command, *(f"{key}={json.dumps(value)}" for key, value in small.items())],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    folder = tmp_path / "p"
    assert [record["step"] for record in records(folder)] == [1, 2]
    seen = []
    for name in ("transcripts.jsonl", "transcripts-1.jsonl"):
        transcripts = list(read_transcripts(folder / name))
        assert len(transcripts) == 2 * 4
        seen.append({t.problem.id for t in transcripts})
    assert not seen[0] & seen[1]
    assert AutoModelForCausalLM.from_pretrained(folder / "checkpoint").num_parameters() > 1000


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"mini_batch": 3}, "mini_batch=3 does not divide"),
        ({"micro_batch": 3}, "not divided by micro_batch=3"),
        ({"critic_warmup": 4}, "critic_warmup=4 must be below steps=4"),
        ({"dual_clip": 1.2}, "dual_clip=1.2"),
        ({"gamma": 1.5}, "gamma must be from 0 to 1"),
        ({"critic_learning_rate": 0.0}, "critic_learning_rate must be above 0"),
        ({"kl": -0.1}, "kl must not be negative"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"model": "runs/none/checkpoint"}, "python -m agents sft"),
        ({"env.max_callz": 1}, "did you mean 'max_calls'"),
        ({"env.prompt_template": "{query}" + "x" * 600}, "shorten"),
        ({"lamda": 1.0}, "did you mean 'lam'"),
    ],
)
def test_mistakes_are_said_before_anything_is_made(initial, tmp_path, overrides, said):
    with pytest.raises(SettingsError, match=said):
        ppo.train(settings(initial, **overrides), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_several_processes_can_not_share_is_refused(initial):
    with pytest.raises(SettingsError, match="prompts=7 problems"):
        ppo.check(settings(initial, prompts=7, mini_batch=7, micro_batch=7), 2)
    with pytest.raises(SettingsError, match=r"micro_batch=4 \* 2 processes"):
        ppo.check(settings(initial, micro_batch=4), 2)


def test_each_problem_is_sampled_as_often_as_rollouts_says(initial, tmp_path, writing):
    ppo.train(settings(initial, steps=2, prompts=2, rollouts=4), tmp_path / "p")
    transcripts = list(read_transcripts(tmp_path / "p" / "transcripts.jsonl"))
    for step in (0, 1):
        problems = [t.problem.id for t in transcripts if t.trained_version == step]
        assert sorted(Counter(problems).values()) == [4, 4]


def test_settings_reach_the_engine(initial, tmp_path, monkeypatch):
    given = {}

    class Enough(Exception):
        pass

    def rollouts(engine, problems, seed, **more):
        given.update(more, in_flight=engine.concurrency)
        raise Enough

    monkeypatch.setattr(ppo, "Rollouts", rollouts)
    with pytest.raises(Enough):
        ppo.train(settings(initial, in_flight=7, deadline=9.5), tmp_path / "p")
    assert (given["in_flight"], given["deadline"]) == (7, 9.5)


@pytest.mark.some(1)
@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_that_samples_ahead_goes_on_after_a_stop(initial, tmp_path, monkeypatch, rank):
    chosen = settings(initial, staleness=1, lora_rank=rank, save_steps=1, correction="token")

    def lags(folder):
        transcripts = list(read_transcripts(folder / "transcripts.jsonl"))
        for transcript in transcripts:
            check_transcript(transcript)
        lags = [(t.trained_version, t.trained_version - t.weight_version) for t in transcripts]
        return dict(lags), len(lags), [t.problem.id for t in transcripts]

    ppo.train(chosen, tmp_path / "whole")
    whole, count, problems = lags(tmp_path / "whole")
    assert whole == {0: 0, 1: 1, 2: 1, 3: 1} and count == 4 * 8
    found = records(tmp_path / "whole")
    assert [record["rollout/weight_lag"] for record in found] == [0.0, 1.0, 1.0, 1.0]
    assert found[0]["correction/weight"] == pytest.approx(1.0, abs=1e-4)
    learn = ppo.Learner.learn

    def stopping(self, batch, step):
        if step == 2:
            raise KeyboardInterrupt
        return learn(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(ppo.Learner, "learn", stopping)
        with pytest.raises(KeyboardInterrupt):
            ppo.train(chosen, tmp_path / "cut")
    ppo.train(chosen, tmp_path / "cut", resume=True)
    # The batch of step 2 was kept; the batch after it had not been finished.
    cut, again, same = lags(tmp_path / "cut")
    assert cut[2] == 1 and (again, same) == (count, problems)
    assert [record["step"] for record in records(tmp_path / "cut")] == [1, 2, 3, 4]
