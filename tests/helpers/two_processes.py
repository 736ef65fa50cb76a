"""Scenarios of GRPO in two processes, whose results are written as JSON.

torchrun --nproc-per-node 2 tests/helpers/two_processes.py CHECKPOINT FOLDER
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from agents.base.sharding import leave_process_group
from retool_env.episode import Generation
from retool_env.integrations.trl import (
    EngineGRPOTrainer,
    EngineRollouts,
    episode_reward,
    problem_dataset,
)
from retool_env.problems import Problem, ProblemList
from retool_env.rollout import RolloutEngine, ScriptedPolicy
from retool_env.rollout.transformers.policy import TransformersPolicy, load_policy
from retool_env.rollout.weight_deltas import DeltaFiles, MergedWeights
from retool_env.rollout.weights import Parts
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.training.exchange import Exchange
from retool_env.training.trained_weights import is_sharded, trained_adapter, trained_weights

GROUP, PROMPTS = 4, 4  # two groups a process
RULES = Rules(max_tokens=400, prompt_template="{query}\n", max_calls=None)
# The rewards differ among the episodes of an untrained model.
ANY = dataclasses.replace(
    RULES, max_tokens=60, reward=lambda transcript: float(len(transcript.completion_ids) % 2)
)
PROBLEMS = ProblemList(Problem(str(i), f"{i} * 7?", str(i * 7)) for i in range(12))


class Writer(ScriptedPolicy):
    """Makes some calls, then answers.

    Args:
        tokenizer: The tokenizer.
        calls: The number of calls.
        right: Which of the answers are right: `"half"`, `"all"` or `"none"`.
    """

    def __init__(self, tokenizer, calls, right="half"):
        super().__init__(lambda text: "", tokenizer)
        self.calls, self.right = calls, right

    async def act(self, token_ids, stop, budget, seed):
        text = self.tokenizer.decode(token_ids)
        if text.count("<interpreter>") < self.calls:
            turn = "<code>\nprint(7)\n</code>"
        else:
            wrong = {"half": seed % 2, "all": 0, "none": 1}[self.right]
            turn = f"<answer>{int(text.split(' * ')[0]) * 7 + wrong}</answer>"
        ids = tuple(self.tokenizer.encode(turn))
        return Generation(ids, (-0.7,) * len(ids), "tag")


class Box:
    """A sandbox that is slow, or fails."""

    def __init__(self, seconds=0.0, fails=False):
        self.seconds, self.fails = seconds, fails

    async def run_async(self, code, limits=None, **_):
        await asyncio.sleep(self.seconds)
        if self.fails:
            return Execution(Outcome.INFRASTRUCTURE, "", "gone")
        return Execution(Outcome.OK, "7\n")


class Broken(Writer):
    """Raises an error that no retry can repair."""

    async def act(self, token_ids, stop, budget, seed):
        raise MemoryError("no room")


def flat(model):
    """All weights of a model, as one flat tensor."""
    weights = dict(trained_weights(model))
    return torch.cat([weights[name].flatten().double() for name in sorted(weights)])


def run(
    checkpoint, folder, name, policy, box, steps=1, shared=False, full=False, tokens=0, **settings
):
    """Train, and return the observations of this process.

    Args:
        checkpoint: The model's folder.
        folder: The folder of all runs.
        name: The name of the run.
        policy: The policy; `None`: a model, with the rules `ANY`.
        box: The sandbox.
        steps: The number of steps.
        shared: Whether the policy samples from the trained model itself, not from a copy.
        full: Whether the disk is full.
        tokens: The budget of a pass in tokens.
        **settings: Settings of `EngineRollouts`.
    """
    rules = RULES if policy else ANY
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    trained_on = []

    def record(step, transcripts):
        if full:
            raise OSError("no space")
        trained_on.append(transcripts)

    trainer = EngineGRPOTrainer(
        model=model,
        reward_funcs=episode_reward,
        args=GRPOConfig(
            output_dir=str(folder / name),
            max_steps=steps,
            per_device_train_batch_size=GROUP,
            gradient_accumulation_steps=2,
            num_generations=GROUP,
            max_completion_length=400,
            learning_rate=1e-3,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            shuffle_dataset=False,
            disable_tqdm=True,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=problem_dataset(PROBLEMS, steps * PROMPTS, seed=0),
        processing_class=tokenizer,
        rollout_func=lambda *_: None,
        tokens=tokens,
    )
    if policy is None:
        # Not copy.deepcopy: TRL's `forward` of a copy would still run the original model.
        policy = TransformersPolicy(trainer.model, tokenizer) if shared else load_policy(checkpoint)
    trainer.rollout_func = EngineRollouts(
        RolloutEngine(policy, rules, box),
        PROBLEMS,
        on_rollouts=record,
        **settings,
    )
    error = None
    try:
        trainer.train()
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    finally:
        trainer.rollout_func.close()
    start = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    weights, before = flat(trainer.model), flat(start)
    served = None if policy.model is None else flat(policy.model)
    return {
        "error": error,
        "moved": not torch.equal(weights, before),
        "served_moved": served is not None and not torch.equal(served, before),
        "weights": [weights.sum().item(), weights.square().sum().item()],
        "problems": [[t.problem.id for t in batch] for batch in trained_on],
        "calls": [[len(t.calls) for t in batch] for batch in trained_on],
        "rewards": [[t.reward for t in batch] for batch in trained_on],
        "lags": [
            [
                t.trained_version - s.weight_version
                for t in batch
                for s in t.spans
                if s.author == "model" and s.weight_version is not None
            ]
            for batch in trained_on
        ],
        "logs": [log for log in trainer.state.log_history if "reward" in log],
    }


def deltas(model, checkpoint, folder):
    """Send three versions of a sharded model as deltas, each process its part.

    Returns:
        Whether a reader gets each version bit by bit, from deltas that are small.
    """
    rank, files, found, sizes = torch.distributed.get_rank(), DeltaFiles(folder / "sent"), [], []
    for version in range(3):
        parts = Parts(f"{version}-x", 2)
        files.write_part(parts, trained_weights(model, torch.bfloat16), checkpoint, rank)
        torch.distributed.barrier()
        if rank == 0:
            asyncio.run(files.write(parts.name, parts, checkpoint))
        torch.distributed.barrier()
        path = folder / "sent" / parts.name
        merged = MergedWeights(path)
        read, now = dict(merged), dict(trained_weights(model, torch.bfloat16))
        merged.check()
        found.append(all(torch.equal(tensor, now[name]) for name, tensor in read.items()))
        sizes.append([f.stat().st_size for f in path.glob(f"part-{rank:03}-*.safetensors")])
        with torch.no_grad():  # about one in a hundred elements changes in bfloat16
            for parameter in model.parameters():
                parameter.mul_(1 + 2**-15)
    return all(found) and 0 < max(map(sum, sizes[1:])) < sum(sizes[0]) / 4


def shards(checkpoint, folder):
    """Compare the weights of a model with adapters before and after FSDP2 has sharded it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    adapters = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["norm"])
    adapted = get_peft_model(model, adapters)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    before = dict(trained_weights(adapted))
    plain = get_peft_model(
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
    )
    adapter = {name: each.clone() for name, each in trained_adapter(plain).tensors}
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(adapted, mesh=mesh)
    after = dict(trained_weights(adapted))
    cast = dict(trained_weights(adapted, torch.bfloat16))
    sent = deltas(adapted, checkpoint, folder)
    fully_shard(plain, mesh=mesh)
    gathered = dict(trained_adapter(plain).tensors)
    return {
        "deltas": sent,
        "cast": all(torch.equal(cast[name], after[name].to(torch.bfloat16)) for name in after),
        "adapter": len(adapter) > 0
        and adapter.keys() == gathered.keys()
        and all(torch.equal(gathered[name], each) for name, each in adapter.items()),
        "sharded": is_sharded(adapted),
        "names": list(before) == list(after),
        "equal": all(torch.allclose(before[name], after[name], atol=1e-6) for name in before),
        "adapted": not torch.equal(
            before["model.layers.0.mlp.up_proj.weight"],
            model.model.layers[0].mlp.up_proj.base_layer.weight.full_tensor(),
        ),
    }


