"""PPO with a critic (arXiv 1707.06347), the algorithm of ReTool's paper, on accelerate.

In the order of a step: rollouts, values, advantages, updates, log, save. The old log-probs are those that the engine sampled
with, so that the ratio also corrects for an engine whose arithmetic differs from the trained model's. What the interpreter
wrote, and the prompt, carry no loss and no advantage, and the advantages' recursion steps over them.

The critic is a model of its own: the initial model's trunk under a new scalar head, which says 0 at first. Sharing the actor's
trunk would save its memory, but not let it warm up alone: its loss would move the policy.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from agents.advantages import explained_variance, gae, whiten
from agents.base.actor_critic import ActorCritic, ActorCriticSettings
from agents.base.fields import check_policy
from agents.base.figures import Sums, pooled
from agents.base.minibatch import Batch
from agents.base.model import check_dtype, check_learning_rate
from agents.base.run import Clock
from agents.base.session import RolloutSession
from agents.base.settings import SettingsError, check_least, largest_divisor, setting
from agents.base.sharding import processes
from agents.losses import k3, ppo_policy_loss, value_loss
from retool_env.integrations.trl import episode_reward
from retool_env.training.correction import importance_weights, weight_figures, weight_sums
from retool_env.training.packing import Packed
from retool_env.training.processes import RolloutsAbandoned, together
from retool_env.training.rollouts import Rollouts
from retool_env.training.rows import with_trained_logprobs
from retool_env.training.step import Step
from retool_env.training.trained_weights import is_sharded, whole
from retool_env.transcript import Transcript


@dataclass(frozen=True)
class Settings(ActorCriticSettings):
    """Settings of the training run: what the paper discloses, the others as in the recipes that follow it."""

    name: str = "ppo"
    steps: int = setting(
        400,
        "each one batch of rollouts, and the updates made with it; with --resume a run may be given more",
    )
    prompts: int = 1024
    rollouts: int = 1
    epochs: int = setting(1, "passes over a step's episodes")
    mini_batch: int = setting(512, "episodes an optimizer step, of all processes together")
    micro_batch: int = 8
    learning_rate: float = 1e-6
    critic_warmup: int = setting(20, "first steps, in which the critic alone learns")
    max_grad_norm: float = setting(1.0, "of the actor's gradient and of the critic's")
    gamma: float = setting(1.0, "discount of a token that the model wrote")
    lam: float = setting(1.0, "lambda of GAE")
    whiten: bool = setting(True, "normalise the advantages of a step's tokens")
    dual_clip: float = setting(10.0, "largest ratio that weighs a negative advantage; 0: none")
    value_clip: float = setting(0.5, "clip of a value's change in a step; 0: none")
    value_coefficient: float = setting(1.0, "of the critic's loss")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run PPO.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Go on where the run in that folder was.

    Returns:
        The folder of the trained model.

    Raises:
        SettingsError: If a setting is out of range or names nothing there is, a step's episodes
            can't be shared out, or a prompt does not fit the model.
        SandboxUnavailable: If the sandbox can't work here.
    """
    state = processes()
    check(settings, state.num_processes)
    with RolloutSession(settings, folder, resume) as run:
        if run.finished:
            return run.checkpoint
        for rate in ("learning_rate", "critic_learning_rate"):
            check_learning_rate(settings, run.model.num_parameters(), rate)
        run.begin("ppo")
        learner = Learner(settings, run.model)
        saved = first = learner.load(Path(run.point)) if run.point else 0
        run.bar.set_total(settings.steps, first)
        reporter, clock = run.open_reporter(run.trainer), Clock(run)
        rollouts = run.make_rollouts(
            Rollouts, learner.model, learner.accelerator.device, apart=is_sharded(learner.model)
        )
        run.resources.enter_context(run.stopping)
        part = settings.prompts // state.num_processes  # problems of this process
        for step in range(first, settings.steps):
            start = step * settings.prompts + state.process_index * part
            problems = run.ids[start : start + part]
            ids = [each for each in problems for _ in range(settings.rollouts)]
            try:
                rows, logged = collect(learner, rollouts, step, ids, run.tokenizer.eos_token_id)
            except RolloutsAbandoned:  # on all processes
                if run.stopping.agreed() and step > saved:
                    learner.save(run.trainer, step)
                break
            batch = Batch.of(rows, learner.accelerator.device)
            figures = pooled(gather_object([logged])) | learner.learn(batch, step)
            if step % settings.transcripts_every == 0:
                found = learner.with_logps(rows, batch)
                together(learner.accelerator, partial(run.write, found))
            if run.main:
                run.log({"step": step + 1, "seconds": clock.seconds(), **figures})
            reporter.log(step + 1, figures)
            run.bar.show(step + 1, figures)
            last = run.stopping.agreed() or step + 1 == settings.steps
            if settings.export_steps and (step + 1) % settings.export_steps == 0:
                run.export(learner, step + 1)
            # After the export, or a run that goes on from here would lack it.
            if last or (step + 1) % settings.save_steps == 0:
                learner.save(run.trainer, saved := step + 1)
            if last:
                break
        run.stopping.end()
        run.save(learner)
    return run.checkpoint


