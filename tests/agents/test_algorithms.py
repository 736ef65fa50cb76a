"""Every algorithm without a critic: its loss, and the invariants of all, through its trainer."""

from __future__ import annotations

import dataclasses
import importlib
import json
import random
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import references
from helpers.small_runs import make_small
from helpers.tokenised import episode
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

from agents import __main__ as cli
from agents import grpo
from agents.base import selection, session
from agents.base.presets import PRESETS, load_settings
from agents.base.records import read_records
from agents.base.registry import load_algorithm
from agents.base.settings import SettingsError, describe
from agents.models.tiny import make_tokenizer
from retool_env.integrations.trl import EngineRollouts, training_rows
from retool_env.problems import Problem, ProblemList
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import (
    StopReason,
    check_transcript,
    read_transcripts,
)

CRITIC_FREE = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp")
GROUP, BUDGET = 4, 36
every = pytest.mark.parametrize("name", CRITIC_FREE)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    """A checkpoint that its seed alone makes, and smaller than the usual one."""
    return make_small(tmp_path_factory.mktemp("initial"), seed=3, num_hidden_layers=2)


def settings_of(name, initial, **overrides):
    module = importlib.import_module(f"agents.{name}")
    values = {
        "model": initial,
        "name": name,
        "steps": 1,
        "prompts": 4,
        "rollouts": GROUP,
        "micro_batch": 4 * GROUP,
        "env": {"interpreter": False, "max_tokens": BUDGET},
        "overlong": 0.2,
        "resample": 0,
        **overrides,
    }
    known = {field.name for field in dataclasses.fields(module.Settings)}
    given = [f"{k}={json.dumps(v)}" for k, v in values.items() if k in known]
    return module, load_settings(module.Settings, name, "tiny", given)


@pytest.fixture
def trainer_of(initial, tmp_path, monkeypatch):
    """Makes the trainer that an algorithm's file makes, to be fed with given transcripts."""

    def make(name, transcripts, perturbed=True, **overrides):
        made = []

        def keep(self, **_):
            made.append(self)
            raise KeyboardInterrupt

        module, settings = settings_of(name, initial, **overrides)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(grpo.EngineGRPOTrainer, "train", keep)
            module.train(settings, tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}")
        [trainer] = made
        trainer.own_rollouts = trainer.rollout_func
        trainer.rollout_func = lambda prompts, trainer: training_rows(
            transcripts, trainer.eos_token_ids
        )
        trainer.model.train()
        if perturbed:
            perturb(trainer.model)
        return trainer

    return make


