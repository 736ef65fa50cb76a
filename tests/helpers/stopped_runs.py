"""Algorithms that receive a signal at a known moment, for tests with real processes.

python -m agents tests/helpers/stopped_runs.py:Sampling ...
    samples without end in its third step, until a signal from outside stops it
python -m agents tests/helpers/stopped_runs.py:Updating ...
    receives SIGTERM in its second update
torchrun --nproc-per-node 2 tests/helpers/stopped_runs.py FOLDER
    one of two processes receives a signal, during sampling and during an update
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from unittest import mock

from agents import grpo, ppo
from agents.base.sharding import processes
from helpers.small_runs import settings
from retool_env.rollout.transformers.policy import TransformersPolicy


def sampling_for_ever(step, also=lambda: None):
    """Let no turn end from this step's weights on."""
    act = TransformersPolicy.act

    async def acting(self, *args):
        if self.weight_version >= step:
            also()
            await asyncio.Event().wait()
        return await act(self, *args)

    return mock.patch.object(TransformersPolicy, "act", acting)


def told_in_update(step, number):
    """Send this process a signal in the PPO update of this step."""
    learn = ppo.Learner.learn

    def learning(self, batch, now):
        if now == step:
            os.kill(os.getpid(), number)
        return learn(self, batch, now)

    return mock.patch.object(ppo.Learner, "learn", learning)


class Sampling:
    Settings = grpo.Settings

    def train(self, given, folder, resume):
        with sampling_for_ever(2):
            return grpo.train(given, folder, resume)


class Updating:
    Settings = ppo.Settings

    def train(self, given, folder, resume):
        with told_in_update(1, signal.SIGTERM):
            return ppo.train(given, folder, resume)


def main(folder: Path) -> None:
    rank, found = processes().process_index, {}

    def tell_once(told=[]):  # noqa: B006
        if not told:
            told.append(os.kill(os.getpid(), signal.SIGINT))

    both = {"model": str(folder / "model"), "micro_batch": 4, "steps": 3}
    runs = {
        "grpo": (grpo, sampling_for_ever(1, tell_once)),
        "ppo": (ppo, told_in_update(1, signal.SIGTERM)),
    }
    for name, (module, patch) in runs.items():
        try:
            with patch if rank == 1 else mock.MagicMock():
                module.train(settings(name, **both), folder / name)
        except KeyboardInterrupt as stop:
            found[name] = stop.args
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
