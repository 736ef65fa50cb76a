"""Runs of the trainers whose results are compared: in one process, and in two processes with FSDP2.

The tests run them in one process. `accelerate launch --config_file CONFIG` runs them in two
processes, with agents/launch/cpu2_fsdp2.yaml as CONFIG and these arguments:
tests/helpers/fsdp_runs.py CHECKPOINT FOLDER DATA
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from transformers import AutoModelForCausalLM, AutoTokenizer, PhiConfig, PhiForCausalLM
from trl.trainer.utils import add_fused_lm_head

from agents import grpo, ppo, rft, sft
from agents.base import session
from agents.base.model import load_model
from agents.base.presets import load_settings
from agents.base.run import RunLogger
from agents.base.sharding import leave_process_group, processes
from agents.base.stopping import Stopped
from helpers import ppo_batches
from helpers.stopped_passes import before_pass
from retool_env.episode import Generation
from retool_env.rollout import ScriptedPolicy
from retool_env.training.rollouts import Rollouts
from retool_env.training.trained_weights import whole

ENV = {"id": "ReTool-Arithmetic-v0", "interpreter": False, "prompt_template": "{query}\n"}
ALL = {"gradient_checkpointing": True, "save_steps": 1}
GRPO = {**ALL, "prompts": 4, "rollouts": 4, "micro_batch": 4}
PPO = {**ALL, "prompts": 8, "mini_batch": 4, "micro_batch": 1, "critic_warmup": 1}
SFT = {**ALL, "batch_size": 4, "micro_batch": 1, "epochs": 1}
PLAIN = {"optim": "sgd", "max_grad_norm": 1e9}  # so that a step equals the gradient, unlike Adam's


class Writer(ScriptedPolicy):
    """Alternates right and wrong answers of different lengths for each problem.

    The answers do not depend on the process.
    """

    def __init__(self, tokenizer):
        super().__init__(lambda text: "", tokenizer)
        self.asked = Counter()

    async def act(self, token_ids, stop, budget, seed):
        problem = self.tokenizer.decode(token_ids)
        self.asked[problem] += 1
        number = self.asked[problem]
        answer = eval(problem.strip().removeprefix("Compute ").rstrip(".")) + number % 2
        text = f"{'So. ' * (number % 3)}<answer>\n\\boxed{{{answer}}}\n</answer>"
        ids = tuple(self.tokenizer.encode(text))
        return Generation(ids, (-5.6,) * len(ids), "tag")

    async def update_weights(self, version, weights=None):
        self.weight_version = version
        for _ in weights or ():
            pass


def settings(module, checkpoint, name, **more):
    """The settings of a small run.

    Args:
        module: The module of the algorithm.
        checkpoint: The model's folder.
        name: The name of the run.
        **more: Further settings; `tokens` is the episode's token budget, `tokens_a_pass` the
            setting `tokens`.
    """
    section = module.__name__.rpartition(".")[2]
    values = {"model": checkpoint, "name": name, "sandbox": "nsjail"}
    values |= {"env": {**ENV, "max_tokens": more.pop("tokens", 80)}}
    values |= {"tokens": more.pop("tokens_a_pass", 0), **more}
    if module is rft:
        del values["tokens"]
    pairs = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return load_settings(module.Settings, section, "tiny", pairs)


def run(module, checkpoint, folder, name, resume=False, **more):
    """Run an algorithm with these settings in a folder of this name.

    Args:
        module: The module of the algorithm.
        checkpoint: The model's folder.
        folder: The folder of all runs.
        name: The name of the run.
        resume: Whether to resume an interrupted run.
        **more: Further settings.
    """
    module.train(settings(module, checkpoint, name, **more), folder / name, resume)


@contextmanager
def written():
    """Let `Writer` write all episodes."""
    policy = lambda *arguments: Writer(arguments[3])  # noqa: E731
    with patch.object(session, "make_policy", policy):
        yield


@contextmanager
def broken(cls, method, after):
    """Let a method raise, in all processes, after a number of calls.

    Args:
        cls: The class of the method.
        method: The method's name.
        after: The number of calls that succeed.
    """
    original, calls = getattr(cls, method), Counter()

    def breaks(*arguments, **more):
        calls[method] += 1
        if calls[method] > after:
            raise InterruptedError
        return original(*arguments, **more)

    with patch.object(cls, method, breaks), suppress(InterruptedError):
        yield
    # A resumed run begins in a new process. After an interruption between the passes of a step, the
    # optimizer would not load its state.
    GradientState._reset_state()


def compared(checkpoint, folder, data):
    """The runs whose results must be equal in one process and in two processes.

    Args:
        checkpoint: The model's folder.
        folder: The folder of the runs.
        data: The file of traces for supervised fine-tuning.
    """
    with written():
        more = {**GRPO, "steps": 2, "kl": 0.5, "learning_rate": 0.5, "trl": PLAIN}
        run(grpo, checkpoint, folder, "grpo", **more)
        run(grpo, checkpoint, folder, "grpo-tokens", **more, tokens_a_pass=90)
    plain = {**PLAIN, "logging_steps": 1}
    more = {**SFT, "data": data, "learning_rate": 0.1, "trl": plain}
    run(sft, checkpoint, folder, "sft", **more)
    run(sft, checkpoint, folder, "sft-tokens", **more, tokens_a_pass=90)

    def scripted(name, options, model, tokenizer, *_, **__):
        assert all(p.any() for p in model.parameters())  # each process samples from a whole model
        return Writer(tokenizer)

    with patch.object(rft, "make_policy", scripted):
        more = {"rounds": 1, "problems": 4, "k": 4, "keep": 2}
        tuning = {"batch_size": 4, "micro_batch": 1, "learning_rate": 0.1, "trl": PLAIN}
        run(rft, checkpoint, folder, "rft", **more, sft=tuning)
    rank = processes().process_index
    torch.save(ppo_changes(checkpoint), folder / f"ppo-{rank}.pt")
    torch.save(ppo_changes(checkpoint, tokens=30), folder / f"ppo-tokens-{rank}.pt")
    phi = str(folder / "phi")
    make_phi(phi, checkpoint)
    processes().wait_for_everyone()
    for model, name in ((phi, "phi"), (None, None)):
        # A new process has no layer classes of an earlier model.
        AcceleratorState._reset_state(True)
        processes()
        if model:
            torch.save(ppo_changes(model), folder / f"{name}-{rank}.pt")


def make_phi(folder, checkpoint):
    """A random model whose head has a bias, so that actor and critic have equally many tensors."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = PhiConfig(vocab_size=len(tokenizer), num_attention_heads=2, **shape)
    PhiForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def some(tensor):
    """Random initial weights of the critic's head, instead of zeros."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        return tensor.normal_(0.0, 0.3, generator=generator)


def flat(parameters):
    return torch.cat([whole(p.detach()).flatten() for p in parameters])


def ppo_changes(checkpoint, **more):
    """The changes of actor and critic in one step, and the step's figures.

    The step has a reference model, and two forward and backward passes in each process.

    Args:
        checkpoint: The model's folder.
        **more: Further settings.
    """
    state = processes()
    part = len(ppo_batches.ROWS) // state.num_processes
    rows = ppo_batches.ROWS[part * state.process_index : part * (state.process_index + 1)]
    chosen = ppo_batches.settings(model=checkpoint, micro_batch=part // 2, kl=0.5, **ALL, **more)
    with patch.object(torch.nn.init, "zeros_", some):
        made = ppo.Learner(chosen, load_model(checkpoint, "float32")[0])
    made.actor_optimizer = torch.optim.SGD(made.actor.parameters(), lr=1.0)
    made.critic_optimizer = torch.optim.SGD(made.critic.parameters(), lr=1.0)
    models = made.actor, made.critic
    before = [flat(model.parameters()) for model in models]
    figures = made.learn(ppo.Batch.of(ppo_batches.table(rows)), 0)
    changes = [flat(model.parameters()) - old for model, old in zip(models, before, strict=True)]
    return {"actor": changes[0], "critic": changes[1], "figures": figures}


def curves(checkpoint, folder, data):
    """Uninterrupted runs, and equal runs that are stopped after the first step and resumed.

    All have real rollouts, once without and once with adapters.

    Args:
        checkpoint: The model's folder.
        folder: The folder of the runs.
        data: The file of traces for supervised fine-tuning.
    """
    # The entropy bonus gives a gradient although all answers are wrong.
    entropy = {"steps": 2, "tokens": 24, "entropy": 0.3}
    # With a smaller epsilon, Adam would take full steps along gradients of mere rounding errors.
    epsilon = 1e-4
    every = {"logging_steps": 1, "warmup_steps": 0, "adam_epsilon": epsilon}
    less = {"trl": {**GRPO.get("trl", {}), "adam_epsilon": epsilon}}
    adam = partial(torch.optim.AdamW, eps=epsilon)
    kinds = {
        "grpo": (
            grpo,
            Rollouts,
            "collect",
            {**GRPO, **entropy, **less, "learning_rate": 1e-3},
        ),
        "ppo": (ppo, Rollouts, "collect", {**PPO, **entropy, "learning_rate": 1e-3}),
        "sft": (sft, RunLogger, "on_log", {**SFT, "data": data, "trl": every}),
    }
    for name, (module, cls, method, values) in kinds.items():
        for rank in (0, 4):
            stem = f"{name}-lora{rank}"
            more = {**values, "lora_rank": rank}
            with patch.object(ppo.torch.optim, "AdamW", adam) if module is ppo else nullcontext():
                run(module, checkpoint, folder, f"{stem}-whole", **more)
                with broken(cls, method, after=1):
                    run(module, checkpoint, folder, f"{stem}-cut", **more)
                left = [p.name for p in (folder / f"{stem}-cut" / "trainer").glob("checkpoint-*")]
                run(module, checkpoint, folder, f"{stem}-cut", resume=True, **more)
            yield stem, {"left": left}


def warm_up(checkpoint, folder, steps):
    """A run of PPO that one process is told to stop between two passes of its second step.

    The actor's optimizer has made no step by then; after a warm-up of one step the actor has the
    gradients of a pass. An equal run is not stopped.

    Args:
        checkpoint: The model's folder.
        folder: The folder of the runs.
        steps: The number of steps of the warm-up.
    """
    whole, cut = (f"warm-up-{steps}-{kind}" for kind in ("whole", "cut"))
    more = {**PPO, "steps": 3, "tokens": 24, "entropy": 0.3, "learning_rate": 1e-3}
    more |= {"critic_warmup": steps, "save_steps": 100}

    def tell():
        if processes().process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with patch.object(ppo.torch.optim, "AdamW", partial(torch.optim.AdamW, eps=1e-4)):
        run(ppo, checkpoint, folder, whole, **more)
        # All passes of the first step come before.
        with before_pass("ppo", more["prompts"], tell), suppress(Stopped):
            run(ppo, checkpoint, folder, cut, **more)
        left = [p.name for p in (folder / cut / "trainer").glob("checkpoint-*")]
        run(ppo, checkpoint, folder, cut, resume=True, **more)
    return {"left": left}


def sizes(model, optimizer):
    """Bytes of a model, its gradients and its optimizer's moments in this process."""

    def stored(tensors):
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
        return sum(storage.nbytes() for storage in storages.values())

    parameters = [p for p in model.parameters() if p.requires_grad]
    moments = [
        moment.to_local()
        for parameter in parameters
        for name, moment in optimizer.state[parameter].items()
        if name != "step"
    ]
    return {
        "weights": stored(p.to_local() for p in parameters),
        "gradients": stored(p.grad.to_local() for p in parameters),
        "Adam's moments": stored(moments),
        "units": sum(type(m).__name__.startswith("FSDP") for m in model.modules()),
    }


