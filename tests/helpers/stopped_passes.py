"""Runs that are stopped before a certain pass, and their comparison with a run that was not.

python -m agents tests/helpers/stopped_passes.py:Killed ...
    GRPO that receives SIGKILL before the pass whose number is in the variable KILL_AT
python -m agents tests/helpers/stopped_passes.py:KilledPPO ...
    PPO that does so
"""

from __future__ import annotations

import importlib
import os
import signal
from contextlib import contextmanager
from unittest import mock

import pytest

from agents import grpo, ppo
from helpers.small_runs import records
from retool_env.training.rollouts import Rollouts
from retool_env.transcript import read_transcripts


class Stop(Exception):
    """A crash in the middle of a run."""


def crash():
    raise Stop


@contextmanager
def before_pass(name, number, act=crash):
    """Act before a forward pass of the training, counted from the beginning of the run."""
    if number is None:
        yield
    elif name == "ppo":
        learn, loss, now = ppo.Learner.learn, ppo.Learner.actor_loss, [0]

        def learning(self, batch, step):
            chosen = self.settings
            parts = chosen.prompts * chosen.rollouts // chosen.micro_batch
            now[0] = step * chosen.epochs * parts
            return learn(self, batch, step)

        def losing(self, *given):
            if now[0] == number:
                act()
            now[0] += 1
            return loss(self, *given)

        with (
            mock.patch.object(ppo.Learner, "learn", learning),
            mock.patch.object(ppo.Learner, "actor_loss", losing),
        ):
            yield
    else:
        step = grpo.EngineGRPOTrainer.training_step

        def stepping(self, *given, **named):
            if self._step == number:
                act()
            return step(self, *given, **named)

        with mock.patch.object(grpo.EngineGRPOTrainer, "training_step", stepping):
            yield


@contextmanager
def counted():
    """The number of episodes that are sampled to their end while the block runs, in a list."""
    sample, count = Rollouts.sample, [0]

    async def sampling(self, problems, n, seed):
        sampled = await sample(self, problems, n, seed)
        count[0] += len(problems) * n
        return sampled

    with mock.patch.object(Rollouts, "sample", sampling):
        yield count


def train(name, settings, folder, resume=False, stop=None, act=crash):
    """Train until the end or the stop; returns whether the run came to its end."""
    with before_pass(name, stop, act):
        try:
            importlib.import_module(f"agents.{name}").train(settings, folder, resume)
        except (Stop, KeyboardInterrupt):
            return False
    return True


def timeless(record):
    """A line of `metrics.jsonl` without times."""
    return {k: v for k, v in record.items() if not ("seconds" in k or "time" in k or "wait" in k)}


def same(whole, cut, exact=True):
    """Assert that two runs are the same: all figures, and all transcripts in their order.

    Args:
        whole: The folder of the run that was not stopped.
        cut: The folder of the run that was stopped.
        exact: Whether the sampled tokens and the figures are the same. Problems and numbers of
            episodes always are.
    """
    ones, others = (list(map(timeless, records(folder))) for folder in (whole, cut))
    assert [r["step"] for r in ones] == [r["step"] for r in others]
    for one, other in zip(ones, others, strict=True) if exact else ():
        assert one.keys() == other.keys()
        for name, value in one.items():
            close = value if value is None else pytest.approx(value, 1e-4, 1e-6, nan_ok=True)
            assert other[name] == close, name
    ones, others = (list(read_transcripts(f / "transcripts.jsonl")) for f in (whole, cut))
    assert [t.problem.id for t in ones] == [t.problem.id for t in others]
    if not exact:
        return
    assert [t.trained_version for t in ones] == [t.trained_version for t in others]
    for one, other in zip(ones, others, strict=True):
        assert one.completion_ids == other.completion_ids
        for a, b in zip(one.spans, other.spans, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
            assert a.trained_logprobs == pytest.approx(b.trained_logprobs, abs=1e-4)


class Killed:
    Settings, name = grpo.Settings, "grpo"

    def train(self, given, folder, resume):
        number = int(os.environ["KILL_AT"]) if "KILL_AT" in os.environ else None
        with before_pass(self.name, number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            return importlib.import_module(f"agents.{self.name}").train(given, folder, resume)


class KilledPPO(Killed):
    Settings, name = ppo.Settings, "ppo"
