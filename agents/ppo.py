"""PPO with a critic (arXiv 1707.06347), the algorithm of ReTool's paper, on accelerate.

In the order of a step: rollouts, values, advantages, updates, log, save. The old log-probs are those that the engine sampled
with, so that the ratio also corrects for an engine whose arithmetic differs from the trained model's. What the interpreter
wrote, and the prompt, carry no loss and no advantage, and the advantages' recursion steps over them.

The critic is a model of its own: the initial model's trunk under a new scalar head, which says 0 at first. Sharing the actor's
trunk would save its memory, but not let it warm up alone: its loss would move the policy.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel, get_peft_model
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested
from trl.trainer.utils import add_fused_lm_head

from agents.advantages import explained_variance, gae, whiten
from agents.base.board import Bar, console
from agents.base.figures import Sums, pooled
from agents.base.model import (
    HIGH_RATE,
    check_dtype,
    check_learning_rate,
    disable_dropout,
    export,
    load_model,
    lora_config,
    save_checkpoint,
)
from agents.base.records import seal, write_atomically
from agents.base.reporting import REPORT_TO, Reporter, check_report_to
from agents.base.run import Run, loading, processes, seconds_of
from agents.base.sampler import ENGINE, check_engine, make_policy
from agents.base.selection import CURRICULUM, chosen_ids, without_void_turns
from agents.base.settings import (
    SANDBOX,
    SettingsError,
    check_least,
    find_sandbox,
    find_task,
    largest_divisor,
    setting,
    task_of,
)
from agents.base.sharding import shard_frozen, sharded_apart
from agents.base.stopping import Stopping
from agents.grpo import (
    CORRECTION,
    CORRECTION_HIGH,
    CORRECTION_LOW,
    check_correction,
    check_prompts,
)
from agents.losses import k3, ppo_policy_loss, value_loss
from retool_env.integrations.fused_head import skip_unwanted
from retool_env.integrations.trl import episode_reward
from retool_env.rollout import RolloutEngine
from retool_env.rollout.progress import Progress, shown
from retool_env.training.correction import importance_weights, weight_figures, weight_sums
from retool_env.training.packing import Packed, keeps_apart, pack, score
from retool_env.training.rollouts import EngineRollouts, RolloutsAbandoned, together
from retool_env.training.rows import with_trained_logprobs
from retool_env.training.trained_weights import is_sharded, whole
from retool_env.transcript import Transcript

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Settings of the training run: what the paper discloses, the others as in the recipes that follow it."""

    name: str = setting("ppo", "the run's folder is runs/<name>")
    model: str = setting("runs/sft/checkpoint", "a folder or a Hub id")
    dtype: str = setting("float32", "of the weights")
    env: dict[str, Any] = setting(
        {"id": "ReTool-Arithmetic-v0"}, "the environment's id and settings"
    )
    sandbox: str | dict[str, Any] = setting("nsjail", SANDBOX)
    seed: int = setting(0, "of problems, sampling and order")
    curriculum: str = setting("", CURRICULUM)
    steps: int = setting(
        400,
        "each one batch of rollouts, and the updates made with it; with --resume a run may be given more",
    )
    prompts: int = setting(1024, "problems a step")
    rollouts: int = setting(1, "rollouts a problem")
    epochs: int = setting(1, "passes over a step's episodes")
    mini_batch: int = setting(512, "episodes an optimizer step, of all processes together")
    micro_batch: int = setting(8, "episodes a forward and backward pass, of one process")
    engine: str | dict[str, Any] = setting("transformers", ENGINE)
    sample_batch: int = setting(
        128, "sequences that the engine transformers decodes together, at most"
    )
    in_flight: int = setting(256, "episodes in flight at once, at most, in a process")
    deadline: float = setting(0.0, "seconds after which a batch's episodes are cut; 0: none")
    learning_rate: float = setting(1e-6, "the actor's, constant")
    critic_learning_rate: float = setting(2e-6, "the critic's, constant")
    allow_high_learning_rate: bool = setting(False, HIGH_RATE)
    critic_warmup: int = setting(20, "first steps, in which the critic alone learns")
    weight_decay: float = setting(0.0, "AdamW's")
    max_grad_norm: float = setting(1.0, "of the actor's gradient and of the critic's")
    gamma: float = setting(1.0, "discount of a token that the model wrote")
    lam: float = setting(1.0, "lambda of GAE")
    whiten: bool = setting(True, "normalise the advantages of a step's tokens")
    clip_low: float = setting(0.2, "lower clip of the ratio")
    clip_high: float = setting(0.28, "upper clip of the ratio")
    dual_clip: float = setting(10.0, "largest ratio that weighs a negative advantage; 0: none")
    value_clip: float = setting(0.5, "clip of a value's change in a step; 0: none")
    value_coefficient: float = setting(1.0, "of the critic's loss")
    correction: str = setting("ratio", CORRECTION)
    correction_cap: float = setting(2.0, "largest weight of a token, of correction=token")
    correction_low: float = setting(0.99, CORRECTION_LOW)
    correction_high: float = setting(1.01, CORRECTION_HIGH)
    entropy: float = setting(0.0, "coefficient of the entropy bonus")
    kl: float = setting(0.0, "coefficient of the KL to the initial model; the paper's is 0")
    mask_void: bool = setting(
        False, "no loss on episodes with a turn that is neither code nor answer (arXiv 2509.02479)"
    )
    temperature: float = setting(1.0, "of sampling")
    lora_rank: int = setting(0, "of actor and critic; 0: full fine-tuning")
    gradient_checkpointing: bool = setting(False, "less memory, more time")
    save_steps: int = setting(10, "steps between checkpoints for resuming")
    export_steps: int = setting(
        0, "steps between models kept in checkpoints/<step>, for evaluation; 0: the last"
    )
    transcripts_every: int = setting(1, "steps between those whose transcripts are kept")
    report_to: str | list[str] = setting("none", REPORT_TO)


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run PPO.

    Returns:
        The folder of the trained model.

    Raises:
        SettingsError: If a setting is out of range or names nothing there is, a step's episodes can't be shared out, or a
            prompt does not fit the model.
        SandboxUnavailable: If the sandbox can't work here.
    """
    state = processes()
    check(settings, state.num_processes)
    engine, options = check_engine(settings.engine, state.num_processes)
    if engine == "transformers":
        options = {"max_batch": settings.sample_batch, **options}
    run = Run(folder, settings, resume, "steps")
    if run.finished:
        return run.checkpoint
    rules, problems = find_task(settings.env)
    check_report_to(settings.report_to)
    model, tokenizer = load_model(settings.model, settings.dtype)
    for rate in ("learning_rate", "critic_learning_rate"):
        check_learning_rate(
            getattr(settings, rate),
            model.num_parameters(),
            settings.lora_rank,
            settings.allow_high_learning_rate,
            name=rate,
        )
    drawn = settings.steps * settings.prompts
    earlier = [steps * settings.prompts for steps in run.earlier]
    order = chosen_ids(problems, drawn, settings.seed, settings.curriculum, earlier)
    check_prompts(order, problems, rules, tokenizer, model)
    progress, stopping = Progress(), Stopping()
    with ExitStack() as resources:
        sandbox = find_sandbox(settings.sandbox, rules)
        if sandbox is not None:
            resources.callback(sandbox.close)
        run.start()
        point = run.resume_point()
        past = run.metrics()
        name = "ppo" if rules.interpreter else "ppo, text only"
        bar = resources.enter_context(Bar(name, settings.steps, live=progress, past=past))
        if run.main and not console.is_terminal:
            resources.enter_context(shown(progress, every=60.0))
        learner = Learner(settings, model)
        saved = first = learner.load(Path(point)) if point else 0
        bar.set_total(settings.steps, first)
        reporter = Reporter(
            settings.report_to, settings.name, run.trainer, dataclasses.asdict(settings)
        )
        resources.callback(reporter.close)
        before = seconds_of(past)
        began = time.monotonic()
        apart = is_sharded(learner.model)
        policy = make_policy(
            engine,
            options,
            learner.model,
            tokenizer,
            settings.model,
            settings.temperature,
            apart,
            learner.accelerator.device,
        )
        resources.enter_context(policy)
        rollouts = EngineRollouts(
            RolloutEngine(policy, rules, sandbox, settings.in_flight, progress=progress),
            problems,
            settings.seed,
            deadline=settings.deadline or None,
            stopping=stopping.asked,
        )
        resources.callback(rollouts.close)
        sample = without_void_turns(rollouts) if settings.mask_void else rollouts
        resources.enter_context(stopping)
        part = settings.prompts // state.num_processes
        tags = rules.turn_protocol().stop
        for step in range(first, settings.steps):
            start = step * settings.prompts + state.process_index * part
            ids = [each for each in order[start : start + part] for _ in range(settings.rollouts)]
            logged: dict[str, list[float]] = defaultdict(list)
            try:
                rows = sample(ids, asking(learner, settings, step, tokenizer.eos_token_id, logged))
            except RolloutsAbandoned:  # on all processes
                if stopping.agreed() and step > saved:
                    learner.save(run.trainer, step)
                break
            rewards = episode_reward(
                rows["transcript"], lambda name, number, to=logged: to[name].append(number)
            )
            logged["reward"] = [reward for reward in rewards if reward is not None]
            batch = Batch.of(rows, learner.accelerator.device)
            figures = pooled(gather_object([dict(logged)])) | learner.learn(batch, step)
            if step % settings.transcripts_every == 0:
                found = learner.with_logps(rows, batch)
                together(learner, lambda found=found: run.write(found))
            if run.main:
                seconds = round(before + time.monotonic() - began, 3)
                run.log({"step": step + 1, "seconds": seconds, **figures})
            reporter.log(step + 1, figures)
            bar.show(step + 1, figures)
            last = stopping.agreed() or step + 1 == settings.steps
            if settings.export_steps and (step + 1) % settings.export_steps == 0:
                export(learner, tokenizer, run.exports / str(step + 1), tags, learner.task)
            # After the export, or a run that goes on from here would lack it.
            if last or (step + 1) % settings.save_steps == 0:
                learner.save(run.trainer, saved := step + 1)
            if last:
                break
        stopping.end()
        save_checkpoint(learner, tokenizer, run.checkpoint, tags, learner.task)
    run.draw()
    run.finish()
    return run.checkpoint


def check(settings: Settings, processes: int) -> None:
    """Check the numbers, and that the episodes can be shared out.

    Raises:
        SettingsError: Saying what to change.
    """
    counts = ("steps", "prompts", "rollouts", "epochs", "mini_batch", "micro_batch")
    others = ("sample_batch", "in_flight", "save_steps", "transcripts_every")
    zero = ("deadline", "lora_rank", "export_steps")
    least = dict.fromkeys((*counts, *others), 1) | dict.fromkeys(zero, 0)
    check_least(settings, least)
    check_correction(settings)
    check_dtype(settings.dtype, settings.lora_rank)
    for name in ("learning_rate", "critic_learning_rate", "max_grad_norm", "temperature"):
        if not getattr(settings, name) > 0:
            raise SettingsError(f"{name} must be above 0, not {getattr(settings, name)}")
    for name in ("gamma", "lam", "clip_low"):
        if not 0 <= getattr(settings, name) <= 1:
            raise SettingsError(f"{name} must be from 0 to 1, not {getattr(settings, name)}")
    for name in ("clip_high", "value_clip", "value_coefficient", "kl", "critic_warmup"):
        if getattr(settings, name) < 0:
            raise SettingsError(f"{name} must not be negative, not {getattr(settings, name)}")
    if settings.dual_clip and settings.dual_clip <= 1 + settings.clip_high:
        raise SettingsError(
            f"dual_clip={settings.dual_clip} must be above 1 + clip_high, or 0, which is none"
        )
    if settings.critic_warmup >= settings.steps:
        raise SettingsError(
            f"critic_warmup={settings.critic_warmup} leaves none of {settings.steps} steps to the actor"
        )
    if settings.prompts % processes:
        raise SettingsError(
            f"prompts={settings.prompts} problems a step can't be shared out among {processes} processes, each whole: take a "
            f"multiple of {processes}"
        )
    episodes = settings.prompts * settings.rollouts
    if episodes % settings.mini_batch or settings.mini_batch % processes:
        better = processes * largest_divisor(
            episodes // processes, max(1, settings.mini_batch // processes)
        )
        raise SettingsError(
            f"a step has prompts * rollouts = {episodes} episodes, which mini_batch={settings.mini_batch} does not divide into "
            f"updates with equally many of each process: take mini_batch={better}"
        )
    own = settings.mini_batch // processes
    if own % settings.micro_batch:
        several = f" * {processes} processes" if processes > 1 else ""
        raise SettingsError(
            f"mini_batch={settings.mini_batch} is not divided by micro_batch={settings.micro_batch}{several}: take "
            f"micro_batch={largest_divisor(own, settings.micro_batch)}"
        )


def asking(
    learner: Learner, settings: Settings, step: int, eos: int, logged: dict[str, list[float]]
) -> Any:
    """What `EngineRollouts` wants to know of TRL's trainer, as it is here: a batch a step."""
    learner.model.train()
    return SimpleNamespace(
        model=learner.model,
        accelerator=learner.accelerator,
        state=SimpleNamespace(global_step=step, max_steps=settings.steps),
        args=SimpleNamespace(gradient_accumulation_steps=1, steps_per_generation=1),
        num_iterations=1,
        num_generations=settings.rollouts,
        temperature=settings.temperature,
        eos_token_ids=[eos],
        _step=step,
        _log_metric=lambda name, number: logged[name].append(number),
    )


