"""Fine-tuning with a budget of tokens: the loss, gradient and figures of padded rows."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig

from agents.base import fine_tuning
from agents.base.fine_tuning import BudgetSFTTrainer
from agents.models.tiny import make_model, make_tokenizer

LENGTHS = [60, 7, 12, 31, 5, 22, 9, 40]
TOKENS = 50

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def trainer_of(tmp_path):
    def make(tokens=0, **config):
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randint(5, 250, (n,), generator=generator).tolist() for n in LENGTHS]
        labels = [[-100] * 3 + row[3:] for row in rows]
        return BudgetSFTTrainer(
            model=make_model(0, num_hidden_layers=2)[0],
            args=SFTConfig(
                output_dir=str(tmp_path),
                per_device_train_batch_size=len(rows),
                train_sampling_strategy="sequential",
                max_length=None,
                bf16=False,
                use_cpu=True,
                gradient_checkpointing=False,
                dataloader_pin_memory=False,
                report_to="none",
                **config,
            ),
            train_dataset=Dataset.from_dict({"input_ids": rows, "labels": labels}),
            processing_class=make_tokenizer(),
            tokens=tokens,
        )

    return make


def learned(trainer):
    """Loss, gradient and figures of a step."""
    [batch] = trainer.get_train_dataloader()
    trainer.model.train()
    count = (batch["labels"][:, 1:] != -100).sum()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    return loss.item(), gradient, dict(trainer._metrics["train"])


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_loss_gradient_and_figures_are_those_of_padded_rows(loss_type, trainer_of, monkeypatch):
    sizes = []
    original = fine_tuning.pack
    monkeypatch.setattr(
        fine_tuning, "pack", lambda *a: sizes.append(int(a[1].sum())) or original(*a)
    )
    loss, gradient, figures = learned(trainer_of(TOKENS, loss_type=loss_type))
    other_loss, other, other_figures = learned(trainer_of(loss_type=loss_type))
    assert loss == pytest.approx(other_loss, rel=1e-5)
    assert other.norm() > 0 and (gradient - other).norm() / other.norm() < 1e-4
    assert figures.keys() == other_figures.keys()
    for name, values in figures.items():
        assert values == pytest.approx(other_figures[name], rel=1e-4)
    assert figures["num_tokens"] == [sum(LENGTHS)]
    # The longest trace exceeds the budget and has a pass of its own.
    assert sum(sizes) == sum(LENGTHS) and sorted(sizes)[-1] == 60 and sorted(sizes)[-2] <= TOKENS


def test_a_trace_is_trained_on_without_its_neighbours(trainer_of):
    """Another first trace in a pass changes no log-prob of the others."""
    trainer = trainer_of(TOKENS)
    [batch] = trainer.get_train_dataloader()
    passes, _ = trainer._divided(batch)
    several = [(p, row) for p in passes for row in range(len(p["input_ids"]))]
    part, row = next((p, r) for p, r in several if (p["position_ids"][r] == 0).sum() > 1)
    second = int((part["position_ids"][row] == 0).nonzero()[1])
    changed = part["input_ids"].clone()
    changed[row, :second] = 7
    with torch.no_grad():
        one, other = (
            trainer.model(
                input_ids=ids,
                position_ids=part["position_ids"],
                shift_labels=part["shift_labels"],
                fused_lm_head=True,
            ).log_probs[row]
            for ids in (part["input_ids"], changed)
        )
    assert (one[:second] != other[:second]).any()
    torch.testing.assert_close(one[second:], other[second:])