def check(settings: Settings, processes: int) -> None:
    """Check the numbers, and that the episodes can be shared out.

    Raises:
        SettingsError: Saying what to change.
    """
    check_policy(settings, processes)
    check_least(settings, {"epochs": 1, "mini_batch": 1})
    check_dtype(settings.dtype, settings.lora_rank)
    for name in ("learning_rate", "critic_learning_rate", "max_grad_norm"):
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


def collect(
    learner: Learner, rollouts: Rollouts, step: int, prompts: list[str], eos: int
) -> tuple[dict[str, list[Any]], dict[str, list[float]]]:
    """A step's episodes, one for each of the prompts, and figures of them.

    Raises:
        RolloutsAbandoned: If a process was to stop.
    """
    learner.model.train()
    logged: dict[str, list[float]] = defaultdict(list)
    rows = rollouts.collect(
        Step(
            number=step,
            batch=step,
            prompts=prompts,
            group=learner.settings.rollouts,
            model=learner.model,
            accelerator=learner.accelerator,
            temperature=learner.settings.temperature,
            eos_token_ids=[eos],
            log=lambda name, number: logged[name].append(number),
        )
    )
    # One for each episode; None for one that failed or was cut.
    rewards = episode_reward(rows["transcript"], lambda name, number: logged[name].append(number))
    logged["reward"] = [reward for reward in rewards if reward is not None]
    return rows, dict(logged)


class Learner(ActorCritic):
    """Actor and critic, and how a batch changes them."""

    settings: Settings

    def learn(self, batch: Batch, step: int) -> dict[str, float]:
        """What a step makes of its episodes.

        Each epoch takes them in another order. A minibatch has equally many of each process.

        Returns:
            Figures to log.
        """
        settings = self.settings
        self.actor.train()
        self.critic.train()
        # Here and below (B, T): a number for each token but an episode's first.
        values = self.values(batch)
        advantages, returns = gae(values, batch.rewards, batch.mask, settings.gamma, settings.lam)
        if settings.whiten:
            advantages = whiten(advantages, batch.mask, self.total)
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
            figures = weight_figures(self.total(weight_sums(weights, batch.mask)))
        explained = explained_variance(values, returns, batch.mask, self.total)
        size = settings.mini_batch // self.processes
        sums = Sums()
        self._logps = torch.full_like(batch.old_logps, torch.nan)
        for epoch in range(settings.epochs):
            order = np.random.default_rng((settings.seed, step, epoch)).permutation(len(batch.ids))
            for start in range(0, len(order), size):
                index = torch.from_numpy(order[start : start + size]).to(batch.ids.device)
                self.update(batch.take(index), sums, step >= settings.critic_warmup)
        figures |= sums.figures(self.total, self.accelerator.gather)
        if explained is not None:
            figures["critic/explained_variance"] = explained
        episodes = self.total(torch.stack([batch.mask.sum(), batch.mask.any(1).sum()]))
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

    def update(self, batch: Batch, sums: Sums, actor: bool = True) -> None:
        """One optimizer step with a minibatch: the critic's and, unless it is frozen, the actor's.

        The loss is a mean over the tokens that the model sampled, of the minibatch on all processes. Without one nothing
        changes, not even by the optimizers' momentum.
        """
        tokens = self.total(batch.mask.sum()).item()
        if not tokens:
            return
        # Gradients are averaged over processes, and this loss is not.
        scale = self.processes / tokens
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
        assert batch.advantages is not None  # `learn` made them
        settings, mask = self.settings, batch.mask
        logps, entropy = self.score(self.actor, rows)
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
            kl = k3(logps, self.reference_logps(rows), mask)
            loss = loss + settings.kl * kl.sum()
            sums.add(mask, kl=kl)
        sums.add(mask, entropy=entropy, **{"loss/policy": each, "clip_fraction": clipped})
        sums.distance.add(logps, batch.old_logps, mask)
        return loss

    def critic_loss(self, batch: Batch, rows: Packed, sums: Sums) -> torch.Tensor:
        """The critic's loss, summed over tokens."""
        assert batch.old_values is not None and batch.returns is not None  # `learn` made them
        values = self.critic(rows)
        clip = self.settings.value_clip or None
        each, clipped = value_loss(values, batch.old_values, batch.returns, batch.mask, clip)
        value = values.masked_fill(~batch.mask, 0.0)
        sums.add(
            batch.mask,
            **{"loss/value": each, "critic/clip_fraction": clipped, "critic/value": value},
        )
        return self.settings.value_coefficient * each.sum()