@dataclass(frozen=True)
class Batch:
    """Episodes, padded on the right, so that a token's position is its index. T is one less than the longest one's length."""

    ids: torch.Tensor
    """Tokens, shape `(B, T + 1)`."""
    attention: torch.Tensor
    """1 on tokens, 0 on padding, shape `(B, T + 1)`."""
    mask: torch.Tensor
    """Whether the model sampled token t + 1, shape `(B, T)`, as what follows."""
    old_logps: torch.Tensor
    """Log-probs that token t + 1 was sampled with."""
    rewards: torch.Tensor
    """Shape `(B,)`; that of an episode which is not trained on, and has no tokens of the model, counts nowhere."""
    numbers: torch.Tensor | None = None
    """Which episodes of the step these are, shape `(B,)`."""
    old_values: torch.Tensor | None = None
    """The critic's values, before the updates, of the states in which token t + 1 was sampled."""
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None
    own_logps: torch.Tensor | None = None
    """The actor's log-probs before the updates, where the correction is no ratio."""
    weights: torch.Tensor | None = None
    """Of the correction, likewise."""

    @classmethod
    def of(cls, rows: Mapping[str, Sequence[Any]], device: torch.device | str = "cpu") -> Batch:
        """From the rows that `training_rows` makes of transcripts."""
        prompts, completions = rows["prompt_ids"], rows["completion_ids"]
        lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
        shape = len(lengths), max(lengths)
        ids, attention = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        mask, logps = np.zeros(shape, bool), np.zeros(shape, np.float32)
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            own = slice(len(prompt), lengths[i])
            ids[i, : lengths[i]], attention[i, : lengths[i]] = [*prompt, *completion], 1
            mask[i, own], logps[i, own] = rows["env_mask"][i], rows["logprobs"][i]
        rewards = np.array([t.reward or 0.0 for t in rows["transcript"]], np.float32)
        arrays = ids, attention, mask[:, 1:], logps[:, 1:], rewards, np.arange(len(ids))
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))

    def take(self, index: torch.Tensor) -> Batch:
        """Some of the episodes, without what is padding in all of them."""
        length = int(self.attention[index].sum(1).max())
        taken = {}
        for name, tensor in vars(self).items():
            if tensor is not None:
                wide = name in ("ids", "attention")
                tensor = tensor[index] if tensor.ndim == 1 else tensor[index, : length - 1 + wide]
            taken[name] = tensor
        return Batch(**taken)

    def parts(self, size: int) -> Iterator[Batch]:
        """All of it, so many episodes at a time."""
        for index in torch.arange(len(self.ids), device=self.ids.device).split(size):
            yield self.take(index)


