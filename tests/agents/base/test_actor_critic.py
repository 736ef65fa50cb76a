"""Actor, critic and reference: adapters, dropout, and checkpoints for resuming."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from helpers.ppo_batches import ROWS, learner, table
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from agents import ppo
from agents.base.minibatch import Batch
from agents.base.saving import Saving
from agents.base.settings import SettingsError
from agents.models.tiny import make_checkpoint, make_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("initial"), seed=1))


def test_the_actor_has_no_dropout_because_the_engine_has_none(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    made = learner(tmp_path)
    drops = [m for m in made.actor.modules() if isinstance(m, torch.nn.Dropout)]
    assert drops and all(drop.p == 0 for drop in drops)


def test_adapters_are_trained_and_the_reference_is_the_model_without(initial):
    settings = ppo.Settings(
        model=initial,
        mini_batch=4,
        micro_batch=2,
        critic_warmup=0,
        learning_rate=1e-2,
        critic_learning_rate=1e-2,
        lora_rank=4,
        kl=0.1,
        gradient_checkpointing=True,
    )
    with warnings.catch_warnings():
        # peft calls another deprecated name.
        warnings.filterwarnings("error", "`gradient_checkpointing_enable`", FutureWarning)
        made = ppo.Learner(settings, AutoModelForCausalLM.from_pretrained(initial))
    assert any(getattr(m, "gradient_checkpointing", False) for m in made.actor.modules())
    trained = [n for n, p in made.critic.named_parameters() if p.requires_grad]
    assert all("lora_" in name or name.startswith("head.") for name in trained)
    before = {n: p.detach().clone() for n, p in made.actor.named_parameters()}
    batch = Batch.of(table(ROWS))
    assert made.learn(batch, 0)["kl"] == pytest.approx(0.0, abs=1e-6)
    assert made.learn(batch, 1)["kl"] > 1e-4
    for name, p in made.actor.named_parameters():
        assert torch.equal(p, before[name]) != ("lora_" in name)


def test_a_checkpoint_restores_weights_and_optimizers_and_replaces_the_older_one(initial, tmp_path):
    batch = Batch.of(table(ROWS))
    made = learner(initial)
    made.learn(batch, 0)
    saving = Saving(tmp_path)
    made.save(saving, 1)
    made.learn(batch, 1)
    made.save(saving, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    sizes = json.loads((tmp_path / "checkpoint-2" / "files.json").read_text())
    assert "trainer_state.json" in sizes and "model.safetensors" in sizes
    other = learner(initial)
    assert not torch.equal(other.values(batch), made.values(batch))
    assert other.load(tmp_path / "checkpoint-2") == 2
    assert torch.equal(other.values(batch), made.values(batch))
    assert torch.equal(other.logps(batch), made.logps(batch))
    (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(SettingsError, match="checkpoint-2: it can't be loaded"):
        other.load(tmp_path / "checkpoint-2")


def test_an_optimizer_without_a_step_has_none_after_a_checkpoint(initial, tmp_path, monkeypatch):
    """With shards, saving gives it the state after a step without gradients.

    An actor has made no step in the warm-up of its critic.
    """
    made = learner(initial)
    made.critic_optimizer.state[torch.zeros(1)] = {"step": torch.tensor(7.0)}

    def initialised(folder):
        for optimizer in (made.actor_optimizer, made.critic_optimizer):
            if not optimizer.state:
                optimizer.state[torch.zeros(1)] = {"step": torch.tensor(1.0)}

    def steps():
        return [
            [each["step"].item() for each in optimizer.state.values()]
            for optimizer in (made.actor_optimizer, made.critic_optimizer)
        ]

    monkeypatch.setattr(made.accelerator, "save_state", initialised)
    monkeypatch.setattr(made.accelerator, "load_state", initialised)
    made.save(Saving(tmp_path), 3)
    assert steps() == [[], [7.0]]
    assert made.load(tmp_path / "checkpoint-3") == 3
    assert steps() == [[], [7.0]]