def exchanged(accelerator):
    """Send random columns to the ranks of a plan and back, without pickles.

    Each value says where it comes from: rank, episode and place. So every rank can check its rows.

    Returns:
        Whether the received rows, and the values that came back, are the right ones.
    """
    rank, each, found = accelerator.process_index, 5, []
    pickled = patch.object(torch.distributed.distributed_c10d, "_object_to_tensor", None)
    for seed in range(20):
        chance = np.random.default_rng(seed)
        lengths = torch.from_numpy(chance.integers(0, 30, (2, each)))
        width = int(lengths.max()) + 1
        along, mine = torch.arange(width), lengths[rank]
        left = bool(seed % 2)
        real = along >= width - mine[:, None] if left else along < mine[:, None]
        numbers = torch.arange(each)[:, None]
        values = torch.where(real, 10_000 * (rank * each + numbers) + along + 1, -1)
        with pickled:
            exchange = Exchange(accelerator, mine, budget=40)
            column = exchange.tokens(real, left)
            passes = column.out(values)
            names = exchange.episodes().out(rank * each + numbers)
            back = column.back([rows * 2.0 for rows in passes])
        expected = torch.where(real, values * 2.0, 0.0)
        found.append(torch.equal(back, expected))
        for pack, rows, named in zip(exchange.plan[rank], passes, names, strict=True):
            for row, episode in enumerate(pack):
                size = int(lengths[episode // each, episode % each])
                start = width - size if left else 0
                content = 10_000 * episode + torch.arange(start, start + size) + 1
                found.append(torch.equal(rows[row][rows[row] != 0], content))
                found.append(int(named[row, 0]) == episode)
            found.append(not rows[len(pack) :].any())
    return all(found) and len(found) > 200


def main(checkpoint: str, folder: Path) -> None:
    from accelerate import PartialState

    rank = PartialState(cpu=True).process_index
    first = rank == 0
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def scenario(name, policy, box, **more):
        return run(checkpoint, folder, name, policy, box, **more)

    found = {
        "uneven": scenario("uneven", Writer(tokenizer, 3 if first else 0), Box(0.05), steps=2),
        "planned": scenario(
            "planned", Writer(tokenizer, 3 if first else 0), Box(), steps=2, tokens=150
        ),
        "exchange": exchanged(Accelerator(cpu=True)),
        "starved": scenario("starved", Writer(tokenizer, 1), Box(fails=not first)),
        "all fail": scenario("all fail", Writer(tokenizer, 1), Box(fails=True)),
        "one breaks": scenario("one breaks", (Writer if first else Broken)(tokenizer, 1), Box()),
        "dull": scenario(
            "dull", Writer(tokenizer, 0, "half" if first else "none"), Box(), resample=2
        ),
        "full disk": scenario("full disk", Writer(tokenizer, 0), Box(), full=not first),
        "ahead": scenario("ahead", None, Box(), steps=3, staleness=1),
        "own": scenario("own", None, Box(), steps=2, shared=True),
        "shards": shards(checkpoint, folder),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    leave_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
