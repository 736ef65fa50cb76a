"""Algorithms for runs of two processes of which one hangs, dies or is told to stop.

torchrun --nproc-per-node 2 -m agents tests/helpers/watched_runs.py:Waiting ...
    in its third step the second process samples without end, and the first one waits for it
accelerate launch ... -m agents tests/helpers/watched_runs.py:SlowSave ...
    the shards of its second checkpoint are never written completely
torchrun --nproc-per-node 2 -m agents tests/helpers/watched_runs.py:Passes ...
    one of the processes is told to stop between two passes of its third step

Each process writes its process id to `pid-<rank>` in the folder of all runs, and the file
`there-<rank>` once it is at the point that its class describes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import ExitStack, contextmanager
from unittest import mock

from torch.distributed.checkpoint import filesystem

from agents import grpo
from agents.base import watch
from agents.base.sharding import processes
from agents.base.stopping import StopCallback
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.training import rollouts


def note(folder, name, text=""):
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.part"
    part.write_text(str(text))
    part.replace(folder / name)


class Waiting:
    Settings = grpo.Settings
    beats = 0.5, 2.0, 4.0, 12.0, 12.0  # between signs of life; until an error, a warning, the end

    def train(self, given, folder, resume):
        runs, rank = folder.parent, processes().process_index
        note(runs, f"pid-{rank}", os.getpid())
        with ExitStack() as patches:
            names = ("BEAT", "SILENT", "WARN", "GONE", "GONE_AT_STOP")
            for name, seconds in zip(names, self.beats, strict=True):
                patches.enter_context(mock.patch.object(watch, f"{name}_SECONDS", seconds))
            if not resume:
                patches.enter_context(self.patched(runs, rank))
            return grpo.train(given, folder, resume)

    @contextmanager
    def patched(self, runs, rank):
        act, take = TransformersPolicy.act, rollouts.Rollouts._take

        async def acting(policy, *args):
            if policy.weight_version >= 2 and rank == 1:
                note(runs, "there-1")
                await asyncio.Event().wait()
            return await act(policy, *args)

        def taking(self, step, batch):
            sampled = take(self, step, batch)
            if step.batch == 2:
                note(runs, f"there-{rank}")
            return sampled

        with (
            mock.patch.object(TransformersPolicy, "act", acting),
            mock.patch.object(rollouts.Rollouts, "_take", taking),
        ):
            yield


class SlowSave(Waiting):
    @contextmanager
    def patched(self, runs, rank):
        write = filesystem.FileSystemWriter.write_data

        def writing(writer, *args):
            if "checkpoint-2" in str(writer.path):
                note(runs, f"there-{rank}")
                time.sleep(60)
            return write(writer, *args)

        with mock.patch.object(filesystem.FileSystemWriter, "write_data", writing):
            yield


class Passes(Waiting):
    @contextmanager
    def patched(self, runs, rank):
        end = StopCallback.on_substep_end

        def ending(callback, args, state, control, **more):
            if state.global_step == 2 and rank == 1:
                note(runs, "there-1")
                os.kill(os.getpid(), signal.SIGTERM)
            return end(callback, args, state, control, **more)

        with mock.patch.object(StopCallback, "on_substep_end", ending):
            yield