def perturb(model):
    """Away from the initial model, always the same way."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter += 0.02 * noise.to(parameter.dtype)


def batch_of(trainer):
    rows = [{"prompt": row["prompt"]} for row in trainer.train_dataset for _ in range(GROUP)]
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions(rows)


def loss_and_gradient(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), gradient_of(trainer.model)


def gradient_of(model):
    return torch.cat([p.grad.flatten().double() for p in model.parameters()])


def assert_same_direction_and_length(a, b, tolerance=1e-4):
    assert a.norm() > 0
    assert (a - b).norm() / b.norm() < tolerance


def with_logprobs(transcripts, model, noise, seed=0):
    """Log-probs that the model gives, and normal noise on them."""
    chance = random.Random(seed)
    result = []
    for transcript in transcripts:
        with torch.no_grad():
            own = iter(references.logps_of(model, transcript).tolist())
        spans = [
            span
            if span.author != "model"
            else dataclasses.replace(
                span,
                logprobs=tuple(
                    min(next(own) + chance.gauss(0, noise), 0.0) for _ in span.token_ids
                ),
            )
            for span in transcript.spans
        ]
        result.append(dataclasses.replace(transcript, spans=tuple(spans)))
        check_transcript(result[-1])
    return result


@pytest.fixture(scope="module")
def model64(initial):
    """The model of `trainer_of`, in float64."""
    model = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float32)
    perturb(model)
    return model.double()


@pytest.fixture(scope="module")
def groups(model64):
    """Four groups: mixed, with failures, all equal; some tokens are far enough to be clipped."""
    rewards = [
        [1.0, -1.0, -1.0, 1.0],
        [1.0, None, -1.0, -0.6],
        [-0.6, -0.6, -0.6, -0.6],
        [-1.0, 1.0, None, None],
    ]
    made = [
        [
            episode(4 * g + i, reward, 1 + (g + i) % 2, 3 * ((i + g) % 4), failed=reward is None)
            for i, reward in enumerate(group)
        ]
        for g, group in enumerate(rewards)
    ]
    return [with_logprobs(group, model64, 0.3, seed) for seed, group in enumerate(made)]


def flat(groups):
    return [transcript for group in groups for transcript in group]


@pytest.fixture
def expected(model64, groups, initial):
    def loss_and_gradient(name, kl=0.0, correction=None, groups=groups, far=0.0):
        first = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float64) if kl else None
        model64.zero_grad()
        loss = references.loss(name, model64, groups, BUDGET, first, kl, correction, far)
        loss.backward()
        return loss.detach(), gradient_of(model64)

    return loss_and_gradient


@every
@pytest.mark.parametrize(("kl", "tokens"), [(0.0, 0), (0.3, 0), (0.3, 100)])
def test_the_loss_is_the_references_failed_episodes_as_if_absent(
    name, kl, tokens, groups, trainer_of, expected
):
    trainer = trainer_of(name, flat(groups), kl=kl, tokens=tokens, correction="ratio")
    loss, gradient = loss_and_gradient(trainer, batch_of(trainer))
    other_loss, other_gradient = expected(name, kl)
    assert loss.item() == pytest.approx(other_loss.item(), rel=1e-4, abs=1e-6)
    assert_same_direction_and_length(gradient, other_gradient)


@every
@pytest.mark.parametrize(("correction", "tokens"), [("token", 0), ("geometric", 100)])
def test_a_correction_weighs_the_loss(name, correction, tokens, groups, trainer_of, expected):
    trainer = trainer_of(
        name,
        flat(groups),
        kl=0.3,
        tokens=tokens,
        correction=correction,
        correction_cap=references.CAP,
        correction_low=references.BOUNDS[0],
        correction_high=references.BOUNDS[1],
    )
    loss, gradient = loss_and_gradient(trainer, batch_of(trainer))
    other_loss, other_gradient = expected(name, 0.3, correction)
    assert loss.item() == pytest.approx(other_loss.item(), rel=1e-4, abs=1e-6)
    assert_same_direction_and_length(gradient, other_gradient)
    [weight] = trainer._metrics["train"]["correction/weight"]
    [effective] = trainer._metrics["train"]["correction/effective_tokens"]
    [rejected] = trainer._metrics["train"]["correction/rejected"]
    if correction == "token":
        assert 0.8 < weight < references.CAP and 0.5 < effective < 1 and rejected == 0
    else:
        assert 0 < rejected < 1 and 0 < weight < 1 and effective == pytest.approx(weight)


def test_gspos_clips_cut_no_difference_between_engine_and_trainer(groups, model64, trainer_of):
    transcripts = with_logprobs(flat(groups), model64, 0.01)
    shares, gradients = {}, {}
    for more in ({}, {"correction": "ratio"}):
        trainer = trainer_of("gspo", transcripts, **more)
        gradients[len(more)] = loss_and_gradient(trainer, batch_of(trainer))[1]
        shares[len(more)] = trainer._metrics["train"]["clip_ratio/region_mean"][-1]
    assert shares[0] == 0.0 and shares[1] > 0.2
    assert gradients[1].norm() < 0.9 * gradients[0].norm()


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_a_correction_takes_no_pass_more_unless_several_steps_share_a_batch(
    name, groups, trainer_of
):
    for steps, passes in ((1, 0), (2, 1)):
        trainer = trainer_of(name, flat(groups), correction="token", trl={"num_iterations": steps})
        made = []
        original = trainer._get_per_token_logps_and_entropies

        def count(*args, original=original, made=made, **kwargs):
            made.append(1)
            return original(*args, **kwargs)

        trainer._get_per_token_logps_and_entropies = count
        batch = batch_of(trainer)
        assert len(made) == passes and ("old_per_token_logps" in batch) == bool(passes)
        assert loss_and_gradient(trainer, batch)[1].norm() > 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"correction": "tokens"}, "did you mean 'token'"),
        ({"correction_cap": 0.5}, "at least 1"),
        ({"correction_low": 1.0}, "below 1"),
        ({"correction_high": 0.9}, "above 1"),
        ({"resample_by": "rewards"}, "did you mean 'reward'"),
    ],
)
def test_names_that_a_setting_does_not_have_are_refused(
    trainer_of, groups, initial, setting, message
):
    with pytest.raises(SettingsError, match=message):
        module, settings = settings_of("grpo", initial, **setting)
        module.train(settings, None)


@every
def test_episodes_that_a_deadline_cut_are_as_if_absent(name, groups, trainer_of):
    cut = [
        dataclasses.replace(t, reward=-1.0, correct=False, stop_reason=StopReason.CANCELLED)
        if t.reward is None
        else t
        for t in flat(groups)
    ]
    found = []
    for transcripts in (flat(groups), cut):
        trainer = trainer_of(name, transcripts, kl=0.3)
        batch = batch_of(trainer)
        found.append((batch["advantages"], *loss_and_gradient(trainer, batch)))
    assert found[0][0].any()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def own_tokens(batch):
    return (batch["completion_mask"] * batch["tool_mask"]).bool()


FAR = (-1e4, -94.0, 94.0, 1e4)


@every
def test_log_probs_outside_the_mask_reach_nothing_however_far_apart(name, groups, trainer_of):
    trainer = trainer_of(name, flat(groups), kl=0.3)
    batch = batch_of(trainer)
    clean = loss_and_gradient(trainer, batch)
    assert clean[1].norm() > 0
    for far in FAR:
        moved = dict(batch)
        for key in ("ref_per_token_logps", "old_per_token_logps", "sampling_per_token_logps"):
            if key in batch:
                moved[key] = torch.where(own_tokens(batch), batch[key], far)
        found = loss_and_gradient(trainer, moved)
        assert torch.equal(found[0], clean[0]) and torch.equal(found[1], clean[1])


@every
def test_a_reference_that_is_far_away_gives_a_finite_loss_and_gradient(
    name, groups, trainer_of, expected
):
    trainer = trainer_of(name, flat(groups), kl=0.3, correction="ratio")
    batch = batch_of(trainer)
    first = own_tokens(batch).int().argmax(1)
    for far in FAR:
        reference = batch["ref_per_token_logps"].clone()
        reference[torch.arange(len(first)), first] += far
        loss, gradient = loss_and_gradient(trainer, {**batch, "ref_per_token_logps": reference})
        other_loss, other_gradient = expected(name, 0.3, far=far)
        assert loss.item() == pytest.approx(other_loss.item(), rel=1e-4)
        assert_same_direction_and_length(gradient, other_gradient, 1e-3)


@every
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_tokens_that_the_engine_thought_impossible_give_a_finite_loss_and_gradient(
    name, kl, groups, trainer_of, expected
):
    def once_far(transcript):
        spans = list(transcript.spans)
        at = next(i for i, span in enumerate(spans) if span.author == "model")
        spans[at] = dataclasses.replace(spans[at], logprobs=(-94.0, *spans[at].logprobs[1:]))
        return dataclasses.replace(transcript, spans=tuple(spans))

    moved = [[once_far(transcript) for transcript in group] for group in groups]
    trainer = trainer_of(name, flat(moved), kl=kl, correction="ratio")
    loss, gradient = loss_and_gradient(trainer, batch_of(trainer))
    other_loss, other_gradient = expected(name, kl, groups=moved)
    assert loss.item() == pytest.approx(other_loss.item(), rel=1e-3)
    assert_same_direction_and_length(gradient, other_gradient, 1e-3)
    figures = {name: each[-1] for name, each in trainer._metrics["train"].items()}
    assert all(np.isfinite(each) for key, each in figures.items() if "offpolicy" in key)


def test_the_lengths_reach_into_the_overlong_punishment(groups):
    lengths = [len(t.completion_ids) for t in flat(groups)]
    assert min(lengths) < 0.8 * BUDGET < max(lengths)


def test_grpos_advantages_and_loss_are_trls_own(groups, trainer_of):
    transcripts = flat(groups)
    ours = trainer_of("grpo", transcripts)
    theirs = trainer_of("grpo", transcripts)
    theirs.advantages = None
    ours._logs["advantages"] = deque(maxlen=100)  # which does not drop TRL's by itself
    batch, other = batch_of(ours), batch_of(theirs)
    assert torch.equal(batch["advantages"], other["advantages"])
    assert torch.equal(loss_and_gradient(ours, batch)[1], loss_and_gradient(theirs, other)[1])
    assert list(ours._logs["advantages"]) == batch["advantages"].tolist()


def test_each_process_takes_its_own_of_the_advantages_of_all(trainer_of, groups, monkeypatch):
    trainer = trainer_of("grpo", flat(groups))
    whole = batch_of(trainer)["advantages"]
    second = SimpleNamespace(process_index=1)
    monkeypatch.setattr(trainer, "accelerator", second)
    rows = [{"transcript": transcript} for transcript in flat(groups)[2 * GROUP :]]
    part = trainer.advantages_of(rows, torch.ones(len(rows), 9))
    assert torch.equal(part, whole[2 * GROUP :])


@every
def test_interpreter_tokens_logits_move_neither_loss_nor_gradient(name, groups, trainer_of):
    trainer = trainer_of(name, flat(groups), entropy=0.01)
    batch = batch_of(trainer)
    foreign = torch.ones(batch["completion_ids"].shape)
    for row, transcript in zip(foreign, flat(groups), strict=True):
        if transcript.reward is not None:
            row[: len(transcript.loss_mask)] -= torch.tensor(transcript.loss_mask)
    original = trainer._get_per_token_logps_and_entropies

    def under(noise):
        def perturbed(*args, **kwargs):
            logps, entropy, aux = original(*args, **kwargs)
            return (
                logps + noise * foreign * torch.rand_like(logps),
                entropy + noise * foreign * torch.rand_like(logps),
                aux,
            )

        trainer._get_per_token_logps_and_entropies = perturbed
        return loss_and_gradient(trainer, batch)

    (loss, gradient), (other_loss, other_gradient) = under(0.0), under(5.0)
    assert gradient.abs().sum() > 0
    assert torch.equal(loss, other_loss) and torch.equal(gradient, other_gradient)


@every
def test_padding_does_not_change_the_gradient(name, groups, trainer_of):
    trainer = trainer_of(name, flat(groups))
    narrow = batch_of(trainer)
    trainer.pad_to_multiple_of = 128
    wide = batch_of(trainer)
    assert wide["completion_ids"].shape[1] > narrow["completion_ids"].shape[1]
    _, gradient = loss_and_gradient(trainer, narrow)
    _, other = loss_and_gradient(trainer, wide)
    assert_same_direction_and_length(other, gradient)


@every
def test_accumulated_micro_batches_are_one_batch(name, groups, trainer_of):
    """A step of gradient descent with rate 1: the change of the weights is the gradient."""

    def change(micro_batch):
        plain = {"optim": "sgd", "max_grad_norm": 0.0, "save_strategy": "no"}
        trainer = trainer_of(
            name, flat(groups), micro_batch=micro_batch, learning_rate=1.0, trl=plain, kl=0.1
        )
        before = [p.detach().clone() for p in trainer.model.parameters()]
        GRPOTrainer.train(trainer)
        after = trainer.model.parameters()
        return torch.cat([(a - b).flatten().double() for a, b in zip(after, before, strict=True)])

    assert_same_direction_and_length(change(GROUP), change(4 * GROUP), 1e-3)


@every
def test_equal_rewards_give_no_gradient(name, groups, trainer_of):
    same = [
        dataclasses.replace(t, reward=None if t.reward is None else (-0.6, 1.0, 0.1, -1.0)[g])
        for g, group in enumerate(groups)
        for t in group
    ]
    trainer = trainer_of(name, same, overlong=0.0)
    _, gradient = loss_and_gradient(trainer, batch_of(trainer))
    assert torch.all(gradient == 0)


@every
def test_the_terminal_reward_reaches_every_token_of_every_turn_and_no_other(
    name, groups, model64, trainer_of
):
    transcripts = with_logprobs(flat(groups), model64, 0.0)  # on-policy: nothing is clipped
    trainer = trainer_of(name, transcripts)
    batch = batch_of(trainer)
    original, kept = trainer._get_per_token_logps_and_entropies, []

    def keep(*args, **kwargs):
        result = original(*args, **kwargs)
        result[0].retain_grad()
        kept.append(result[0])
        return result

    trainer._get_per_token_logps_and_entropies = keep
    trainer.compute_loss(trainer.model, batch).backward()
    [logps] = kept
    several = 0
    for transcript, gradient, advantage in zip(
        transcripts, logps.grad, batch["advantages"], strict=True
    ):
        mask = torch.zeros(len(gradient))
        if transcript.reward is not None:
            mask[: len(transcript.loss_mask)] = torch.tensor(transcript.loss_mask).float()
        assert torch.all(gradient[mask == 0] == 0)
        assert torch.all(torch.sign(gradient[mask == 1]) == -torch.sign(advantage))
        several += bool(advantage) and sum(s.author == "model" for s in transcript.spans) > 1
    assert several > 4


def by_token(transcripts, numbers):
    """Advantages of tokens, NaN at tokens that the model did not write."""
    own = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(t.loss_mask) for t in transcripts], batch_first=True
    )
    return numbers(own.shape).masked_fill(own == 0, torch.nan)


@every
def test_one_advantage_a_token_is_the_episodes_where_all_are_equal(name, groups, trainer_of):
    """Advantages at the interpreter's tokens or behind the end reach neither loss nor gradient."""
    transcripts = flat(groups)
    trainer = trainer_of(name, transcripts, kl=0.3)
    batch = batch_of(trainer)
    clean, whole = loss_and_gradient(trainer, batch), batch["advantages"]
    given = []

    def spread(rewards, group, transcripts):
        given.append((rewards, group, transcripts))
        return by_token(transcripts, lambda shape: whole[:, None].expand(shape))

    trainer = trainer_of(name, transcripts, kl=0.3)
    trainer.advantages, trainer.normalise = spread, None
    batch = batch_of(trainer)
    [(rewards, group, seen)] = given
    assert rewards.shape == (len(transcripts),) and group == GROUP and seen == transcripts
    assert batch["advantages"].shape == batch["completion_ids"].shape
    assert torch.all(batch["advantages"][~own_tokens(batch)] == 0)
    loss, gradient = loss_and_gradient(trainer, batch)
    assert loss.item() == pytest.approx(clean[0].item(), rel=1e-5)
    assert_same_direction_and_length(gradient, clean[1], 1e-5)
    shown = torch.tensor(list(trainer._logs["advantages"])[-len(transcripts) :])
    trained = own_tokens(batch).any(1)
    torch.testing.assert_close(shown[trained], whole[trained])


