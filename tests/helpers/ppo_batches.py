"""Episodes for tests of PPO's updates, and the results of an update.

In two processes, each process trains on its half of the episodes, and the first writes the results:
torchrun --nproc-per-node 2 tests/helpers/ppo_batches.py CHECKPOINT FILE
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM

from agents.base.minibatch import Batch
from agents.base.sharding import leave_process_group, processes
from agents.ppo import Learner, Settings

FOREIGN = 240
"""Token ids from this number on stand for prompts and the interpreter's text."""


def row(seed, reward, spans=("model", "env", "model"), size=5):
    """An episode of random tokens.

    Args:
        seed: The seed of the tokens.
        reward: The reward; `None`: the episode has failed.
        spans: The authors of the spans after the prompt.
        size: The largest number of tokens of a span.
    """
    generator = torch.Generator().manual_seed(seed)

    def ids(author):
        low, high = (1, FOREIGN) if author == "model" else (FOREIGN, FOREIGN + 16)
        length = int(torch.randint(1, size + 1, (1,), generator=generator))
        return torch.randint(low, high, (length,), generator=generator).tolist()

    prompt, completion, mask = ids("prompt"), [], []
    for author in spans if reward is not None else ():
        written = ids(author)
        completion += written
        mask += [int(author == "model")] * len(written)
    if reward is None:
        completion, mask = [FOREIGN], [0]
    noise = torch.rand(len(mask), generator=generator).tolist()
    return {
        "prompt_ids": prompt,
        "completion_ids": completion,
        "env_mask": mask,
        # Near a random model's log-probs of 273 tokens: the ratio is near 1 and reaches its clips.
        "logprobs": [
            -5.6 + 0.8 * (x - 0.5) if m else 0.0 for x, m in zip(noise, mask, strict=True)
        ],
        "transcript": SimpleNamespace(reward=reward),
    }


ROWS = [
    row(0, 1.0),
    row(1, -1.0, ("model",)),
    row(2, -1.0, ("model", "env")),  # a budget can end an episode after the interpreter's text
    row(3, 1.0, ("model", "env", "model", "env", "model"), size=9),
]


def table(rows):
    """The rows in the form of `training_rows`."""
    return {key: [episode[key] for episode in rows] for key in rows[0]}


def settings(**overrides):
    values = {
        "mini_batch": 4,
        "micro_batch": 4,
        "critic_warmup": 0,
        "learning_rate": 1.0,
        "critic_learning_rate": 1.0,
        "max_grad_norm": 1e9,
        "gamma": 0.97,
        "lam": 0.9,
        **overrides,
    }
    return Settings(**values)


def learner(checkpoint, **overrides):
    """A learner whose weight changes equal the gradients, and whose critic is not zero."""
    chosen = settings(model=str(checkpoint), **overrides)
    made = Learner(chosen, AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32))
    head = made.accelerator.unwrap_model(made.critic).head
    with torch.no_grad():
        head.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(5))
    made.actor_optimizer = torch.optim.SGD(made.actor.parameters(), lr=1.0)
    made.critic_optimizer = torch.optim.SGD(made.critic.parameters(), lr=1.0)
    return made


def weights(made):
    """The weights of the actor and of the critic, each as one flat tensor."""
    return [
        torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (made.actor, made.critic)
    ]


def changes(checkpoint, rows, prepare=lambda made: None, step=0, **overrides):
    """The weight changes of actor and critic in one step, and the step's figures.

    Args:
        checkpoint: The model's folder.
        rows: The episodes of the step.
        prepare: A function that changes the learner before the step.
        step: The number of the step.
        **overrides: Settings of PPO.
    """
    made = learner(checkpoint, **overrides)
    prepare(made)
    before = weights(made)
    figures = made.learn(Batch.of(table(rows)), step)
    return [after - old for after, old in zip(weights(made), before, strict=True)], figures


def main(checkpoint: str, file: str) -> None:
    rank = processes().process_index
    rows = ROWS[2 * rank : 2 * rank + 2]
    results = {
        name: changes(checkpoint, rows, micro_batch=size)
        for name, size in (("one pass", 2), ("two passes", 1))
    }
    results["planned passes"] = changes(checkpoint, rows, tokens=30)
    results["mean of episodes"] = changes(checkpoint, rows, tokens=30, loss="grpo")
    if rank == 0:
        torch.save(results, file)
    leave_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
