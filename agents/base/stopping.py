"""Stopping: how a training run ends after Ctrl-C (SIGINT) or SIGTERM, which clusters send.

A session handles the signals from the start of its run to its end. After the first signal the run
abandons unfinished rollouts, or the current step between two of its passes, saves a checkpoint of
the last whole step and ends. Outside the training it ends at its next `Stopping.check`, and a run
that saves its model finishes. A second signal ends the run at once.

A signal to one of several processes is enough: the others learn of it from `watch.Watch`, and all
agree after each pass and step, and during rollouts (`EngineRollouts`). A run inside another one, a
stage, hands a signal that it did not act on to the outer run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, override

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from agents.base.model_card import ModelCard
from agents.base.resuming import loading
from agents.base.saving import Saving
from retool_env.checkpoint_task import CheckpointTask
from retool_env.rollout.engine import run_blocking
from retool_env.training.processes import RolloutsAbandoned, everywhere, phase

SAME_SECONDS = 1.0
"""A second signal within this time is ignored.

A terminal signals every process, and a launcher forwards the signal to its processes once more.
"""

GRACE_SECONDS = 5.0
"""After a second signal, a process that hangs in a collective ends after this time."""

POLL_SECONDS = 0.2
"""Seconds between two checks of `Stopping.run` whether the run is to stop."""

_SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
_NOTICE = (
    b"\nstopping: the run keeps what it has done, and ends; a second signal stops it at once\n"
)
_LOADERS = (
    *("_load_from_checkpoint", "_load_optimizer_and_scheduler", "_load_scaler"),
    "_load_rng_state",
)
"""The methods with which a trainer of transformers reads a checkpoint."""
_current: Stopping | None = None
"""The handler of the signals that is active, if there is one."""


class Stopped(KeyboardInterrupt):
    """A signal stopped the run in order: its last whole step is saved, if there is one."""


class Stopping:
    """Handles SIGINT and SIGTERM in a `with` block, if the block runs in the main thread.

    Python's own handlers do not run while the main thread waits in a collective. So a thread reads
    the numbers of the signals from a socket, to which the interpreter writes them at once
    (`signal.set_wakeup_fd`).
    """

    def __init__(self) -> None:
        self._signal = self._second = self._agreed = 0
        self._when = 0.0
        self._received = False
        """Whether this process itself received a signal, not only another process."""
        self._lock = threading.RLock()  # the handler may interrupt itself
        self._before: dict[int, Any] = {}
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._outer: Stopping | None = None
        self._shielded = self._interrupted = False
        self.last_words: Callable[[int], object] = lambda number: None
        """Called with the signal's number if a second signal must end a process that hangs."""

    def __enter__(self) -> Stopping:
        global _current
        if self._sockets is not None:
            raise RuntimeError("the session already notices signals: don't enter its stopping")
        if threading.current_thread() is threading.main_thread():
            self._outer, _current = _current, self
            self._sockets = reader, writer = socket.socketpair()
            for end in self._sockets:
                end.setblocking(False)
            self._wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._handle) or signal.SIG_DFL
            threading.Thread(target=self._listen, args=(reader,), daemon=True).start()
            if self._outer is not None and self._outer.asked():
                self._take(self._outer)
        return self

    def __exit__(self, *error: object) -> None:
        global _current
        if self._sockets is None:
            return
        # In this order, so that a signal in between is read here or by the outer handler.
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        reader, writer = self._sockets
        self._read(reader)
        writer.close()  # the thread reads the end, and closes its own
        self._sockets = None
        _current = self._outer
        if self._outer is not None and self._signal:
            self._outer._take(self)

    def asked(self) -> bool:
        """Whether a process of the run received a signal, as far as this process knows."""
        return bool(self._signal)

    @property
    def number(self) -> int:
        """The number of the signal of `asked`; 0 without one."""
        return self._signal

    def tell(self, number: int) -> None:
        """Say that another process received a signal.

        The first signal to this process is then no second one: a scheduler may signal the machines
        of a run one after another.

        Args:
            number: The signal's number.
        """
        with self._lock:
            if not self._signal:
                self._signal, self._when = number, time.monotonic()

    def _take(self, other: Stopping) -> None:
        """Take the signal of another handler of this process."""
        self.tell(other._signal)
        self._received = self._received or other._received

    def agreed(self) -> bool:
        """Whether any process received a signal. All processes call this method together."""
        self._agreed = max(everywhere(self._signal))
        if self._agreed:
            self.tell(self._agreed)
        return bool(self._agreed)

    def end(self) -> None:
        """End the run if the processes agreed to stop.

        Raises:
            Stopped: With the number of the signal, if they agreed.
        """
        if self._agreed:
            raise Stopped(self._agreed)

    def check(self) -> None:
        """End the run if any process received a signal. All processes call this method together.

        Raises:
            Stopped: With the number of the signal, if there was one.
        """
        self.agreed()
        self.end()

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, or cancel it once a process received a signal.

        Args:
            work: The coroutine.

        Raises:
            RolloutsAbandoned: If the coroutine was cancelled. The other processes may not know it
                yet; see `together`.
        """
        return run_blocking(self._until_asked(work))

    async def _until_asked[T](self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        while not task.done():
            if self.asked():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                raise RolloutsAbandoned("the rollouts were abandoned")
            await asyncio.wait({task}, timeout=POLL_SECONDS)
        return task.result()

    @contextlib.contextmanager
    def shielded(self) -> Iterator[None]:
        """While the block runs, a second signal has no effect."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._sockets is not None:
            self._read(self._sockets[0])
        if self._second and not self._shielded:
            self._interrupted = True
            raise KeyboardInterrupt(self._second)

    @property
    def _leaving(self) -> bool:
        """Whether the main thread ends the run, so that it does not hang."""
        return self._shielded or self._interrupted

    def _listen(self, reader: socket.socket) -> None:
        with reader:
            while self._read(reader):
                grace = GRACE_SECONDS if self._second and not self._leaving else None
                if not select.select([reader], [], [], grace)[0] and not self._leaving:
                    # The main thread hangs, so that Python's handler can't end the process.
                    each: Stopping | None = self
                    while each is not None:
                        each.last_words(self._second)
                        each = each._outer
                    os._exit(128 + self._second)

    def _read(self, reader: socket.socket) -> bool:
        """Note the signals that have arrived. Return whether more may come."""
        with self._lock:
            try:
                numbers = reader.recv(4096)
            except BlockingIOError:
                return True
            for number in numbers:
                if number not in _SIGNALS:
                    continue
                now = time.monotonic()
                if not self._received:
                    if not self._signal:
                        os.write(2, _NOTICE)  # not `print`, which the signal may have interrupted
                    self._signal, self._when = self._signal or number, now
                    self._received = True
                elif now - self._when >= SAME_SECONDS:
                    self._second = number
            return bool(numbers)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """While the block runs, SIGINT and SIGTERM have no effect, if it runs in the main thread."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            before[number] = signal.signal(number, signal.SIG_IGN) or signal.SIG_DFL
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _AtItsEnd(Exception):
    """The trainer was resumed at the checkpoint of its last step, so it has nothing to do."""


class StopCallback(TrainerCallback):
    """Stops a trainer of transformers after a signal, and writes its checkpoints.

    Args:
        task: The model's task. It is saved as `retool.json` in each of the trainer's checkpoints.
        stopping: The handler of the signals, which the run's session has made active.
        saving: Writes the checkpoints. It keeps as many as the trainer's `save_total_limit` says.
        card: The model card of each checkpoint, in place of the trainer's own.
    """

    def __init__(
        self,
        task: CheckpointTask,
        stopping: Stopping,
        saving: Saving,
        card: ModelCard | None = None,
    ) -> None:
        self.stopping = stopping
        self.saving = saving
        self._task = task
        self._card = card
        self._random: list[Any] = []
        self._tokens = 0
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
        self.saving.resume(state.global_step)
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
        self._random = [get() for get, _ in _random_states()]
        self._tokens = state.num_input_tokens_seen
        if state.global_step >= state.max_steps:
            raise _AtItsEnd

    @override
    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Abandon the step if a process received a signal. All processes call this.

        No weight has changed since the last whole step, and a resumed run makes this step anew.

        Raises:
            RolloutsAbandoned: If a process received a signal.
        """
        if self.stopping.agreed():
            raise RolloutsAbandoned("the step was abandoned")

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Let the trainer save and stop if a process received a signal. All processes call this.

        Raises:
            NotFinite: If a trained weight is NaN or infinite, before the trainer saves it.
        """
        self.saving.check(model, state.global_step)
        if self.stopping.agreed():
            control.should_save = state.global_step > self.saving.begun
            control.should_training_stop = True

    def train(self, trainer: Any, point: str | None) -> None:
        """Train until the last step or a signal.

        Args:
            trainer: The trainer, which has this callback.
            point: The folder of the checkpoint to resume from; `None` starts at the beginning.

        Raises:
            Stopped: If a signal stopped the run; see `Stopping.end`.
            SettingsError: If the checkpoint can't be read.
        """
        self._take_saving(trainer)
        try:
            with phase("training"):
                self._train(trainer, point)
        except _AtItsEnd:  # on all processes
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        except RolloutsAbandoned:  # on all processes, before the step's update
            self.stopping.agreed()
            # After an end between two passes the optimizer would not load its state.
            trainer.accelerator.gradient_state._set_sync_gradients(True)
            if trainer.state.global_step > self.saving.begun:
                for (_, restore), state in zip(_random_states(), self._random, strict=True):
                    restore(state)
                trainer.state.num_input_tokens_seen = self._tokens  # the step is made anew
                trainer._save_checkpoint(trainer.model_wrapped, trial=None)
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        self.saving.wait()
        self.stopping.end()

    def _take_saving(self, trainer: Any) -> None:
        """Let `saving` complete the trainer's checkpoints, and delete the older ones."""
        save = trainer._save_checkpoint

        def save_checkpoint(model: Any, trial: Any) -> None:
            step = trainer.state.global_step
            with self.saving.checkpoint(step) as folder:
                save(model, trial)
                if trainer.is_world_process_zero():
                    self._task.save(folder)
                    if self._card is not None:
                        self._card.save(folder, step)
                        self._card.save(folder.parent, step, whole=folder)

        trainer._save_checkpoint = save_checkpoint
        self.saving.keep = trainer.args.save_total_limit or None
        trainer.args.save_total_limit = None  # the trainer would delete before the save is complete

    def _train(self, trainer: Any, point: str | None) -> None:
        if point is not None:
            state = Path(point, "trainer_state.json").read_text(encoding="utf-8")
            self._planned = json.loads(state).get("max_steps")
            # Not the whole start: an error of a callback, as of a tracker, says nothing about the
            # checkpoint.
            for name in _LOADERS:
                setattr(trainer, name, loading(Path(point))(getattr(trainer, name)))
        trainer.train(resume_from_checkpoint=point)


def _random_states() -> list[tuple[Callable[[], Any], Callable[[Any], None]]]:
    """Functions that get and set the states of the random generators which a checkpoint holds."""
    states: list[tuple[Callable[[], Any], Callable[[Any], None]]] = [
        (random.getstate, random.setstate),
        (np.random.get_state, np.random.set_state),
        (torch.get_rng_state, torch.set_rng_state),
    ]
    if torch.cuda.is_available():
        states.append((torch.cuda.get_rng_state, torch.cuda.set_rng_state))
    return states