@every
@pytest.mark.parametrize("correction", ["ratio", "token"])
def test_each_token_is_moved_by_its_own_advantage(name, correction, groups, model64, trainer_of):
    transcripts = with_logprobs(flat(groups), model64, 0.0)  # on-policy: nothing is clipped
    trainer = trainer_of(name, transcripts, correction=correction)
    generator = torch.Generator().manual_seed(0)
    trainer.advantages = lambda rewards, group, transcripts: by_token(
        transcripts, lambda shape: torch.randn(shape, generator=generator)
    )
    trainer.normalise = None
    batch = batch_of(trainer)
    original, kept = trainer._get_per_token_logps_and_entropies, []

    def keep(*args, **kwargs):
        result = original(*args, **kwargs)
        result[0].retain_grad()
        kept.append(result[0])
        return result

    trainer._get_per_token_logps_and_entropies = keep
    trainer.compute_loss(trainer.model, batch).backward()
    [logps] = kept
    own = own_tokens(batch)
    assert torch.all(logps.grad[~own] == 0)
    if name == "gspo":  # its ratio is the sequence's, so that each token has the mean
        means = batch["advantages"].sum(1)[own.any(1)]
        assert torch.all(torch.sign(logps.grad[own.any(1)].sum(1)) == -torch.sign(means))
    else:
        assert torch.all(torch.sign(logps.grad[own]) == -torch.sign(batch["advantages"][own]))