def step(checkpoint, precision):
    """One step of a model by hand, in a precision of accelerate: its log-probs and its sizes."""
    AcceleratorState._reset_state(True)
    processes()
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    add_fused_lm_head(model)
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)
    ids = torch.arange(3, 35)[None]
    logps = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
    accelerator.backward(logps.mean())
    dtypes = {str(p.grad.dtype) for p in model.parameters()}
    optimizer.step()
    return {
        **sizes(model, optimizer.optimizer),
        "dtype": str(logps.dtype),
        "dtypes": sorted(dtypes),
        "logps": logps[0].float().tolist(),
    }


def frozen_in_bfloat16(checkpoint, folder):
    """A run with float32 adapters on a bfloat16 model, computed in bfloat16."""
    more = {**GRPO, "steps": 1, "learning_rate": 1e-3, "lora_rank": 4, "dtype": "bfloat16"}
    with written():
        run(grpo, checkpoint, folder, "mixed", **more, trl={"bf16": True})


def main(checkpoint: str, folder: Path, data: str) -> None:
    """Run everything in this process, and write the figures into `folder`.

    Args:
        checkpoint: The model's folder.
        folder: The folder of the runs.
        data: The file of traces for supervised fine-tuning.
    """
    rank = processes().process_index
    # Unreduced gradients until the last pass of a step would be as large as the whole model.
    with patch.object(Accelerator, "no_sync", side_effect=AssertionError):
        compared(checkpoint, folder, data)
        figures = dict(curves(checkpoint, folder, data))
        figures["warm-up"] = {steps: warm_up(checkpoint, folder, steps) for steps in (1, 2)}
        frozen_in_bfloat16(checkpoint, folder)
    figures |= {precision: step(checkpoint, precision) for precision in ("no", "bf16")}
    (folder / f"{rank}.json").write_text(json.dumps(figures))
    leave_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
