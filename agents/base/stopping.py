"""Stopping: how a training run ends after Ctrl-C (SIGINT) or SIGTERM, which clusters send.

After the first signal the run abandons unfinished rollouts, finishes the current update, saves a
checkpoint and ends. A second signal ends the run at once. A signal to one of several processes is
enough: the processes agree after each update, and during rollouts (`EngineRollouts`).
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, override

import torch
from accelerate.utils import gather
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from agents.base.model_card import ModelCard
from agents.base.records import seal
from agents.base.resuming import loading
from agents.base.sharding import processes
from retool_env.checkpoint_task import CheckpointTask
from retool_env.training.rollouts import RolloutsAbandoned

SAME_SECONDS = 1.0
"""A second signal within this time is ignored.

A terminal signals every process, and a launcher forwards the signal to its processes once more.
"""

_NOTICE = (
    b"\nstopping: the run finishes its update or abandons its rollouts, and saves; a second "
    b"signal stops it at once\n"
)


class Stopping:
    """Handles SIGINT and SIGTERM in a `with` block, if the block runs in the main thread."""

    def __init__(self) -> None:
        self._signal = self._agreed = 0
        self._when = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle) or signal.SIG_DFL
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether this process received a signal, or learned of it in `agreed`."""
        return bool(self._signal)

    def agreed(self) -> bool:
        """Whether any process received a signal. All processes call this method together."""
        state = processes()
        number = self._signal
        if state.num_processes > 1:
            number = int(gather(torch.tensor([number], device=state.device)).max())
        if number and not self._signal:
            self._signal, self._when = number, time.monotonic()
        self._agreed = number
        return bool(number)

    def end(self) -> None:
        """End the run if the processes agreed to stop.

        Raises:
            KeyboardInterrupt: With the number of the signal, if they agreed.
        """
        if self._agreed:
            raise KeyboardInterrupt(self._agreed)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._signal:
            self._signal, self._when = number, now
            os.write(2, _NOTICE)  # not `print`, which the signal may have interrupted
        elif now - self._when >= SAME_SECONDS:
            raise KeyboardInterrupt(number)


class _AtItsEnd(Exception):
    """The trainer was resumed at the checkpoint of its last step, so it has nothing to do."""


class StopCallback(TrainerCallback):
    """Stops a trainer of transformers after a signal, and saves a checkpoint before.

    Args:
        task: The model's task. It is saved as `retool.json` in each of the trainer's checkpoints.
        stopping: The handler of the signals. It is active while the trainer trains.
        card: The model card of each checkpoint, in place of the trainer's own.
    """

    def __init__(
        self, task: CheckpointTask, stopping: Stopping, card: ModelCard | None = None
    ) -> None:
        self.stopping = stopping
        self._task = task
        self._card = card
        self._saved = 0
        self._read = True
        self._planned: int | None = None

    @override
    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        """Set the learning rates for a new number of steps, if the run's length was changed."""
        self._saved = state.global_step
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        changed = self._planned not in (None, state.max_steps)
        if not (changed and isinstance(schedule, LambdaLR)):
            return
        before = [group["lr"] for group in optimizer.param_groups]
        # The checkpoint holds the next step's rate, by the old schedule.
        pairs = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        rates = [base * share(schedule.last_epoch) for base, share in pairs]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates  # the logged rates
        if rates != before and state.is_world_process_zero:
            print(
                f"the learning rate changes from {before[0]:.3g} to {rates[0]:.3g}: from here on "
                f"the schedule ({args.lr_scheduler_type.value}) has {state.max_steps} steps "
                f"instead of {self._planned}",
                flush=True,
            )

    @override
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the training if the checkpoint is of the last step.

        Without this the trainer would make one step too many.
        """
        self._read = True
        if state.global_step >= state.max_steps:
            raise _AtItsEnd

    @override
    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Complete the trainer's checkpoint with the task and the seal. All processes call this."""
        self._saved = state.global_step
        processes().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._task.save(folder)
            if self._card is not None:
                self._card.save(folder, state.global_step)
                self._card.save(Path(args.output_dir), state.global_step, whole=folder)
            seal(folder)

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let the trainer save and stop if a process received a signal. All processes call this."""
        if self.stopping.agreed():
            control.should_save = state.global_step > self._saved
            control.should_training_stop = True

    def train(self, trainer: Any, point: str | None) -> None:
        """Train until the last step or a signal.

        Args:
            trainer: The trainer, which has this callback.
            point: The folder of the checkpoint to resume from; `None` starts at the beginning.

        Raises:
            KeyboardInterrupt: If a signal stopped the run; see `Stopping.end`.
            SettingsError: If the checkpoint can't be read.
        """
        with self.stopping:
            try:
                self._train(trainer, point)
            except _AtItsEnd:  # on all processes
                trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
            except RolloutsAbandoned:  # on all processes, before the step's update
                self.stopping.agreed()
                if trainer.state.global_step > self._saved:
                    trainer._save_checkpoint(trainer.model_wrapped, trial=None)
                    self.on_save(trainer.args, trainer.state, trainer.control)
                trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        self.stopping.end()

    def _train(self, trainer: Any, point: str | None) -> None:
        self._read = point is None
        if point is not None:
            state = Path(point, "trainer_state.json").read_text(encoding="utf-8")
            self._planned = json.loads(state).get("max_steps")
        try:
            trainer.train(resume_from_checkpoint=point)
        except Exception:
            if self._read:
                raise
            with loading(Path(str(point))):
                raise