def test_what_normalises_episodes_is_not_given_tokens(groups, trainer_of):
    trainer = trainer_of("reinforce_pp", flat(groups))
    trainer.advantages = lambda rewards, group: torch.ones(len(rewards), 3)
    with pytest.raises(ValueError, match="one advantage an episode"):
        batch_of(trainer)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_episodes_with_a_void_turn_are_masked_but_count_in_their_group(name, groups, trainer_of):
    [one, *others] = groups[0]
    said = dataclasses.replace(one.spans[-1], text="hm", token_ids=one.spans[-1].token_ids)
    void = dataclasses.replace(one, spans=(*one.spans[:-1], said))
    transcripts = [void, *others, *flat(groups[1:])]
    plain, masking = trainer_of(name, transcripts), trainer_of(name, transcripts)
    masking.rollout_func = lambda prompts, trainer: training_rows(
        transcripts, trainer.eos_token_ids, mask_void=True
    )
    before, after = batch_of(plain), batch_of(masking)
    assert torch.equal(before["advantages"], after["advantages"]) and before["advantages"][0] != 0
    assert before["tool_mask"][0].sum() > 0
    assert not (after["tool_mask"] * after["completion_mask"])[0].any()
    assert torch.equal(before["tool_mask"][1:], after["tool_mask"][1:])
    absent = [dataclasses.replace(void, stop_reason=StopReason.INFRASTRUCTURE), *transcripts[1:]]
    without = trainer_of(name, absent)
    batch = batch_of(without)
    batch["advantages"] = after["advantages"]
    gradients = [loss_and_gradient(*each)[1] for each in ((masking, after), (without, batch))]
    assert_same_direction_and_length(*gradients, tolerance=1e-5)  # other rows lie beside each other


