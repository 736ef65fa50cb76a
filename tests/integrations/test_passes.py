"""Passes with a budget of tokens: loss, gradient and figures are those of one padded pass."""

from __future__ import annotations

import functools

import pytest
import torch
from helpers.packed_trainers import (
    LOSSES,
    ROWS,
    SIZE,
    batch_of,
    episodes,
    logps_of,
    make_model,
    make_trainer,
    moved,
)
from peft import LoraConfig
from transformers import BloomConfig, LlamaConfig

from retool_env.errors import SettingsError

TOKENS = 40
"""The longest episode has 41 tokens: it has a pass of its own."""

OTHERS = [
    {"off_policy_mask_threshold": 0.02},
    {"beta": 0.5, "loss_type": "grpo"},
    {"beta": 0.5, "entropy_coef": 0.1},
    {"mask_truncated_completions": True},
    {"gradient_checkpointing": True},
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    make_model(LlamaConfig(**SIZE)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def trainer_of(checkpoint, tmp_path):
    return functools.partial(make_trainer, checkpoint, tmp_path)


def learned(trainer, batch, old):
    """Loss, gradient, and the figures of the step."""
    batch = {**batch, "old_per_token_logps": old, "sampling_per_token_logps": old}
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradient = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    figures = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return loss.item(), torch.cat(gradient), figures


def assert_same(planned, padded, count=lambda passes: None):
    ours, theirs = batch_of(planned), batch_of(padded)
    with torch.no_grad():
        logps, _ = logps_of(padded, theirs)
    old = logps + 0.3 * torch.randn(logps.shape, generator=torch.Generator().manual_seed(3))
    loss, gradient, figures = learned(planned, ours, old)
    other_loss, other, other_figures = learned(padded, theirs, old)
    assert loss == pytest.approx(other_loss, rel=1e-4, abs=1e-6)
    assert other.norm() > 1e-4 and (gradient - other).norm() / other.norm() < 1e-4
    assert figures.keys() == other_figures.keys() - {"vespo/phi_seq_mean"}
    for name, value in figures.items():
        expected = pytest.approx(other_figures[name], rel=1e-4, abs=1e-6, nan_ok=True)
        assert value == expected, name
    return figures


@pytest.mark.parametrize("settings", [*LOSSES[::2], LOSSES[1], *OTHERS], ids=str)
def test_loss_gradient_and_figures_are_those_of_one_padded_pass(settings, trainer_of):
    epsilon = {"epsilon_high": 5.0} if settings.get("loss_type") == "cispo" else {}
    make = functools.partial(trainer_of, **settings, **epsilon)
    planned, padded = moved(make(tokens=TOKENS)), moved(make(packed=False))
    if "mask_truncated_completions" in settings:
        for trainer in (planned, padded):  # the ends of half of the rows
            trainer.eos_token_ids = [ids[-1] for ids in episodes()["completion_ids"][::2]]
    figures = assert_same(planned, padded)
    if settings == LOSSES[0]:
        assert figures["clip_ratio/region_mean"] > 0


def test_adapters_get_the_same_gradient(trainer_of):
    adapters = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0)
    make = functools.partial(trainer_of, peft=adapters, beta=0.5)
    assert_same(moved(make(tokens=TOKENS)), moved(make(packed=False)))


def test_a_pass_holds_no_more_tokens_than_its_budget_unless_one_episode_does(trainer_of):
    trainer = trainer_of(tokens=TOKENS)
    batch = batch_of(trainer)
    lengths = (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).tolist()
    parts, _, _ = trainer._divided(batch)
    totals = [
        ((part["prompt_mask"].sum(1) + part["completion_mask"].sum(1)).tolist()) for part in parts
    ]
    assert sorted(n for part in totals for n in part if n) == sorted(lengths)
    assert max(lengths) == 41 and [sum(part) for part in totals if 41 in part] == [41]
    assert all(sum(part) <= TOKENS for part in totals if 41 not in part)
    assert len(parts) == -(-sum(lengths) // TOKENS)


def test_the_references_log_probs_are_computed_within_the_budget(trainer_of, monkeypatch):
    trainer = trainer_of(tokens=TOKENS, beta=0.1)
    trainer.can_pack(trainer.model)
    sizes = []
    original = trainer._scored
    monkeypatch.setattr(
        trainer, "_scored", lambda *a: sizes.append(int(a[2].sum())) or original(*a)
    )
    found = batch_of(trainer)["ref_per_token_logps"]
    assert len(sizes) > 2 and sorted(sizes)[-2] <= TOKENS < max(sizes) == 41
    torch.testing.assert_close(found, batch_of(trainer_of(beta=0.1))["ref_per_token_logps"])
    assert found.any()


def test_each_transcript_gets_the_log_probs_of_its_own_tokens(trainer_of):
    trainer = trainer_of(tokens=TOKENS)
    kept = []
    trainer.after_passes = lambda inputs, logps: kept.append(logps)
    batch = batch_of(trainer)
    trainer.compute_loss(trainer.model, batch)
    with torch.no_grad():
        expected, _ = logps_of(trainer_of(packed=False), batch)
    [logps] = kept
    for row, size in enumerate(map(len, episodes()["completion_ids"])):
        torch.testing.assert_close(logps[row, :size], expected[row, :size], rtol=1e-4, atol=1e-4)


def test_a_step_of_training_moves_the_weights_as_padded_rows_do(trainer_of):
    def after(**more):
        plain = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1, "max_steps": 2}
        trainer = trainer_of(**plain, **more, beta=0.1, lr_scheduler_type="constant")
        trainer.train()
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    start = torch.cat([p.detach().flatten() for p in trainer_of().model.parameters()])
    one, other = after(tokens=TOKENS) - start, after(packed=False) - start
    assert other.norm() > 0 and (one - other).norm() / other.norm() < 1e-3


def test_two_micro_batches_of_several_passes_are_one_step(trainer_of):
    """The passes of the first micro batch must not end the accumulation."""
    half = {"per_device_train_batch_size": ROWS // 2, "gradient_accumulation_steps": 2}
    plain = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1, "loss_type": "grpo"}

    def after(**more):
        trainer = trainer_of(**half, **plain, **more, lr_scheduler_type="constant")
        trainer.train()
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    start = torch.cat([p.detach().flatten() for p in trainer_of().model.parameters()])
    one, other = after(tokens=TOKENS) - start, after(packed=False) - start
    assert other.norm() > 0 and (one - other).norm() / other.norm() < 1e-3


def test_a_model_whose_packed_episodes_see_each_other_is_refused(trainer_of):
    shape = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": SIZE["vocab_size"]}
    trainer = trainer_of(tokens=TOKENS, config=BloomConfig(**shape))
    with pytest.raises(SettingsError, match=f"tokens={TOKENS} needs packed rows.*set tokens=0"):
        trainer.compute_loss(trainer.model, batch_of(trainer))


def test_episodes_without_a_token_to_train_on_fill_passes_without_a_gradient(trainer_of):
    trainer = trainer_of(tokens=TOKENS)
    batch = batch_of(trainer)
    batch["tool_mask"] = torch.zeros_like(batch["tool_mask"])
    loss, gradient, _ = learned(trainer, batch, batch["sampling_per_token_logps"])
    assert loss == 0 and not gradient.any()