class ValueHead(torch.nn.Linear):
    """The critic's head. It works in float32 whatever the trunk does: of a value in bfloat16 two digits would remain."""

    def values(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values in float32, shape `(B, L)`, of hidden states, `(B, L, H)`.

        A method of its own: the module's call would have FSDP gather the weights in bfloat16.
        """
        weight, bias = (
            # FSDP averages the gradients of all processes.
            parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)
            if isinstance(parameter, DTensor)
            else parameter
            for parameter in (self.weight, self.bias)
        )
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), weight.float(), bias.float())[..., 0]


class Critic(torch.nn.Module):
    """A causal model's trunk under a scalar head that says 0 at first.

    Args:
        model: The causal model. Its own head is not used.
        lora: LoRA on the trunk; `None`: all of it is trained.
    """

    def __init__(self, model: PreTrainedModel, lora: Any = None) -> None:
        super().__init__()
        trunk = model.base_model
        if lora is not None:
            lora.task_type = "FEATURE_EXTRACTION"
            trunk = get_peft_model(trunk, lora)
        self.trunk = trunk
        self._no_split_modules = model._no_split_modules  # what FSDP shards one by one
        self.head = ValueHead(model.config.get_text_config().hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, rows: Packed) -> torch.Tensor:
        """Values of the states in which the tokens were sampled that `rows` scores, at their columns but the first: `(B, T)`."""
        hidden = self.trunk(
            input_ids=rows.input_ids,
            attention_mask=rows.mask,
            position_ids=rows.position_ids,
            use_cache=False,
        ).last_hidden_state
        values = self.head.values(hidden)
        return rows.unpacked(values)[:, 1:]


class Learner:
    """Actor and critic, and how a batch changes them.

    On several processes each has its part of every batch, and all numbers that are summed or averaged are over all of them.

    Args:
        settings: The run's.
        actor: The model that is trained.
    """

    def __init__(self, settings: Settings, actor: PreTrainedModel) -> None:
        self.settings = settings
        self.task = task_of(settings.env)
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self._world = self.accelerator.num_processes
        torch.manual_seed(settings.seed)  # adapters begin at random, the same on all processes
        add_fused_lm_head(actor, settings.temperature, outputs=("log_probs", "entropy"))
        skip_unwanted(actor)
        if settings.lora_rank:
            actor = get_peft_model(actor, lora_config(settings.lora_rank))
        self.actor, self.actor_optimizer = self._prepare(actor, actor, settings.learning_rate)
        self.model = self.accelerator.unwrap_model(self.actor)
        # Once the actor is in shards, so that the host never holds both whole.
        base = load_model(settings.model, settings.dtype)[0]
        critic = Critic(base, lora_config(settings.lora_rank))
        # With the rest its weights would be gathered in bfloat16.
        with sharded_apart(self.accelerator, ValueHead.__name__):
            self.critic, self.critic_optimizer = self._prepare(
                critic, critic.trunk, settings.critic_learning_rate
            )
        self._packs: tuple[bool, bool] | None = None  # not tried yet
        self._one_row = is_flash_attention_requested(base.config.get_text_config())
        self.reference = None
        if settings.kl and not settings.lora_rank:
            reference = load_model(settings.model, settings.dtype)[0].eval()
            add_fused_lm_head(reference, settings.temperature)
            skip_unwanted(reference)
            if self.accelerator.is_fsdp2:
                self.reference = shard_frozen(reference, self.accelerator)
            else:
                self.reference = reference.requires_grad_(False).to(self.accelerator.device)

    def _prepare(
        self, model: torch.nn.Module, trunk: torch.nn.Module, learning_rate: float
    ) -> tuple[Any, Any]:
        disable_dropout(trunk)
        if self.settings.gradient_checkpointing:
            trunk.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [p for p in model.parameters() if p.requires_grad]
        decay = self.settings.weight_decay
        optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=decay)
        # One by one: FSDP2 takes one model at a time.
        return self.accelerator.prepare(model, optimizer)

    def learn(self, batch: Batch, step: int) -> dict[str, float]:
        """What a step makes of its episodes.

        Each epoch takes them in another order. A minibatch has equally many of each process.

        Returns:
            Figures to log.
        """
        settings = self.settings
        self.actor.train()
        self.critic.train()
        values = self.values(batch)
        advantages, returns = gae(values, batch.rewards, batch.mask, settings.gamma, settings.lam)
        if settings.whiten:
            advantages = whiten(advantages, batch.mask, self._total)
        batch = dataclasses.replace(
            batch, old_values=values, advantages=advantages, returns=returns
        )
        figures = {}
        if settings.correction != "ratio":
            own = self.logps(batch)
            kind, cap = settings.correction, settings.correction_cap
            bounds = settings.correction_low, settings.correction_high
            weights = importance_weights(own, batch.old_logps, batch.mask, kind, cap, bounds)
            batch = dataclasses.replace(batch, own_logps=own, weights=weights)
            figures = weight_figures(self._total(weight_sums(weights, batch.mask)))
        explained = explained_variance(values, returns, batch.mask, self._total)
        size = settings.mini_batch // self._world
        sums = Sums()
        self._logps = torch.full_like(batch.old_logps, torch.nan)
        for epoch in range(settings.epochs):
            order = np.random.default_rng((settings.seed, step, epoch)).permutation(len(batch.ids))
            for start in range(0, len(order), size):
                index = torch.from_numpy(order[start : start + size]).to(batch.ids.device)
                self.update(batch.take(index), sums, step >= settings.critic_warmup)
        figures |= sums.figures(self._total, self.accelerator.gather)
        if explained is not None:
            figures["critic/explained_variance"] = explained
        episodes = self._total(torch.stack([batch.mask.sum(), batch.mask.any(1).sum()]))
        figures["completions/mean_length"] = (episodes[0] / episodes[1].clamp(min=1)).item()
        return figures

    def with_logps(self, rows: Mapping[str, Sequence[Any]], batch: Batch) -> list[Transcript]:
        """The step's transcripts; those that were trained on with the actor's log-probs in the first pass over them."""
        trained = batch.mask.any(1).tolist()
        found = []
        for number, transcript in enumerate(rows["transcript"]):
            if trained[number]:
                first = len(rows["prompt_ids"][number]) - 1
                logps = self._logps[number, first:].tolist()
                transcript = with_trained_logprobs(transcript, logps)
            found.append(transcript)
        return found

    def values(self, batch: Batch) -> torch.Tensor:
        """The critic's values, shape `(B, T)`."""
        return self._of_all(self.critic, batch)

    def logps(self, batch: Batch) -> torch.Tensor:
        """The actor's log-probs, shape `(B, T)`."""
        return self._of_all(lambda rows: self._score(self.actor, rows)[0], batch)

    @torch.no_grad()
    def _of_all(self, of: Callable[[Packed], torch.Tensor], batch: Batch) -> torch.Tensor:
        found = torch.zeros_like(batch.old_logps)
        done = 0
        for part in batch.parts(self.settings.micro_batch):
            own = of(self.rows(part))
            found[done : done + len(own), : own.shape[1]] = own
            done += len(own)
        return found

    def update(self, batch: Batch, sums: Sums, actor: bool = True) -> None:
        """One optimizer step with a minibatch: the critic's and, unless it is frozen, the actor's.

        The loss is a mean over the tokens that the model sampled, of the minibatch on all processes. Without one nothing
        changes, not even by the optimizers' momentum.
        """
        tokens = self._total(batch.mask.sum()).item()
        if not tokens:
            return
        # Gradients are averaged over processes, and this loss is not.
        scale = self._world / tokens
        parts = list(batch.parts(self.settings.micro_batch))
        for number, part in enumerate(parts):
            with ExitStack() as waiting:
                # Gradients are exchanged with the last part's; of shards, with each, as they would be whole until then.
                if number + 1 < len(parts) and not self.accelerator.is_fsdp2:
                    waiting.enter_context(self.accelerator.no_sync(self.actor))
                    waiting.enter_context(self.accelerator.no_sync(self.critic))
                rows = self.rows(part)
                with torch.set_grad_enabled(actor):
                    loss = self.actor_loss(part, rows, sums)
                if actor:
                    self.accelerator.backward(loss * scale)
                self.accelerator.backward(self.critic_loss(part, rows, sums) * scale)
        trained = [("critic", self.critic, self.critic_optimizer)]
        if actor:
            trained.append(("actor", self.actor, self.actor_optimizer))
        for name, model, optimizer in trained:
            self.accelerator.unscale_gradients(optimizer)
            # Not accelerate's: it compares the parameters with those of all models, tensor by tensor.
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.settings.max_grad_norm)
            sums.norm(name, whole(norm))
            optimizer.step()
            optimizer.zero_grad()

    def actor_loss(self, batch: Batch, rows: Packed, sums: Sums) -> torch.Tensor:
        """Policy, KL and entropy terms, summed over tokens."""
        settings, mask = self.settings, batch.mask
        logps, entropy = self._score(self.actor, rows)
        with torch.no_grad():
            first = self._logps[batch.numbers, : logps.shape[1]]
            self._logps[batch.numbers, : logps.shape[1]] = torch.where(
                first.isnan(), logps.float(), first
            )
        each, clipped = ppo_policy_loss(
            logps,
            batch.old_logps if batch.own_logps is None else batch.own_logps,
            batch.advantages,
            mask,
            settings.clip_low,
            settings.clip_high,
            settings.dual_clip or None,
        )
        if batch.weights is not None:
            each = each * batch.weights
        entropy = entropy.masked_fill(~mask, 0.0)
        loss = each.sum()
        if settings.entropy:
            loss = loss - settings.entropy * entropy.sum()
        if settings.kl:
            kl = k3(logps, self._reference_logps(rows), mask)
            loss = loss + settings.kl * kl.sum()
            sums.add(mask, kl=kl)
        sums.add(mask, entropy=entropy, **{"loss/policy": each, "clip_fraction": clipped})
        sums.distance(logps, batch.old_logps, mask)
        return loss

    def critic_loss(self, batch: Batch, rows: Packed, sums: Sums) -> torch.Tensor:
        """The critic's loss, summed over tokens."""
        values = self.critic(rows)
        clip = self.settings.value_clip or None
        each, clipped = value_loss(values, batch.old_values, batch.returns, batch.mask, clip)
        value = values.masked_fill(~batch.mask, 0.0)
        sums.add(
            batch.mask,
            **{"loss/value": each, "critic/clip_fraction": clipped, "critic/value": value},
        )
        return self.settings.value_coefficient * each.sum()

    def rows(self, batch: Batch) -> Packed:
        """The batch's episodes one behind the other, without padding (see `packing.py`)."""
        scored = torch.nn.functional.pad(batch.mask, (1, 0))  # the fused head skips all else
        packs, shares = self._can_pack()
        return pack(batch.ids, batch.attention, scored, self._one_row, shares, apart=not packs)

    def _can_pack(self) -> tuple[bool, bool]:
        """Whether the models keep apart what stands in one row, and what has a prompt in common there. All processes ask at once."""
        if self._packs is None:
            with self.accelerator.autocast():
                packs, shares = (
                    keeps_apart(self.actor, self.model, self.accelerator.device, shared)
                    for shared in (False, True)
                )
            self._packs = packs, packs and shares
            if not packs:
                _log.warning(
                    "%s lets episodes in one row see each other, so each has a row of its own, which takes longer",
                    type(self.model).__name__,
                )
        return self._packs

    def _score(self, model: torch.nn.Module, rows: Packed) -> list[torch.Tensor]:
        """Log-probs of the model's own tokens and, if it tells them, entropies, each of shape `(B, T)`; 0 elsewhere."""
        with self.accelerator.autocast():
            output = score(model, rows)
        found = (output.log_probs, output.entropy)
        return [rows.unpacked(each.float())[:, 1:] for each in found if each is not None]

    @torch.no_grad()
    def _reference_logps(self, rows: Packed) -> torch.Tensor:
        """Log-probs under the initial model, which is the actor without its adapter, if it has one."""
        if self.reference is not None:
            return self._score(self.reference, rows)[0]
        assert isinstance(self.model, PeftModel)
        with self.model.disable_adapter():
            return self._score(self.model, rows)[0]

    def _total(self, own: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(own, "sum")

    def save(self, folder: Path, step: int) -> None:
        """Write a checkpoint that `load` goes on from, and remove those before it."""
        target = folder / f"checkpoint-{step}"
        self.accelerator.save_state(str(target))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.task.save(target)
            # Last, so that a checkpoint which a stop cut short is passed over.
            write_atomically(target / "trainer_state.json", json.dumps({"global_step": step}))
            seal(target)
            for old in folder.glob("checkpoint-*"):
                if old != target:
                    shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def load(self, folder: Path) -> int:
        """Read a checkpoint, and say after which step it was written.

        Raises:
            SettingsError: If it can't be read.
        """
        with loading(folder):
            self.accelerator.load_state(str(folder))
        return json.loads((folder / "trainer_state.json").read_text())["global_step"]
