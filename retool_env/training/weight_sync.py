"""WeightSync: the weights of a model in training on their way to the policy of every process."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from retool_env.rollout.weights import Adapter, Parts, Weights
from retool_env.servers.background import BackgroundLoop
from retool_env.training.processes import everywhere, together
from retool_env.training.sampling_policy import own_model, shares_servers
from retool_env.training.step import Step
from retool_env.training.trained_weights import is_sharded, trained_adapter, trained_weights


class WeightSync:
    """Gives the weights of each step to the policy of every process, once.

    Args:
        policy: The policy of this process.
        loop: The event loop in which the policy is called.
    """

    def __init__(self, policy: Any, loop: BackgroundLoop) -> None:
        self._policy = policy
        self._loop = loop
        self._synced = -1

    def sync(self, step: Step) -> None:
        """Let the policy of every process serve the step's weights. All processes must call it.

        Args:
            step: The trainer's state.

        Raises:
            RuntimeError: If another process has an error.
        """
        if step.number == self._synced:
            return
        policy, accelerator = self._policy, step.accelerator
        main, shared = accelerator.is_main_process, shares_servers(policy, step)
        if shared and policy.writes_parts:
            parts = Parts(_agreed_name(step), accelerator.num_processes)
            together(accelerator, lambda: self._write_part(step, parts))
            self._hold(step)
            together(accelerator, lambda: self._update(step, parts) if main else None)
        else:
            if shared:
                self._hold(step)
            together(accelerator, lambda: self._load(step, leads=main or not shared))
        if shared:
            follow = policy.follow
            together(accelerator, lambda: main or self._loop.run_blocking(follow(step.number)))
        self._synced = step.number

    def _hold(self, step: Step) -> None:
        """Let all policies hold their turns, and then cut them.

        A policy's cuts also end the turns of the others, which should know of the update by then.
        """
        for cut in (False, True):
            hold = functools.partial(self._policy.hold, cut)
            together(step.accelerator, functools.partial(self._run, hold))

    def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._loop.run_blocking(work())

    def _load(self, step: Step, leads: bool) -> None:
        if own_model(self._policy, step):
            self._update(step, None)
            return
        with self._gathered_by_all(step) as weights:
            if leads:
                self._update(step, weights)

    def _write_part(self, step: Step, parts: Parts) -> None:
        with self._gathered_by_all(step) as weights:
            self._policy.write_part(parts, weights, step.accelerator.process_index)

    def _update(self, step: Step, weights: Any) -> None:
        self._loop.run_blocking(self._policy.update_weights(step.number, weights))

    @contextmanager
    def _gathered_by_all(self, step: Step) -> Iterator[Weights | Adapter]:
        """The step's weights, for a `with` block that every process enters.

        At its end the rest of a sharded model is gathered: other processes may still wait for it.
        """
        dtype = self._policy.weights_dtype
        weights: Weights | Adapter
        if self._policy.takes_adapter:
            weights = trained_adapter(step.model)
            tensors = weights.tensors
        else:
            weights = tensors = trained_weights(step.model, dtype and getattr(torch, dtype))
        try:
            yield weights
        finally:
            if is_sharded(step.model):
                for _ in tensors:
                    pass


def _agreed_name(step: Step) -> str:
    """A name for the step's weights that no other update has, the same on every process."""
    return f"{step.number}-{everywhere(secrets.token_hex(9))[0]}"
