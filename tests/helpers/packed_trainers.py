"""Trainers of GRPO with a small random model and given episodes of very different lengths."""

from __future__ import annotations

import random

import torch
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from agents.models.tiny import make_tokenizer
from retool_env.integrations.trl import EngineGRPOTrainer, problem_dataset
from retool_env.problems import Problem, ProblemList

GROUP, ROWS = 4, 8
PROBLEMS = ProblemList(Problem(str(i), "?", "1") for i in range(ROWS // GROUP))
TOKENIZER = make_tokenizer()
SIZE = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": TOKENIZER.pad_token_id,
    "eos_token_id": TOKENIZER.eos_token_id,
    "bos_token_id": None,
}


def make_model(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def episodes(seed=0):
    """The rows of a `rollout_func`: one token to dozens, with results of programs in between."""
    chance = random.Random(seed)
    found = {key: [] for key in ("prompt_ids", "completion_ids", "logprobs", "env_mask", "reward")}
    for row in range(ROWS):
        size = [1, 3, 40, 7, 22, 2, 31, 12][row]
        ids = [chance.randrange(len(TOKENIZER) - 30) for _ in range(size)]
        found["prompt_ids"].append([5 + row // GROUP] * (1 + 8 * (row // GROUP)))
        found["completion_ids"].append(ids)
        found["env_mask"].append([int(i % 9 < 6) for i in range(size)])
        found["logprobs"].append([-4.0 + chance.gauss(0, 0.5) for _ in range(size)])
        found["reward"].append(chance.choice([-1.0, 0.5, 1.0]))
    return found


def make_trainer(
    checkpoint,
    folder,
    packed=True,
    shared=True,
    config=None,
    peft=None,
    kind=EngineGRPOTrainer,
    tokens=0,
    **settings,
):
    """A trainer that gets `episodes` as rollouts.

    Args:
        checkpoint: The model's folder.
        folder: The trainer's folder.
        packed: Whether the rows are packed.
        shared: Whether episodes share prompts.
        config: The configuration of a random model, instead of the checkpoint.
        peft: The configuration of an adapter.
        kind: The class of the trainer.
        tokens: The budget of a pass in tokens.
        **settings: Fields of `GRPOConfig`.
    """
    model = make_model(config) if config else AutoModelForCausalLM.from_pretrained(checkpoint)
    own = {"packed": packed, "shared_prompts": shared, "tokens": tokens}
    torch.manual_seed(1)
    trainer = kind(
        model=model,
        reward_funcs=lambda reward, **_: reward,
        args=GRPOConfig(
            output_dir=str(folder),
            **{
                "per_device_train_batch_size": ROWS,
                "num_generations": GROUP,
                "max_completion_length": 40,
                "max_steps": 1,
                "report_to": "none",
                "bf16": False,
                "use_cpu": True,
                "disable_tqdm": True,
                "gradient_checkpointing": False,
                "dataloader_pin_memory": False,
                "save_strategy": "no",
                **settings,
            },
        ),
        train_dataset=problem_dataset(PROBLEMS, len(PROBLEMS), seed=0),
        processing_class=TOKENIZER,
        peft_config=peft,
        rollout_func=lambda prompts, trainer: episodes(),
        **({} if kind is GRPOTrainer else own),
    )
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    return trainer


def batch_of(trainer):
    return trainer._generate_and_score_completions(
        [{"prompt": str(row // GROUP)} for row in range(ROWS)]
    )


def logps_of(trainer, batch):
    return trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
        batch["completion_ids"].shape[1],
        compute_entropy=True,
    )[:2]


def moved(trainer, scale=0.03):
    """Away from the reference, and from an adapter that changes nothing; always the same way."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return trainer


def outcome(trainer, batch, old=None):
    """Loss, gradient and logged entropy."""
    if old is not None:
        batch = {**batch, "old_per_token_logps": old, "sampling_per_token_logps": old}
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    grads = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(grads), trainer._metrics["train"]["entropy"][-1]


LOSSES = [
    {"loss_type": loss, "importance_sampling_level": level}
    for loss in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo", "cispo", "vespo")
    for level in ("token", "sequence")
    if (loss, level) != ("vespo", "sequence")
]
OTHERS = [
    {"delta": 1.5},
    {"top_entropy_quantile": 0.4},
    {"off_policy_mask_threshold": 0.02},
    {"beta": 0.5},
    {"beta": 0.5, "use_bias_correction_kl": True},
    {"entropy_coef": 0.1},
    {"temperature": 0.7},
    {"pad_to_multiple_of": 64},
    {"mask_truncated_completions": True},
    {"gradient_checkpointing": True},
]
