"""PPO with a critic (arXiv 1707.06347), the algorithm of ReTool's paper, on accelerate.

A step consists of rollouts, values, advantages, updates, log and save, in this order. The engine's
log-probs are the old log-probs, so that the ratio also corrects the mismatch between engine and
trained model. Prompt and interpreter tokens have no loss and no advantage, and the recursion of the
advantages skips them.

The critic is a separate model: the initial model's trunk under a new scalar head, whose first
values are 0. A trunk shared with the actor would save memory, but the critic could not warm up
alone: its loss would change the policy.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from agents.advantages import explained_variance, gae, whiten
from agents.base.actor_critic import ActorCritic, ActorCriticSettings
from agents.base.fields import check_policy_settings
from agents.base.figures import Sums, pooled
from agents.base.minibatch import Batch
from agents.base.model import check_dtype, check_learning_rate
from agents.base.run import Clock
from agents.base.selection import CleanRollouts
from agents.base.session import RolloutSession
from agents.base.settings import SettingsError, check_least, largest_divisor, setting
from agents.base.sharding import processes
from agents.losses import Mean, k3, ppo_policy_loss, token_weights, value_loss
from agents.rewards import overlong_bonus, reward_functions
from retool_env.training.correction import importance_weights, weight_figures, weight_sums
from retool_env.training.exchange import one_pass
from retool_env.training.packing import Packed
from retool_env.training.processes import RolloutsAbandoned, phase, together
from retool_env.training.rollouts import Rollouts
from retool_env.training.step import Step
from retool_env.training.trained_weights import is_sharded, whole


@dataclass(frozen=True)
class Settings(ActorCriticSettings):
    """Settings of the training run: the paper's where it discloses them, else common recipes'."""

    name: str = "ppo"
    steps: int = setting(
        400, "batches of rollouts, each with its updates; with --resume a run may be given more"
    )
    prompts: int = 1024
    rollouts: int = 1
    epochs: int = setting(1, "passes over a step's episodes")
    mini_batch: int = setting(512, "episodes an optimizer step, of all processes together")
    micro_batch: int = 8
    learning_rate: float = 1e-6
    critic_warmup: int = setting(20, "number of first steps in which only the critic learns")
    max_grad_norm: float = setting(1.0, "largest norm of the actor's and of the critic's gradient")
    gamma: float = setting(1.0, "discount of a token that the model wrote")
    lam: float = setting(1.0, "lambda of GAE")
    whiten: bool = setting(True, "normalise the advantages of a step's tokens")
    dual_clip: float = setting(10.0, "largest ratio that weighs a negative advantage; 0: no clip")
    value_clip: float = setting(0.5, "largest change of a value in a step; 0: no clip")
    value_coefficient: float = setting(1.0, "factor of the critic's loss")
    loss: Mean = setting(
        "dapo",
        "the mean that both losses take, by TRL's names: dapo, over tokens; grpo, over an episode, "
        "then over episodes; dr_grpo, the sum over tokens by the token budget; luspo, the sum over "
        "an episode, then the mean over episodes",
    )
    overlong: float = setting(
        0.0, "last share of the token budget, in which a response is punished; 0: off"
    )


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run PPO.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Whether to continue the run in the folder.

    Returns:
        The folder of the trained model.

    Raises:
        SettingsError: If a setting is out of range or names an unknown thing, a step's episodes
            can't be divided, or a prompt does not fit the model.
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
        learner.leave = run.stopping.agreed
        learner.budget = run.rules.max_tokens or 0
        first = learner.load(Path(run.point)) if run.point else 0
        run.saving.resume(first)
        run.bar.set_total(settings.steps, first)
        reporter, clock = run.open_reporter(run.trainer), Clock(run)
        rollouts = run.make_rollouts(
            partial(CleanRollouts, settings.spare) if settings.spare > 1 else Rollouts,
            learner.model,
            learner.accelerator.device,
            sharded=is_sharded(learner.model),
        )
        held_out = run.make_held_out(rollouts, reporter.evaluation)
        part = settings.prompts // state.num_processes  # the number of this process's problems

        def prompts(step: int) -> list[str] | None:
            if step >= settings.steps:
                return None
            start = step * settings.prompts + state.process_index * part
            problems = run.ids[start : start + part]
            return [name for name in problems for _ in range(settings.rollouts)]

        for step in range(first, settings.steps):
            try:
                held_out.evaluate(step, learner.model, learner.accelerator)
                eos = run.tokenizer.eos_token_id
                rows, rewards, logged = collect(learner, rollouts, step, prompts, eos)
                batch = Batch.of(rows, learner.accelerator.device, rewards)
                with phase("training"):
                    learned = learner.learn(batch, step)
            except RolloutsAbandoned:  # on all processes
                if run.stopping.agreed() and step > run.saving.begun:
                    # After an end between two passes an optimizer would not make its first state.
                    learner.accelerator.gradient_state._set_sync_gradients(True)
                    learner.save(run.saving, step)
                break
            run.saving.check(learner.model, step + 1)
            run.saving.check(learner.critic, step + 1)
            figures = pooled(gather_object([logged])) | learned
            if step % settings.transcripts_every == 0:
                transcripts = learner.with_logps(rows, batch)
                together(learner.accelerator, partial(run.write, transcripts))
            if run.main:
                run.log({"step": step + 1, "seconds": clock.seconds(), **figures})
            reporter.log(step + 1, figures)
            run.bar.show(step + 1, figures)
            last = run.stopping.agreed() or step + 1 == settings.steps
            if settings.export_steps and (step + 1) % settings.export_steps == 0:
                run.export(learner, step + 1)
            # Saved after the export, so that a run which continues from here has the export.
            if last or (step + 1) % settings.save_steps == 0:
                learner.save(run.saving, step + 1)
            if last:
                break
        held_out.finish(settings.steps, learner.model, learner.accelerator)
        run.saving.wait()
        run.stopping.end()
        run.save(learner)
    return run.checkpoint


def check(settings: Settings, processes: int) -> None:
    """Check the numbers, and that a step's episodes can be divided among processes.

    Args:
        settings: The run's settings.
        processes: Number of processes of the run.

    Raises:
        SettingsError: If a number is out of range, or the episodes can't be divided. The text says
            what to change.
    """
    check_policy_settings(settings, processes)
    check_least(settings, {"epochs": 1, "mini_batch": 1})
    overlong_bonus(settings.overlong)
    for name, off in (("resample", 0), ("spare", 1.0)):
        if settings.rollouts == 1 and getattr(settings, name) > off:
            raise SettingsError(
                f"{name}={getattr(settings, name)} compares the rollouts of a problem, and "
                f"rollouts=1 samples one: take rollouts of at least 2, or leave {name} out"
            )
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
            f"dual_clip={settings.dual_clip} must be above 1 + clip_high, or 0 for no clip"
        )
    if settings.critic_warmup >= settings.steps:
        raise SettingsError(
            f"critic_warmup={settings.critic_warmup} must be below steps={settings.steps}, or the "
            "actor never learns"
        )
    episodes = settings.prompts * settings.rollouts
    if episodes % settings.mini_batch or settings.mini_batch % processes:
        better = processes * largest_divisor(
            episodes // processes, max(1, settings.mini_batch // processes)
        )
        raise SettingsError(
            f"mini_batch={settings.mini_batch} does not divide the prompts * rollouts = {episodes} "
            "episodes of a step into updates with equally many episodes of each process: take "
            f"mini_batch={better}"
        )
    part = settings.mini_batch // processes
    if not settings.tokens and part % settings.micro_batch:
        several = f" * {processes} processes" if processes > 1 else ""
        raise SettingsError(
            f"mini_batch={settings.mini_batch} is not divided by "
            f"micro_batch={settings.micro_batch}{several}: take "
            f"micro_batch={largest_divisor(part, settings.micro_batch)}"
        )


def collect(
    learner: Learner,
    rollouts: Rollouts,
    step: int,
    prompts: Callable[[int], list[str] | None],
    eos: int,
) -> tuple[dict[str, list[Any]], list[float | None], dict[str, list[float]]]:
    """Sample a step's episodes, one for each prompt.

    Args:
        learner: The learner, with the model to sample from.
        rollouts: The rollouts of this process.
        step: The step's number.
        prompts: Returns the ids of this process's problems in a step, each repeated for its
            rollouts, side by side; `None` after the last step.
        eos: Id of the end-of-sequence token.

    Returns:
        The rows of `Rollouts.collect`, the episodes' rewards (`None` for an episode that is not
        trained on), and the figures to log, by name.

    Raises:
        RolloutsAbandoned: If a process was asked to stop.
    """
    learner.model.train()
    settings, logged = learner.settings, defaultdict[str, list[float]](list)
    asked = prompts(step)
    assert asked is not None  # the run has this step

    def log(name: str, number: float) -> None:
        logged[name].append(number)

    rows = rollouts.collect(
        Step(
            number=step,
            batch=step,
            prompts=asked,
            group=settings.rollouts,
            model=learner.model,
            accelerator=learner.accelerator,
            temperature=settings.temperature,
            eos_token_ids=[eos],
            log=log,
            coming=prompts,
        )
    )
    found = [
        function(transcript=rows["transcript"], log_metric=log, untrained=rows["untrained"])
        for function in reward_functions(overlong_bonus(settings.overlong), learner.budget)
    ]
    if len(found) > 1:
        logged["rewards/episode_bonus/mean"] = [bonus for bonus in found[1] if bonus is not None]
    # Of an episode that failed or was cut the parts are None.
    rewards = [None if None in parts else sum(parts) for parts in zip(*found, strict=True)]
    logged["reward"] = [reward for reward in rewards if reward is not None]
    return rows, rewards, dict(logged)


class Learner(ActorCritic):
    """Actor and critic, with the updates that a batch makes to them."""

    settings: Settings
    leave: Callable[[], bool] = staticmethod(lambda: False)
    """Asked between two passes before a step's first update; if it returns `True`, the step is
    abandoned. All processes call it together."""
    budget = 0
    """Token budget of a response, which `loss=dr_grpo` divides by."""
    _updated = False

    def learn(self, batch: Batch, step: int) -> dict[str, float]:
        """Update actor and critic with a step's episodes.

        Values, returns and advantages are computed here with the newest critic, also for a batch
        that was sampled ahead. Each epoch takes the episodes in another order. A minibatch has
        equally many episodes of each process.

        Args:
            batch: The episodes of this process.
            step: The step's number.

        Returns:
            The figures to log, by name.

        Raises:
            RolloutsAbandoned: If `leave` returned `True`. Then no weight has changed.
        """
        settings = self.settings
        self._updated = False
        self.actor.train()
        self.critic.train()
        # Shapes here and below are (B, T): one number a token, without an episode's first token.
        values = self.values(batch)
        advantages, returns = gae(values, batch.rewards, batch.mask, settings.gamma, settings.lam)
        if settings.whiten:
            advantages = whiten(advantages, batch.mask, self.total)
        batch = dataclasses.replace(
            batch, old_values=values, advantages=advantages, returns=returns
        )
        figures = {}
        if settings.correction != "ratio":
            logps = self.logps(batch)
            kind, cap = settings.correction, settings.correction_cap
            bounds = settings.correction_low, settings.correction_high
            weights = importance_weights(logps, batch.old_logps, batch.mask, kind, cap, bounds)
            batch = dataclasses.replace(batch, own_logps=logps, weights=weights)
            figures = weight_figures(self.total(weight_sums(weights, batch.mask)))
        explained = explained_variance(values, returns, batch.mask, self.total)
        size = settings.mini_batch // self.processes
        sums = Sums()
        self.first_logps = torch.full_like(batch.old_logps, torch.nan)
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

    def update(self, batch: Batch, sums: Sums, actor: bool = True) -> None:
        """Make one optimizer step of the critic, and one of the actor unless it is frozen.

        The loss is a mean over the minibatch on all processes, see `token_weights`. If there is no
        sampled token, nothing changes, not even by the optimizers' momentum.

        Args:
            batch: The part of the minibatch on this process.
            sums: The sums for the step's figures, to which the update adds.
            actor: Whether the actor is updated.
        """
        counts = torch.stack([batch.mask.sum(), batch.mask.any(1).sum()])
        tokens, episodes = self.total(counts).tolist()
        if not tokens:
            return
        shares = token_weights(batch.mask, tokens, episodes, self.settings.loss, self.budget)
        # Gradients are averaged over processes, but this loss is divided by the counts of all.
        batch = dataclasses.replace(batch, shares=self.processes * shares)
        passes, logps = self.passes(batch), []
        for number, part in enumerate(passes.parts):
            last = number + 1 == len(passes.parts)
            with one_pass(self.accelerator, last, self.actor, self.critic):
                rows = self.rows(part)
                with torch.set_grad_enabled(actor):
                    loss, scored = self.actor_loss(part, rows, sums)
                if actor:
                    self.accelerator.backward(loss)
                self.accelerator.backward(self.critic_loss(part, rows, sums))
                logps.append(scored)
            if not last and not self._updated and self.leave():
                raise RolloutsAbandoned("the step was abandoned")
        self.keep_logps(batch, passes.back(logps))
        trained = [("critic", self.critic, self.critic_optimizer)]
        if actor:
            trained.append(("actor", self.actor, self.actor_optimizer))
        for name, model, optimizer in trained:
            self.accelerator.unscale_gradients(optimizer)
            # accelerate's function compares parameters with all models' parameters, one by one.
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.settings.max_grad_norm)
            sums.norm(name, whole(norm))
            optimizer.step()
            optimizer.zero_grad()
        self._updated = True

    def actor_loss(
        self, batch: Batch, rows: Packed, sums: Sums
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The actor's loss: policy, KL and entropy terms, as a weighted sum over tokens.

        Args:
            batch: A micro batch.
            rows: The same episodes as packed rows.
            sums: The sums for the step's figures, to which the loss adds.

        Returns:
            The loss, and the log-probs of the pass without their graph, shape `(B, T)`.
        """
        assert batch.advantages is not None and batch.shares is not None  # `learn` made them
        settings, mask = self.settings, batch.mask
        logps, entropy = self.score(self.actor, rows)
        policy, clipped = ppo_policy_loss(
            logps,
            batch.old_logps if batch.own_logps is None else batch.own_logps,
            batch.advantages,
            mask,
            settings.clip_low,
            settings.clip_high,
            settings.dual_clip or None,
        )
        if batch.weights is not None:
            policy = policy * batch.weights
        entropy = entropy.masked_fill(~mask, 0.0)
        loss = policy - settings.entropy * entropy if settings.entropy else policy
        if settings.kl:
            kl = k3(logps, self.reference_logps(rows), mask)
            loss = loss + settings.kl * kl
            sums.add(mask, kl=kl)
        sums.add(mask, entropy=entropy, **{"loss/policy": policy, "clip_fraction": clipped})
        sums.distance.add(logps, batch.old_logps, mask)
        return (loss.sum(1) * batch.shares).sum(), logps.detach().float()

    def critic_loss(self, batch: Batch, rows: Packed, sums: Sums) -> torch.Tensor:
        """The critic's loss, as a weighted sum over tokens.

        Args:
            batch: A micro batch.
            rows: The same episodes as packed rows.
            sums: The sums for the step's figures, to which the loss adds.
        """
        assert batch.old_values is not None and batch.returns is not None  # `learn` made them
        assert batch.shares is not None  # `update` made them
        values = self.critic(rows)
        clip = self.settings.value_clip or None
        loss, clipped = value_loss(values, batch.old_values, batch.returns, batch.mask, clip)
        figures = {"loss/value": loss, "critic/clip_fraction": clipped}
        sums.add(batch.mask, **figures, **{"critic/value": values.masked_fill(~batch.mask, 0.0)})
        return self.settings.value_coefficient * (loss.sum(1) * batch.shares).sum()
