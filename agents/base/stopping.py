"""Stopping: Ctrl-C, and SIGTERM as clusters send it, while a run trains.

The first signal is a wish: rollouts under way are abandoned, an update under way is finished, the run saves what it can go on
from, and ends. A second one ends it at once. Of several processes it is enough that one was told: they agree after each
update, and on their rollouts (`EngineRollouts`).
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate.utils import gather
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from agents.base.records import seal
from agents.base.resuming import loading
from agents.base.sharding import processes
from retool_env.checkpoint_task import CheckpointTask
from retool_env.training.rollouts import RolloutsAbandoned

SAME_SECONDS = 1.0
"""A signal so soon after the first is the same: a launcher passes on what the terminal has sent to all."""

_SAID = (
    b"\nstopping: what is under way is ended or left, and the run saved; once more stops at once\n"
)


class Stopping:
    """Takes the two signals while it is entered, in the main thread."""

    def __init__(self) -> None:
        self._signal = self._agreed = 0
        self._when = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take) or signal.SIG_DFL
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether this process was told to stop, as far as it knows."""
        return bool(self._signal)

    def agreed(self) -> bool:
        """Whether any process was told to stop. All must call it."""
        state = processes()
        told = self._signal
        if state.num_processes > 1:
            told = int(gather(torch.tensor([told], device=state.device)).max())
        if told and not self._signal:
            self._signal, self._when = told, time.monotonic()
        self._agreed = told
        return bool(told)

    def end(self) -> None:
        """End the run if the processes agreed to.

        Raises:
            KeyboardInterrupt: With the signal's number.
        """
        if self._agreed:
            raise KeyboardInterrupt(self._agreed)

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._signal:
            self._signal, self._when = number, now
            os.write(2, _SAID)  # whoever was interrupted may be in the middle of a print
        elif now - self._when >= SAME_SECONDS:
            raise KeyboardInterrupt(number)


class _AtItsEnd(Exception):
    """A run goes on from the checkpoint of its last step."""


class StopCallback(TrainerCallback):
    """Lets a trainer of transformers stop, and save before it does.

    Args:
        task: What the model is trained on; it goes to `retool.json` in each of the trainer's checkpoints.
        stopping: Takes the signals while the trainer trains.
    """

    def __init__(self, task: CheckpointTask, stopping: Stopping) -> None:
        self.stopping = stopping
        self._task = task
        self._saved = 0
        self._read = True
        self._planned: int | None = None

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        """Called by the trainer. A run with another number of steps than before has the learning rates of that number."""
        self._saved = state.global_step
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        changed = self._planned not in (None, state.max_steps)
        if not (changed and isinstance(schedule, LambdaLR)):
            return
        before = [group["lr"] for group in optimizer.param_groups]
        # The next step's rate comes with the checkpoint, and is the old schedule's.
        pairs = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        rates = [base * share(schedule.last_epoch) for base, share in pairs]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates  # which is logged
        if rates != before and state.is_world_process_zero:
            print(
                f"the learning rate follows the schedule ({args.lr_scheduler_type.value}) of {state.max_steps} steps from here "
                f"on, no longer that of {self._planned}: it goes from {before[0]:.3g} to {rates[0]:.3g}",
                flush=True,
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer, which otherwise would make a step too many from a checkpoint of the last one."""
        self._read = True
        if state.global_step >= state.max_steps:
            raise _AtItsEnd

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer, on all processes."""
        self._saved = state.global_step
        processes().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._task.save(folder)
            seal(folder)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer, on all processes."""
        if self.stopping.agreed():
            control.should_save = state.global_step > self._saved
            control.should_training_stop = True

    def train(self, trainer: Any, point: str | None) -> None:
        """Train until the end or a stop.

        Args:
            trainer: Which has this callback.
            point: The checkpoint it goes on from, if any.

        Raises:
            KeyboardInterrupt: If it was stopped; see `Stopping.end`.
            SettingsError: If the checkpoint can't be read.
        """
        with self.stopping:
            try:
                self._train(trainer, point)
            except _AtItsEnd:  # on all processes
                trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
            except RolloutsAbandoned:  # on all processes, before anything of this step was learned
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