def test_the_settings_of_all_reach_the_trainer(initial, tmp_path, trainer_of):
    masking, plain = (trainer_of("grpo", [], mask_void=each).own_rollouts for each in (True, False))
    assert masking.mask_void and not plain.mask_void
    clean = trainer_of("grpo", [], spare=2.0).own_rollouts
    assert isinstance(clean, selection.CleanRollouts) and type(plain) is EngineRollouts
    assert trainer_of("grpo", []).args.delta is None
    assert trainer_of("grpo", [], ratio_cap=3.0).args.delta == 3.0
    assert trainer_of("grpo", [], entropy=0.02).entropy_coef == 0.02
    module, settings = settings_of("grpo", initial, ratio_cap=1.1)
    with pytest.raises(SettingsError, match="ratio_cap"):
        module.train(settings, tmp_path / "none")


def test_resample_on_correct_keeps_the_cleaner_of_the_right_ones():
    def erring(index, failures, reward=1.0):
        made = episode(index, reward, turns=3)
        places = [i for i, span in enumerate(made.spans) if span.execution][:failures]
        spans = [
            dataclasses.replace(span, execution=Execution(Outcome.RUNTIME_ERROR, "", "no"))
            if i in places
            else span
            for i, span in enumerate(made.spans)
        ]
        return dataclasses.replace(made, spans=tuple(spans))

    clean, dirty, dirtier = (erring(i, i) for i in (0, 1, 3))
    direct = episode(4, 1.0, turns=0)
    assert [selection.uncleanness(t) for t in (clean, dirty, direct, dirtier)] == pytest.approx(
        [0, 1 / 3, 0.5, 1]
    )
    wrong = [erring(10 + i, i % 4, -1.0) for i in range(4)]
    failed = episode(20, None, failed=True)
    group = [dirtier, wrong[0], clean, wrong[1], failed, direct, wrong[2], dirty, wrong[3]]
    kept = [selection.resample_on_correct(group, 4, np.random.default_rng(s)) for s in range(20)]
    assert all([t for t in four if t.correct] == [clean, dirty] for four in kept)
    drawn = [[t for t in four if not t.correct] for four in kept]
    assert all(len(two) == 2 and failed not in two for two in drawn)
    assert {t.problem.id for two in drawn for t in two} == {t.problem.id for t in wrong}
    assert (
        selection.resample_on_correct([*wrong, clean, failed], 3, np.random.default_rng(0))[-1]
        == clean
    )
    cut = dataclasses.replace(wrong[1], stop_reason=StopReason.CANCELLED)
    assert cut not in selection.resample_on_correct(
        [cut, wrong[0], clean, wrong[2]], 3, np.random.default_rng(0)
    )
    few = selection.resample_on_correct([failed, wrong[0], failed], 2, np.random.default_rng(0))
    assert len(few) == 2 and wrong[0] in few


# The bandit: one token is written, and its id's parity is the reward.

BANDIT = Rules(
    interpreter=False,
    max_tokens=1,
    prompt_template="{query}",
    reward=lambda transcript: 1.0 if transcript.completion_ids[0] % 2 == 0 else -1.0,
)
ARMS = ProblemList(Problem(str(i), f"Compute {i}", "1") for i in range(4))


def share_of_even(model):
    """The probability of the rewarded arms, over the prompts."""
    tokenizer = make_tokenizer()
    with torch.no_grad():
        rows = [model(torch.tensor([tokenizer.encode(p.question)])).logits[0, -1] for p in ARMS]
    return torch.softmax(torch.stack(rows), -1)[:, ::2].sum(-1).min().item()


@pytest.mark.slow
@every
def test_the_bandits_optimum_is_found_within_twenty_steps(name, initial, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "find_task", lambda env: (BANDIT, ARMS))
    module, settings = settings_of(
        name, initial, steps=20, rollouts=8, micro_batch=32, learning_rate=0.01, save_steps=100
    )
    assert share_of_even(AutoModelForCausalLM.from_pretrained(initial)) < 0.8
    trained = module.train(settings, tmp_path / name)
    assert share_of_even(AutoModelForCausalLM.from_pretrained(trained)) > 0.95


def test_spare_rollouts_are_sampled_and_fewer_are_trained_on(initial, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "find_task", lambda env: (BANDIT, ARMS))
    seen = []

    def choose(group, n, chance):
        seen.append((len(group), n))
        return group[-n:]

    monkeypatch.setattr(selection, "resample_on_correct", choose)
    module, settings = settings_of("grpo", initial, spare=1.5, steps=1)
    module.train(settings, tmp_path / "spare")
    assert seen == [(6, 4)] * 4
    assert len(list(read_transcripts(tmp_path / "spare" / "transcripts.jsonl"))) == 16


def test_dapo_samples_other_problems_where_a_group_is_unanimous(initial, tmp_path, monkeypatch):
    rules = dataclasses.replace(
        BANDIT, reward=lambda t: 1.0 if t.problem.id == "0" else BANDIT.reward(t)
    )
    monkeypatch.setattr(session, "find_task", lambda env: (rules, ARMS))
    module, settings = settings_of(
        "dapo", initial, rollouts=8, micro_batch=32, resample=5, resample_by="reward"
    )
    module.train(settings, tmp_path / "dapo")
    [metrics] = read_records(tmp_path / "dapo" / "metrics.jsonl")
    trained = list(read_transcripts(tmp_path / "dapo" / "transcripts.jsonl"))
    assert metrics["rollout/resampled"] >= 1 and len(trained) == 32
    assert "0" not in {t.problem.id for t in trained}


def difference(one, other):
    """Of two models' weights, in a row."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return torch.cat([(a - b).detach().flatten() for a, b in pairs])


def test_a_stopped_run_goes_on_to_the_same_curve(initial, tmp_path, monkeypatch):
    """DAPO must also find its resampled problems again."""
    monkeypatch.setattr(session, "find_task", lambda env: (BANDIT, ARMS))

    def run(folder, resume=False):
        module, settings = settings_of(
            "dapo",
            initial,
            steps=4,
            micro_batch=8,
            resample=2,
            save_steps=2,
            learning_rate=1e-3,
            resample_by="reward",
        )
        return AutoModelForCausalLM.from_pretrained(module.train(settings, folder, resume))

    whole = run(tmp_path / "whole")
    original = grpo.EngineRollouts.__call__

    def stopping(self, prompts, trainer):
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        return original(self, prompts, trainer)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(grpo.EngineRollouts, "__call__", stopping)
        run(tmp_path / "cut")
    resumed = run(tmp_path / "cut", resume=True)
    # As a whole: where a gradient is rounding alone, Adam makes a good part of a step of it.
    start = AutoModelForCausalLM.from_pretrained(initial)
    moved, apart = (difference(whole, other) for other in (start, resumed))
    assert apart.norm() < 0.02 * moved.norm()
    curves = [
        [
            (r["step"], r["reward"], r["rollout/resampled"])
            for r in read_records(tmp_path / x / "metrics.jsonl")
        ]
        for x in ("whole", "cut")
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 4


# A user's own algorithm.

OWN = """
from dataclasses import dataclass

from agents import __main__ as cli
from agents import grpo, rft, sft
from agents.base import selection
from agents.base.registry import algorithms, load_algorithm
from agents.base.records import read_records
from agents.base.settings import setting


@dataclass(frozen=True)
class Settings(grpo.Settings):
    name: str = setting("own", "the run's folder")
    taste: float = setting(0.5, "of one's own")


def train(settings, folder, resume=False):
    def advantages(rewards, group):
        return settings.taste * rewards

    return grpo.train(settings, folder, resume, advantages=advantages)
"""


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
@pytest.mark.parametrize("name", [*CRITIC_FREE, "rft"])
def test_every_preset_suits_every_algorithm_and_every_setting_is_described(name, preset):
    settings = load_algorithm(name).Settings
    loaded = load_settings(settings, name, preset, [])
    assert loaded.name == name and loaded.env["id"].startswith("ReTool-")
    assert not any(line.endswith(": ") for line in describe(settings).splitlines())


def test_ones_own_file_trains(initial, tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.setattr(session, "find_task", lambda env: (BANDIT, ARMS))
    values = {
        "model": initial,
        "steps": 1,
        "prompts": 2,
        "rollouts": 4,
        "micro_batch": 8,
        "taste": 2,
    }
    given = [f"{key}={value}" for key, value in values.items()]
    assert cli.main([str(tmp_path / "own.py"), "--runs", str(tmp_path), *given]) == 0
    assert (tmp_path / "own" / "checkpoint" / "config.json").is_file()
    assert cli.main([str(tmp_path / "own.py"), "--help"]) == 0
    assert "taste (float, 0.5): of one's own" in capsys.readouterr().out
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "own.py").write_text(OWN)
    assert load_algorithm("package.own").Settings().taste == 0.5
